//! `--check-ready`: asks the pod beside this process whether it is ready, for container engines whose health checks are
//! commands. The image has neither shell nor HTTP client.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// For everything; a pod that takes longer is not ready.
const TIMEOUT: Duration = Duration::from_secs(3);
/// A status line is shorter, whatever else the reply holds.
const HEAD_BYTES: u64 = 64;

/// Why the pod does not count as ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReady {
    /// It could not be asked.
    #[error("no answer from {address}")]
    NoAnswer {
        /// Its admin address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// It said so.
    #[error("{address} answers {status:?}")]
    Status {
        /// Its admin address.
        address: SocketAddr,
        /// The first line of its reply.
        status: String,
    },
}

/// Asks the pod that listens on `admin`.
///
/// # Errors
/// When it does not answer, or not with 200.
pub(crate) fn check(admin: SocketAddr) -> Result<(), NotReady> {
    let address = SocketAddr::new(reachable(admin.ip()), admin.port());
    let head = ask(address).map_err(|source| NotReady::NoAnswer { address, source })?;
    if head.starts_with("HTTP/1.1 200 ") || head.starts_with("HTTP/1.0 200 ") {
        return Ok(());
    }
    let status = head.lines().next().unwrap_or_default().to_owned();
    Err(NotReady::Status { address, status })
}

/// The beginning of the reply.
fn ask(address: SocketAddr) -> io::Result<String> {
    let deadline = Instant::now() + TIMEOUT;
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut stream = TcpStream::connect_timeout(&address, left())?;
    stream.set_write_timeout(Some(left()))?;
    let request = format!("GET /health/ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    stream.set_read_timeout(Some(left()))?;
    let mut head = Vec::new();
    stream.take(HEAD_BYTES).read_to_end(&mut head)?;
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// "All addresses" is nowhere to connect to. Those of IPv6 include those of IPv4, which may be the only ones.
fn reachable(listen: IpAddr) -> IpAddr {
    if listen.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { listen }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpListener};

    use super::*;

    /// Answers one request with `reply`, and gives what it read.
    fn pod(reply: &'static str) -> (SocketAddr, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 1024];
            let count = stream.read(&mut request).unwrap();
            stream.write_all(reply.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        (address, thread)
    }

    #[test]
    fn only_200_is_ready() {
        let (address, thread) = pod("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        // As a pod in a container listens.
        check(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port())).unwrap();
        assert!(thread.join().unwrap().starts_with("GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1:"));

        let (address, thread) = pod("HTTP/1.1 200 OK\r\n\r\n");
        check(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port())).unwrap();
        thread.join().unwrap();

        let (address, thread) = pod("HTTP/1.1 503 Service Unavailable\r\n\r\n");
        let refused = check(address).unwrap_err().to_string();
        assert_eq!(refused, format!("{address} answers \"HTTP/1.1 503 Service Unavailable\""));
        thread.join().unwrap();

        let (address, thread) = pod("");
        assert!(matches!(check(address), Err(NotReady::Status { .. } | NotReady::NoAnswer { .. })));
        thread.join().unwrap();
        assert!(matches!(check(address), Err(NotReady::NoAnswer { .. })), "nobody listens any more");
    }
}
