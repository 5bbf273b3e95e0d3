//! What programs are told: where the relay is, whom to trust, and placeholders in the place of credentials.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

const PROXY: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];
const LOCAL: &str = "localhost,127.0.0.1,::1";
/// What OpenSSL, Python, curl, Node, git, cargo, pip and Deno look at.
const AUTHORITIES: [&str; 8] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "PIP_CERT",
    "DENO_CERT",
];

/// What every Java virtual machine looks at, and says so in a line on its standard error.
const JAVA: &str = "JAVA_TOOL_OPTIONS";

/// The variables by which programs find the relay at `address`, the authorities in `bundle` and, for Java, in `truststore`. What the
/// `image` tells Java goes on to be told.
pub(super) fn of_the_relay(
    address: SocketAddr,
    bundle: &Path,
    truststore: &Path,
    image: &[(OsString, OsString)],
) -> Vec<(OsString, OsString)> {
    let url = OsString::from(format!("http://{address}"));
    let pair = |name: &str, value: &OsStr| (OsString::from(name), value.to_owned());
    let proxy = PROXY.iter().map(|name| pair(name, &url));
    let local = NO_PROXY.iter().map(|name| pair(name, OsStr::new(LOCAL)));
    let authorities = AUTHORITIES.iter().map(|name| pair(name, bundle.as_os_str()));
    // Node looks at the variables above only if it is told to.
    let node = std::iter::once(pair("NODE_USE_ENV_PROXY", OsStr::new("1")));
    let of_image = image.iter().find(|(name, _)| name == JAVA).map(|(_, value)| value.as_os_str());
    let java = std::iter::once(pair(JAVA, &java_options(address, truststore, of_image)));
    proxy.chain(local).chain(authorities).chain(node).chain(java).collect()
}

/// Java takes neither a URL of a proxy nor PEM. What goes to loopback goes there directly by its own default.
fn java_options(address: SocketAddr, truststore: &Path, image: Option<&OsStr>) -> OsString {
    let (host, port) = (address.ip(), address.port());
    let mut options = image.map(ToOwned::to_owned).unwrap_or_default();
    if !options.is_empty() {
        options.push(" ");
    }
    for scheme in ["http", "https"] {
        options.push(format!("-D{scheme}.proxyHost={host} -D{scheme}.proxyPort={port} "));
    }
    options.push("-Djavax.net.ssl.trustStore=");
    options.push(truststore);
    options
}

/// Whether a process can be given this variable.
pub(super) fn is_possible((name, value): (&String, &String)) -> bool {
    let first = name.bytes().next().is_some_and(|byte| byte == b'_' || byte.is_ascii_alphabetic());
    let rest = name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
    first && rest && name.len() <= 253 && value.len() <= 4_096 && !value.contains('\0')
}

/// Placeholders that processes find in their environment. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Variables {
    inner: Arc<Mutex<Arc<BTreeMap<String, String>>>>,
}

impl Variables {
    pub(super) fn set(&self, variables: BTreeMap<String, String>) {
        *self.inner.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(variables);
    }

    /// `environment` with the placeholders: they take the place of what the image says, and never of what a command has set.
    pub(crate) fn added_to(
        &self,
        environment: &[(OsString, OsString)],
        image: &[(OsString, OsString)],
    ) -> Vec<(OsString, OsString)> {
        let variables = Arc::clone(&*self.inner.lock().unwrap_or_else(PoisonError::into_inner));
        let mut all = environment.to_vec();
        for (name, placeholder) in variables.iter() {
            let of_image = image.iter().find(|(other, _)| other == OsStr::new(name)).map(|(_, value)| value);
            match all.iter_mut().find(|(other, _)| other == OsStr::new(name)) {
                Some((_, value)) if Some(&*value) == of_image => *value = placeholder.into(),
                Some(_) => {}
                None => all.push((name.into(), placeholder.into())),
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::Path;

    use rstest::rstest;

    use super::{Variables, is_possible, of_the_relay};

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn placeholders_replace_what_the_image_says_and_not_what_a_command_has_set() {
        let variables = Variables::default();
        let image = pairs(&[("A", "image"), ("B", "image")]);
        assert_eq!(variables.added_to(&image, &image), image);
        variables.set(["A", "B", "C"].map(|name| (name.to_owned(), format!("lhp_{name}"))).into());
        let kept = variables.added_to(&pairs(&[("A", "image"), ("B", "own")]), &image);
        assert_eq!(kept, pairs(&[("A", "lhp_A"), ("B", "own"), ("C", "lhp_C")]));
        assert_eq!(variables.added_to(&kept, &image), kept);
    }

    #[rstest]
    #[case("GITHUB_TOKEN", "lhp_x", true)]
    #[case("", "x", false)]
    #[case("1A", "x", false)]
    #[case("A=B", "x", false)]
    #[case("A", "x\0", false)]
    fn impossible_variables_are_refused(#[case] name: &str, #[case] value: &str, #[case] possible: bool) {
        assert_eq!(is_possible((&name.to_owned(), &value.to_owned())), possible);
    }

    #[test]
    fn programs_are_told_of_the_relay_and_of_the_bundle() {
        let image = pairs(&[("JAVA_TOOL_OPTIONS", "-Xmx1g")]);
        let relay = "127.0.0.1:3129".parse().unwrap();
        let all = of_the_relay(relay, Path::new("/proc/1/fd/9"), Path::new("/proc/1/fd/8"), &image);
        let of = |wanted: &str| all.iter().find(|(name, _)| name == wanted).unwrap().1.clone();
        assert_eq!(of("https_proxy"), "http://127.0.0.1:3129");
        assert_eq!(of("CURL_CA_BUNDLE"), "/proc/1/fd/9");
        assert_eq!(of("NO_PROXY"), "localhost,127.0.0.1,::1");
        let java = "-Xmx1g -Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=3129 -Dhttps.proxyHost=127.0.0.1 \
            -Dhttps.proxyPort=3129 -Djavax.net.ssl.trustStore=/proc/1/fd/8";
        assert_eq!(of("JAVA_TOOL_OPTIONS"), java);
    }
}
