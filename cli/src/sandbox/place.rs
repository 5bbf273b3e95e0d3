//! `SESSION[/SANDBOX]`, and `SESSION[/SANDBOX]:PATH`.

use std::path::PathBuf;
use std::str::FromStr;

use longhand_protocol::SessionId;
use longhand_protocol::client::WireClient;
use longhand_protocol::client::sandboxes::SandboxOf;

use crate::args::Target;
use crate::cluster::Cluster;
use crate::error::Result;
use crate::service::Service;
use crate::session;

/// What the one sandbox of a session is called, if nothing else is known.
const DEFAULT: &str = "default";

/// A sandbox, as it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The session, or the `Sandbox` that stands for itself.
    pub name: String,
    /// The sandbox's name in the session.
    pub sandbox: Option<String>,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, sandbox) = text.split_once('/').map_or((text, None), |(name, sandbox)| (name, Some(sandbox)));
        let is_name = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        };
        if !is_name(name) || !sandbox.is_none_or(is_name) {
            return Err("a sandbox is written SESSION or SESSION/SANDBOX".to_owned());
        }
        Ok(Self { name: name.to_owned(), sandbox: sandbox.map(ToOwned::to_owned) })
    }
}

impl Place {
    /// Which sandbox that is, and the service that leads there.
    ///
    /// # Errors
    /// When there is no such session, or the service cannot be reached.
    pub async fn reach(
        &self,
        cluster: &Cluster,
        target: &Target,
        standalone: bool,
    ) -> Result<(SandboxOf, Service, WireClient)> {
        let sandbox = self.find(cluster, standalone).await?;
        let mut service = Service::connect(cluster, target).await?;
        let client = service.client().await?;
        Ok((sandbox, service, client))
    }

    /// Which sandbox that is. With `standalone` the name is that of a `Sandbox`, and not of a session.
    ///
    /// # Errors
    /// When there is no such session.
    async fn find(&self, cluster: &Cluster, standalone: bool) -> Result<SandboxOf> {
        if standalone {
            return Ok(SandboxOf::Object { name: self.name.clone() });
        }
        let (session, sandbox) = self.of_session(cluster).await?;
        Ok(SandboxOf::Session { session, sandbox })
    }

    /// Which session that is, and which of its sandboxes.
    ///
    /// # Errors
    /// When there is no such session.
    pub async fn of_session(&self, cluster: &Cluster) -> Result<(SessionId, String)> {
        let session = session::find(cluster, &self.name).await?;
        let sandbox = match &self.sandbox {
            Some(sandbox) => sandbox.clone(),
            // Tool calls that name none go to the first one, too.
            None if session.as_str() != self.name => {
                let object = session::get(cluster, &self.name).await?;
                object.spec.sandboxes.first().map_or_else(|| DEFAULT.to_owned(), |first| first.name.clone())
            }
            None => DEFAULT.to_owned(),
        };
        Ok((session, sandbox))
    }
}

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// On this machine; `-` is standard input or output.
    Local(PathBuf),
    /// In a sandbox.
    Remote {
        /// Which one.
        place: Place,
        /// Where in it; relative to the workspace.
        path: String,
    },
}

impl FromStr for Side {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A local name with a colon in it is written with a path before it.
        match text.split_once(':') {
            Some((place, path)) if !place.starts_with(['/', '.']) => {
                let path = if path.is_empty() { "." } else { path };
                Ok(Self::Remote { place: place.parse()?, path: path.to_owned() })
            }
            _ if text.is_empty() => Err("a path is not empty".to_owned()),
            _ => Ok(Self::Local(PathBuf::from(text))),
        }
    }
}

/// `[LOCAL:]REMOTE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The port on this machine; 0 is any.
    pub local: u16,
    /// The port in the sandbox.
    pub remote: u16,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "ports are written REMOTE or LOCAL:REMOTE; LOCAL may be 0 for any".to_owned();
        let (local, remote) = text.split_once(':').unwrap_or((text, text));
        let remote = remote.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        Ok(Self { local: local.parse().map_err(|_| wrong())?, remote })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{Place, Ports, Side};

    fn place(name: &str, sandbox: Option<&str>) -> Place {
        Place { name: name.to_owned(), sandbox: sandbox.map(ToOwned::to_owned) }
    }

    #[rstest]
    #[case("hello:a/b", Side::Remote { place: place("hello", None), path: "a/b".to_owned() })]
    #[case("hello/db:/etc/x:y", Side::Remote { place: place("hello", Some("db")), path: "/etc/x:y".to_owned() })]
    #[case("sesn_1:", Side::Remote { place: place("sesn_1", None), path: ".".to_owned() })]
    #[case("./a:b", Side::Local("./a:b".into()))]
    #[case("/a:b", Side::Local("/a:b".into()))]
    #[case("a/b", Side::Local("a/b".into()))]
    #[case("-", Side::Local("-".into()))]
    fn sides_are_told_apart(#[case] text: &str, #[case] expected: Side) {
        assert_eq!(text.parse(), Ok(expected));
    }

    #[rstest]
    #[case("")]
    #[case(":x")]
    #[case("a/:x")]
    #[case("a/b/c:x")]
    #[case("a b:x")]
    fn what_is_no_side_is_refused(#[case] text: &str) {
        text.parse::<Side>().unwrap_err();
    }

    #[rstest]
    #[case("80", Some((80, 80)))]
    #[case("8080:80", Some((8080, 80)))]
    #[case("0:80", Some((0, 80)))]
    #[case("80:0", None)]
    #[case(":80", None)]
    #[case("70000", None)]
    fn ports_are_read(#[case] text: &str, #[case] expected: Option<(u16, u16)>) {
        assert_eq!(text.parse().ok(), expected.map(|(local, remote)| Ports { local, remote }));
    }
}
