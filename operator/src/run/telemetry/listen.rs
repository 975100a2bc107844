//! The operator's listening socket. `[::]` takes connections of both families, whatever the system's default for such sockets
//! is, and of IPv4 alone where the kernel has no IPv6: so one chart serves every network.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpSocket};

const BACKLOG: u32 = 128;

/// A listening socket.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    with_fallback(address, open)
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() {
        let socket = TcpSocket::new_v6()?;
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
        socket
    } else {
        TcpSocket::new_v4()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn with_fallback<T>(address: SocketAddr, open: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    let opened = open(address);
    // Without the protocol there is no socket; where it is turned off, none of its addresses.
    let no_ipv6 = opened.as_ref().is_err_and(|error| {
        let errors = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL];
        errors.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
    });
    if no_ipv6 && address.is_ipv6() && address.ip().is_unspecified() {
        return open((Ipv4Addr::UNSPECIFIED, address.port()).into());
    }
    opened
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpStream};

    use super::*;

    #[tokio::test]
    async fn all_addresses_are_those_of_both_families() {
        let socket = listen((Ipv6Addr::UNSPECIFIED, 0).into()).unwrap();
        let address = socket.local_addr().unwrap();
        TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).unwrap();
        // Not on a machine without IPv6.
        if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, address.port())).unwrap();
        }
    }

    #[test]
    fn without_ipv6_all_addresses_are_those_of_ipv4() {
        let check = |address: &str, errno: Errno, expected: Option<&str>| {
            let opened = with_fallback(address.parse().unwrap(), |address| {
                if address.is_ipv6() { Err(io::Error::from(errno)) } else { Ok(address) }
            });
            assert_eq!(opened.ok(), expected.map(|address| address.parse().unwrap()), "{address} {errno}");
        };
        check("[::]:9090", Errno::AFNOSUPPORT, Some("0.0.0.0:9090"));
        check("[::]:9090", Errno::ADDRNOTAVAIL, Some("0.0.0.0:9090"));
        check("[::]:9090", Errno::ADDRINUSE, None);
        check("[::1]:9090", Errno::ADDRNOTAVAIL, None);
    }
}
