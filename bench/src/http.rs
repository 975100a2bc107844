//! GET requests over one connection that is kept, for measurements in which connecting would be most of the time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to one server, opened when needed.
pub(crate) struct Connection {
    server: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
}

impl Connection {
    pub(crate) fn new(server: SocketAddr) -> Self {
        Self { server, stream: None }
    }

    /// Status and body.
    pub(crate) fn get(&mut self, path: &str) -> Result<(u16, Vec<u8>)> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.server).context("cannot connect to the pod")?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
                BufReader::new(stream)
            }
        };
        write!(stream.get_mut(), "GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.server)?;
        let (mut status, mut length, mut close) = (None, 0, false);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 {
                bail!("the pod closed the connection instead of answering {path}");
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest.get(..3).and_then(|code| code.parse().ok());
            }
            match line.split_once(": ") {
                Some(("content-length", value)) => length = value.parse().context("a bad content-length")?,
                Some(("connection", "close")) => close = true,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        if !close {
            self.stream = Some(stream);
        }
        Ok((status.context("a reply without a status")?, body))
    }
}
