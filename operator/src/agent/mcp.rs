//! The MCP servers of an agent: where they are, and the credentials that they are called with.

use kube::ResourceExt as _;
use longhand_crds::Vault;
use longhand_crds::agent::McpServerSpec;
use longhand_crds::vault::{CredentialSpec, PrivateAddresses, Refresh};
use reqwest::Url;

use super::references::{Missing, find, may_go_to};

/// A server, and how it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct McpAccess {
    /// What the agent calls it.
    pub name: String,
    /// Where it is, as the agent says.
    pub url: String,
    /// The same, as the proxy is told.
    pub upstream: String,
    /// Whether it may have a private address without a credential that says so.
    pub private_addresses: PrivateAddresses,
    /// The credential.
    pub credential: Option<CredentialSpec>,
    /// The name of the vault that it is in.
    pub vault: Option<String>,
}

impl McpAccess {
    /// The vault and the credential whose access token is refreshed, and how, if it is.
    #[must_use]
    pub fn refresh(&self) -> Option<(&str, &CredentialSpec, &Refresh)> {
        let credential = self.credential.as_ref()?;
        Some((self.vault.as_deref()?, credential, credential.refresh()?))
    }
}

/// How the servers are called; `vault` gives those of the namespace. A credential of `session_vaults` that is meant for the
/// server's URL goes before that of the agent.
///
/// # Errors
/// [`Missing`], which names what is not there.
pub fn access(
    servers: &[McpServerSpec],
    session_vaults: &[Vault],
    vault: impl Fn(&str) -> Option<Vault>,
) -> Result<Vec<McpAccess>, Missing> {
    let one = |server: &McpServerSpec| {
        let upstream = upstream(&server.url).ok_or_else(|| Missing::McpUrl(server.name.clone()))?;
        let in_vault = |vault: &Vault| {
            let mut credentials = vault.spec.credentials.iter();
            let credential = credentials.find(|credential| is_meant_for(credential, &upstream))?;
            Some((vault.name_any(), credential.clone()))
        };
        let credential = match (session_vaults.iter().find_map(in_vault), &server.credential) {
            (Some(found), _) => Some(found),
            (None, None) => None,
            (None, Some(wanted)) => {
                let found = find(wanted, vault(&wanted.vault).as_ref())?.clone();
                let (vault, name) = (wanted.vault.clone(), wanted.name.clone());
                if found.placement.kind.is_for_sandboxes() {
                    return Err(Missing::NotForMcp { vault, name, server: server.name.clone() });
                }
                if !may_go_to(&found, &upstream) {
                    return Err(Missing::NotAllowed { vault, name, url: upstream });
                }
                Some((vault, found))
            }
        };
        if let Some((vault, credential)) = &credential
            && let Some(what) = credential.refresh().and_then(unfit)
        {
            let (vault, name) = (vault.clone(), credential.name.clone());
            return Err(Missing::RefreshInvalid { vault, name, what });
        }
        let (vault, credential) = credential.unzip();
        let (name, url, private_addresses) = (server.name.clone(), server.url.clone(), server.private_addresses);
        Ok(McpAccess { name, url, upstream, private_addresses, credential, vault })
    };
    servers.iter().map(one).collect()
}

/// Whether a credential was written for the server at this URL.
fn is_meant_for(credential: &CredentialSpec, url: &str) -> bool {
    let meant = credential.mcp_server_url.as_deref().and_then(upstream);
    credential.archived_at.is_none()
        && !credential.placement.kind.is_for_sandboxes()
        && meant.is_some_and(|meant| meant.trim_end_matches('/') == url.trim_end_matches('/'))
        && may_go_to(credential, url)
}

/// Why the proxy does not take how an access token is refreshed, if it does not.
pub(crate) fn unfit(refresh: &Refresh) -> Option<&'static str> {
    let secret = &refresh.refresh_token_ref.name;
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    if token_endpoint(refresh).is_none() {
        Some(
            "its tokenEndpoint is not one that a proxy calls: it needs https, no user, and a path that every server reads the same way",
        )
    } else if !(1..=253).contains(&secret.len()) || !secret.bytes().all(plain) {
        Some("its refreshTokenRef does not name a Secret")
    } else {
        None
    }
}

/// The token endpoint in the one form that the proxy takes; none if there is none. The refresh token goes there.
#[must_use]
pub fn token_endpoint(refresh: &Refresh) -> Option<String> {
    upstream(&refresh.token_endpoint).filter(|url| url.starts_with("https://"))
}

/// A URL in the one form that the proxy takes; none if there is none.
#[must_use]
pub fn upstream(url: &str) -> Option<String> {
    let mut url = Url::parse(url).ok()?;
    // It is never sent.
    url.set_fragment(None);
    let host = url.host_str()?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    let short = host.split('.').all(|label| (1..=63).contains(&label.len()) || host.starts_with('['));
    let fits = matches!(url.scheme(), "http" | "https")
        && url.username().is_empty()
        && url.password().is_none()
        && host.bytes().all(plain)
        && short
        && host.len() <= 253
        && url.port() != Some(0)
        && is_plain(url.path());
    fits.then(|| url.into())
}

