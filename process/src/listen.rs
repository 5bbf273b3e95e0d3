//! Listening sockets that serve IPv4 and IPv6 alike.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

// What the standard library takes; the kernel has a limit of its own.
const BACKLOG: i32 = 1_024;

/// All addresses of this machine, of whichever family it has.
#[must_use]
pub const fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}

/// Listens on `address`. `[::]` is every address, those of IPv4 too, whatever the node's default for IPv6 sockets is; without IPv6 it
/// is `0.0.0.0`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    bind_with(address, dual_stack).await
}

async fn bind_with(
    address: SocketAddr,
    dual_stack: impl FnOnce(SocketAddr) -> io::Result<TcpListener>,
) -> io::Result<TcpListener> {
    if address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        return TcpListener::bind(address).await;
    }
    match dual_stack(address) {
        Err(error) if is_without_ipv6(&error) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await,
        other => other,
    }
}

fn dual_stack(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    // As for every listener of tokio: a restart does not wait for connections that have ended.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// The kernel has no IPv6 (EAFNOSUPPORT), or this network has it switched off.
fn is_without_ipv6(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.raw_os_error() == Some(EAFNOSUPPORT) || error.kind() == ErrorKind::AddrNotAvailable
}

#[cfg(test)]
mod tests {
    use std::io::{self, ErrorKind};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

    use rstest::rstest;
    use tokio::net::{TcpListener, TcpStream};

    use super::{bind, bind_with, everywhere};

    async fn answers(ip: impl Into<IpAddr>, listener: &TcpListener) -> bool {
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect(SocketAddr::new(ip.into(), port)).await.is_ok()
    }

    #[tokio::test]
    async fn both_families_are_served_by_one_socket() {
        let listener = bind(everywhere(0)).await.unwrap();
        assert!(answers(Ipv4Addr::LOCALHOST, &listener).await);
        // A machine without IPv6 has nothing to be reached by.
        if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            assert!(answers(Ipv6Addr::LOCALHOST, &listener).await);
        }
    }

    #[rstest]
    #[case::no_such_family(io::Error::from_raw_os_error(97))]
    #[case::switched_off(ErrorKind::AddrNotAvailable.into())]
    #[tokio::test]
    async fn without_ipv6_there_is_ipv4(#[case] error: io::Error) {
        let listener = bind_with(everywhere(0), |_| Err(error)).await.unwrap();
        assert!(listener.local_addr().unwrap().is_ipv4());
        assert!(answers(Ipv4Addr::LOCALHOST, &listener).await);
    }

    #[tokio::test]
    async fn another_failure_is_one() {
        let refused = bind_with(everywhere(0), |_| Err(ErrorKind::AddrInUse.into())).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::AddrInUse);
        let listener = bind(everywhere(0)).await.unwrap();
        assert_eq!(bind(listener.local_addr().unwrap()).await.unwrap_err().kind(), ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn an_address_that_is_named_is_all_that_is_listened_on() {
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        assert!(!answers(Ipv6Addr::LOCALHOST, &listener).await);
    }
}
