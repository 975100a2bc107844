//! Opens listening sockets. `[::]` takes connections of both families, whatever the system's default for such sockets is, and
//! of IPv4 alone where the kernel has no IPv6: so one configuration serves every network.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use rustix::io::Errno;

const BACKLOG: i32 = 4096;

/// A listening socket.
///
/// # Errors
/// When the address cannot be had.
pub(crate) fn open(address: SocketAddr) -> io::Result<TcpListener> {
    with_fallback(address, listen)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
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

    #[test]
    fn all_addresses_are_those_of_both_families() {
        let socket = open((Ipv6Addr::UNSPECIFIED, 0).into()).unwrap();
        let address = socket.local_addr().unwrap();
        TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).unwrap();
        // Not on a machine without IPv6.
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, address.port())).unwrap();
        }
        let taken = open(address).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn without_ipv6_all_addresses_are_those_of_ipv4() {
        let check = |address: &str, errno: Errno, expected: Option<&str>| {
            let opened = with_fallback(address.parse().unwrap(), |address| {
                if address.is_ipv6() { Err(io::Error::from(errno)) } else { Ok(address) }
            });
            assert_eq!(opened.ok(), expected.map(|address| address.parse().unwrap()), "{address} {errno}");
        };
        check("[::]:8000", Errno::AFNOSUPPORT, Some("0.0.0.0:8000"));
        check("[::]:8000", Errno::ADDRNOTAVAIL, Some("0.0.0.0:8000"));
        check("[::]:8000", Errno::ADDRINUSE, None);
        check("[::]:80", Errno::ACCESS, None);
        check("[::1]:8000", Errno::ADDRNOTAVAIL, None);
        check("127.0.0.1:8000", Errno::AFNOSUPPORT, Some("127.0.0.1:8000"));
    }
}