/// Whether every server reads a path the same way.
fn is_plain(path: &str) -> bool {
    if path.contains("//") || path.contains(['\\', ';']) {
        return false;
    }
    let mut meaning = Vec::new();
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let digits = [bytes.next(), bytes.next()].map(|digit| char::from(digit.unwrap_or(b' ')).to_digit(16));
                let [Some(high), Some(low)] = digits else { return false };
                match u8::try_from(high * 16 + low).unwrap_or_default() {
                    b'/' | b'\\' | b'.' | b';' | b'%' => return false,
                    byte if byte.is_ascii_control() => return false,
                    byte => byte,
                }
            }
            byte if byte.is_ascii_graphic() => byte,
            _ => return false,
        };
        meaning.push(byte);
    }
    String::from_utf8(meaning).is_ok()
}

#[cfg(test)]
mod tests {
    use longhand_crds::Vault;
    use longhand_crds::agent::{CredentialRef, McpServerSpec};
    use rstest::rstest;

    use super::{McpAccess, access, upstream};
    use crate::fixtures;

    const URL: &str = "http://model.test:8080/mcp";

    fn server(credential: Option<&str>) -> McpServerSpec {
        let credential = credential.map(|name| CredentialRef { vault: "models".to_owned(), name: name.to_owned() });
        McpServerSpec { credential, ..McpServerSpec::new("s".to_owned(), URL.to_owned()) }
    }

    fn look(server: McpServerSpec, session: &[Vault], vault: Option<&Vault>) -> Result<McpAccess, &'static str> {
        let found = access(&[server], session, |name| vault.filter(|_| name == "models").cloned());
        found.map(|mut all| all.remove(0)).map_err(|missing| missing.reason())
    }

    #[test]
    fn a_server_needs_no_credential() {
        let found = look(server(None), &[], None).unwrap();
        assert_eq!((found.upstream.as_str(), found.credential), (URL, None));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(look(server(Some("api-key")), &[], None), Err("VaultNotFound"));
        let mut vault = fixtures::vault();
        assert_eq!(look(server(Some("other")), &[], Some(&vault)), Err("CredentialNotFound"));
        assert!(look(server(Some("api-key")), &[], Some(&vault)).unwrap().credential.is_some());
        let elsewhere = McpServerSpec { url: "https://else.test/mcp".to_owned(), ..server(Some("api-key")) };
        assert_eq!(look(elsewhere, &[], Some(&vault)), Err("CredentialNotAllowed"));
        vault.spec.credentials[0].placement.kind = longhand_crds::vault::PlacementKind::EnvironmentVariable;
        assert_eq!(look(server(Some("api-key")), &[], Some(&vault)), Err("CredentialNotForMCP"));
        let wrong = McpServerSpec::new("s".to_owned(), "http://a.test//b".to_owned());
        assert_eq!(look(wrong, &[], None), Err("MCPServerURLInvalid"));
    }

    #[rstest]
    #[case("https://login.test/token", "first", None)]
    #[case("https://login.test/a;b/token", "first", Some("CredentialRefreshInvalid"))]
    #[case("https://login.test//token", "first", Some("CredentialRefreshInvalid"))]
    #[case("https://login.test/a%2Fb", "first", Some("CredentialRefreshInvalid"))]
    #[case("http://login.test/token", "first", Some("CredentialRefreshInvalid"))]
    #[case("https://login.test/token", "First_Secret", Some("CredentialRefreshInvalid"))]
    fn how_it_is_refreshed_is_what_the_proxy_takes(
        #[case] endpoint: &str,
        #[case] secret: &str,
        #[case] reason: Option<&str>,
    ) {
        let mut vault = fixtures::vault();
        let credential = &mut vault.spec.credentials[0];
        credential.oauth =
            serde_json::from_value(serde_json::json!({"refresh": {"clientID": "me", "tokenEndpoint": endpoint,
            "tokenEndpointAuth": "none", "refreshTokenRef": {"name": secret, "key": "r"}}}))
            .unwrap();
        credential.mcp_server_url = Some(URL.to_owned());
        assert_eq!(look(server(Some("api-key")), &[], Some(&vault)).err(), reason);
        assert_eq!(look(server(None), &[vault], None).err(), reason);
    }

    #[rstest]
    #[case(Some("http://model.test:8080/mcp/"), true)]
    #[case(Some("http://MODEL.test:8080/mcp"), true)]
    #[case(Some("http://model.test:8080/other"), false)]
    #[case(Some("https://model.test:8080/mcp"), false)]
    #[case(None, false)]
    fn a_credential_of_the_session_is_for_one_url(#[case] meant: Option<&str>, #[case] taken: bool) {
        let mut vault = fixtures::vault();
        vault.spec.credentials[0].mcp_server_url = meant.map(ToOwned::to_owned);
        let found = look(server(None), &[vault], None).unwrap();
        assert_eq!((found.credential.is_some(), found.vault.as_deref()), (taken, taken.then_some("models")));
    }

    #[rstest]
    #[case("https://a.test", Some("https://a.test/"))]
    #[case("https://a.test/mcp/?key=1#part", Some("https://a.test/mcp/?key=1"))]
    #[case("https://A.test:443/x/../mcp", Some("https://a.test/mcp"))]
    #[case("http://[::1]:80/mcp", Some("http://[::1]/mcp"))]
    #[case("ftp://a.test", None)]
    #[case("https://user@a.test", None)]
    #[case("https://a.test/a//b", None)]
    #[case("https://a.test/a%2fb", None)]
    #[case("https://a.test/a%zz", None)]
    #[case("https://a.test/a%ff", None)]
    #[case("https://a.test/a;b", None)]
    #[case("nonsense", None)]
    fn a_url_in_the_form_of_the_proxy(#[case] url: &str, #[case] expected: Option<&str>) {
        assert_eq!(upstream(url).as_deref(), expected);
    }
}
