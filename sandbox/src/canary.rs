//! Canaries: targets that a sandbox must not reach, and whether they answer. `sandboxd` tries them from inside; who is not
//! fenced in tries them too, since a target that answers nobody proves nothing.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long a canary has to answer where nobody waits for it; what is reachable in a cluster answers long before.
pub const WINDOW: Duration = Duration::from_millis(250);
const MAX_TARGETS: usize = 16;
/// Of the root: every resolver answers it, if only by a refusal.
const DNS_QUERY: [u8; 17] = [0x1f, 0x07, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

/// Something that a sandbox must not reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    name: String,
    protocol: Protocol,
    address: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    /// A resolver, which answers a query.
    Dns,
}

/// A list of canaries that is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not name=tcp://address:port or name=dns://address:port, or more than {MAX_TARGETS} are given")]
pub struct InvalidCanary(String);

impl FromStr for Canary {
    type Err = InvalidCanary;

    fn from_str(text: &str) -> Result<Self, InvalidCanary> {
        let invalid = || InvalidCanary(text.to_owned());
        let (name, target) = text.split_once('=').ok_or_else(invalid)?;
        let (protocol, address) = target.split_once("://").ok_or_else(invalid)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "dns" => Protocol::Dns,
            _ => return Err(invalid()),
        };
        let fits =
            (1..=63).contains(&name.len()) && name.bytes().all(|byte| byte == b'-' || byte.is_ascii_alphanumeric());
        let address = socket_address(address).ok_or_else(invalid)?;
        if fits { Ok(Self { name: name.to_owned(), protocol, address }) } else { Err(invalid()) }
    }
}

impl Canary {
    /// Those of a list that is separated by commas.
    ///
    /// # Errors
    /// [`InvalidCanary`] names the first that is none.
    pub fn list(text: &str) -> Result<Vec<Self>, InvalidCanary> {
        let all: Vec<Self> =
            text.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
        if all.len() > MAX_TARGETS { Err(InvalidCanary(text.to_owned())) } else { Ok(all) }
    }

    /// Whether it answers within `window`. A refusal is no answer: a fence may say no in that way.
    pub async fn answers(&self, window: Duration) -> bool {
        let answered = async {
            match self.protocol {
                Protocol::Tcp => TcpStream::connect(self.address).await.map(drop),
                Protocol::Dns => ask(self.address).await,
            }
        };
        matches!(timeout(window, answered).await, Ok(Ok(())))
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

async fn ask(resolver: SocketAddr) -> std::io::Result<()> {
    let any = if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(&DNS_QUERY).await?;
    socket.recv(&mut [0; 16]).await.map(drop)
}

/// An address and a port; one of IPv6 also without brackets, as what the kubelet fills in has none.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let plain = || {
        let (address, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
    };
    text.parse().ok().or_else(plain)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rstest::rstest;
    use tokio::net::UdpSocket;

    use super::{Canary, WINDOW};

    #[rstest]
    #[case("", 0)]
    #[case("api=tcp://10.0.0.1:443, dns=dns://10.0.0.10:53", 2)]
    #[case("six=tcp://[fd00::1]:443,node=tcp://fd00::1:10250", 2)]
    fn lists_are_read(#[case] text: &str, #[case] count: usize) {
        assert_eq!(Canary::list(text).unwrap().len(), count);
    }

    #[rstest]
    #[case("10.0.0.1:443")]
    #[case("a=tcp://host:1")]
    #[case("a=udp://10.0.0.1:1")]
    #[case("=tcp://10.0.0.1:1")]
    #[case(&"a=tcp://10.0.0.1:1,".repeat(17))]
    fn what_is_no_list_is_named(#[case] text: &str) {
        assert!(Canary::list(text).is_err());
    }

    #[tokio::test]
    async fn a_resolver_that_answers_opens_the_fence() {
        let resolver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = resolver.local_addr().unwrap();
        let canary = &Canary::list(&format!("dns=dns://{address}")).unwrap()[0];
        let mut query = [0; 64];
        let answer = async {
            let (length, from) = resolver.recv_from(&mut query).await.unwrap();
            resolver.send_to(&query[..length], from).await.unwrap();
        };
        let ((), answered) = tokio::join!(answer, canary.answers(WINDOW));
        assert!(answered);
    }
}
