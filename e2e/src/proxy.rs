//! A TCP proxy whose network goes wrong on command.
//!
//! Owns the listening socket and every connection through it. Faults are those of real networks: delay, silence in one
//! direction or both (what is sent meanwhile arrives later, as TCP would repeat it), a reset of both ends, a reset of
//! one end while the other learns nothing, and an end right after certain bytes have passed.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

/// How soon a connection notices a change of the rules.
const TICK: Duration = Duration::from_millis(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From who connected to who listens.
    ToServer,
    /// Back.
    ToClient,
}

/// What a cut does to the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Both ends get a reset.
    Both,
    /// The client gets a reset; the server's end stays open and silent until the network heals.
    ClientOnly,
    /// The server gets a reset; the client's end stays open and silent until the network heals.
    ServerOnly,
}

/// A cut to come.
#[derive(Debug, Clone)]
struct Trap {
    direction: Direction,
    /// These bytes must pass in `direction` first; none: any.
    bytes: Vec<u8>,
    /// Whether what has sprung the trap still arrives.
    deliver: bool,
    cut: Cut,
}

#[derive(Debug, Default)]
struct Rules {
    delay: Duration,
    silent_to_server: bool,
    silent_to_client: bool,
    trap: Option<Trap>,
    /// Grows with each [`Proxy::heal`]: half-open ends of before are then closed.
    healed: u64,
    sprung: u64,
}

#[derive(Debug)]
struct Shared {
    upstream: Mutex<SocketAddr>,
    rules: Mutex<Rules>,
    links: Mutex<Vec<Weak<Link>>>,
    ended: AtomicBool,
}

/// One connection: both sockets and how it goes.
#[derive(Debug)]
struct Link {
    client: TcpStream,
    server: TcpStream,
    /// `Some` after a cut, with [`Rules::healed`] of then.
    cut: Mutex<Option<u64>>,
}

/// A running proxy; all its connections end with it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Listens on a free port of this machine.
    ///
    /// # Errors
    /// When there is none.
    pub fn start(upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            rules: Mutex::default(),
            links: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &accepting));
        Ok(Self { address, shared })
    }

    /// Where to connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where new connections are led from now on.
    pub fn set_upstream(&self, upstream: SocketAddr) {
        *lock(&self.shared.upstream) = upstream;
    }

    /// Holds back every piece for so long.
    pub fn set_delay(&self, delay: Duration) {
        lock(&self.shared.rules).delay = delay;
    }

    /// Lets nothing pass this way until the network heals.
    pub fn silence(&self, direction: Direction) {
        let mut rules = lock(&self.shared.rules);
        match direction {
            Direction::ToServer => rules.silent_to_server = true,
            Direction::ToClient => rules.silent_to_client = true,
        }
    }

    /// Lets nothing pass at all until the network heals.
    pub fn partition(&self) {
        self.silence(Direction::ToServer);
        self.silence(Direction::ToClient);
    }

    /// Cuts all connections that there are.
    pub fn cut_all(&self, cut: Cut) {
        let healed = lock(&self.shared.rules).healed;
        for link in lock(&self.shared.links).iter().filter_map(Weak::upgrade) {
            link.cut(cut, healed);
        }
    }

    /// Cuts the first connection on which these bytes pass this way, before (`deliver` false) or after they arrive.
    pub fn cut_at(&self, direction: Direction, bytes: &[u8], deliver: bool, cut: Cut) {
        lock(&self.shared.rules).trap = Some(Trap { direction, bytes: bytes.to_vec(), deliver, cut });
    }

    /// How many times [`Self::cut_at`] has cut.
    #[must_use]
    pub fn sprung(&self) -> u64 {
        lock(&self.shared.rules).sprung
    }

    /// A network in good order again; what was half open is closed.
    pub fn heal(&self) {
        let mut rules = lock(&self.shared.rules);
        *rules = Rules { healed: rules.healed + 1, sprung: rules.sprung, ..Rules::default() };
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.cut_all(Cut::Both);
        // Wakes the accepting thread, which then ends.
        let _woken = TcpStream::connect(self.address);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.ended.load(Ordering::Relaxed) {
            return;
        }
        let Ok(client) = client else { continue };
        let shared = Arc::clone(shared);
        thread::spawn(move || connect(client, &shared));
    }
}

fn connect(client: TcpStream, shared: &Arc<Shared>) {
    // In a partition a connection attempt is not answered.
    while lock(&shared.rules).silent_to_server {
        if shared.ended.load(Ordering::Relaxed) {
            return;
        }
        thread::sleep(TICK);
    }
    let upstream = *lock(&shared.upstream);
    let Ok(server) = TcpStream::connect_timeout(&upstream, CONNECT_TIMEOUT) else {
        reset(&client);
        return;
    };
    let link = Link { client, server, cut: Mutex::new(None) };
    for socket in [&link.client, &link.server] {
        if socket.set_nodelay(true).is_err() || socket.set_read_timeout(Some(TICK)).is_err() {
            return;
        }
    }
    let link = Arc::new(link);
    let mut links = lock(&shared.links);
    links.retain(|link| link.strong_count() > 0);
    links.push(Arc::downgrade(&link));
    drop(links);
    for direction in [Direction::ToServer, Direction::ToClient] {
        let (shared, link) = (Arc::clone(shared), Arc::clone(&link));
        thread::spawn(move || carry(&shared, &link, direction));
    }
}

/// Moves bytes one way until the connection ends.
fn carry(shared: &Shared, link: &Link, direction: Direction) {
    let (from, to) = match direction {
        Direction::ToServer => (&link.client, &link.server),
        Direction::ToClient => (&link.server, &link.client),
    };
    let mut piece = [0_u8; 32 << 10];
    // The end of the piece before: what a trap waits for may lie across two.
    let mut tail: Vec<u8> = Vec::new();
    loop {
        if shared.ended.load(Ordering::Relaxed) {
            link.cut(Cut::Both, 0);
        }
        if let Some(healed_then) = *lock(&link.cut) {
            if lock(&shared.rules).healed > healed_then || shared.ended.load(Ordering::Relaxed) {
                link.close();
                return;
            }
        } else if shared.is_silent(direction) {
            thread::sleep(TICK);
            continue;
        }
        let mut reader = from;
        let read = match reader.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                continue;
            }
            Err(_) => break,
        };
        if lock(&link.cut).is_some() {
            // Half open: what the silent end still sends goes nowhere.
            continue;
        }
        let delay = lock(&shared.rules).delay;
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        while shared.is_silent(direction) && !shared.ended.load(Ordering::Relaxed) {
            thread::sleep(TICK);
        }
        let trap = shared.spring(direction, &mut tail, &piece[..read]);
        let deliver = trap.as_ref().is_none_or(|trap| trap.deliver);
        let mut writer = to;
        if deliver && writer.write_all(&piece[..read]).is_err() {
            break;
        }
        if let Some(trap) = trap {
            link.cut(trap.cut, lock(&shared.rules).healed);
        }
    }
    // One end is closed: the other learns it, unless the connection was cut half open.
    if lock(&link.cut).is_none() {
        let _gone = to.shutdown(Shutdown::Both);
    }
}

impl Shared {
    fn is_silent(&self, direction: Direction) -> bool {
        let rules = lock(&self.rules);
        match direction {
            Direction::ToServer => rules.silent_to_server,
            Direction::ToClient => rules.silent_to_client,
        }
    }

    /// Takes the trap when this piece springs it.
    fn spring(&self, direction: Direction, tail: &mut Vec<u8>, piece: &[u8]) -> Option<Trap> {
        let mut rules = lock(&self.rules);
        let trap = rules.trap.as_ref().filter(|trap| trap.direction == direction)?;
        let length = trap.bytes.len();
        tail.extend_from_slice(piece);
        let found = length == 0 || tail.windows(length).any(|window| window == trap.bytes);
        tail.drain(..tail.len().saturating_sub(length.saturating_sub(1)));
        if !found {
            return None;
        }
        rules.sprung += 1;
        rules.trap.take()
    }
}

impl Link {
    fn cut(&self, cut: Cut, healed: u64) {
        let mut state = lock(&self.cut);
        if state.is_some() {
            return;
        }
        *state = Some(healed);
        drop(state);
        if cut != Cut::ServerOnly {
            reset(&self.client);
        }
        if cut != Cut::ClientOnly {
            reset(&self.server);
        }
    }

    fn close(&self) {
        // What is closed already says so, which is what is wanted.
        let _gone = (self.client.shutdown(Shutdown::Both), self.server.shutdown(Shutdown::Both));
    }
}

/// Ends a connection with a reset: what the kernel has not sent is dropped.
fn reset(socket: &TcpStream) {
    // Linux sends the reset at once, although two threads still hold the socket. One that is closed already stays so.
    let _gone = rustix::net::connect_unspec(socket);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers every byte with the byte after it, and the client's end of a connection to it.
    fn echo() -> (Proxy, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let mut byte = [0];
                    while let Ok(1) = stream.read(&mut byte) {
                        byte[0] += 1;
                        stream.write_all(&byte).unwrap();
                    }
                });
            }
        });
        let client = connect_to(&proxy);
        (proxy, client)
    }

    fn connect_to(proxy: &Proxy) -> TcpStream {
        let client = TcpStream::connect(proxy.address()).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        client
    }

    fn ask(client: &mut TcpStream) -> io::Result<u8> {
        client.write_all(b"a")?;
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    #[test]
    fn what_was_sent_into_silence_arrives_when_it_ends() {
        let (proxy, mut client) = echo();
        assert_eq!(ask(&mut client).unwrap(), b'b');
        proxy.silence(Direction::ToClient);
        assert_eq!(ask(&mut client).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        proxy.heal();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client.read_exact(&mut [0]).unwrap();
        assert_eq!(ask(&mut client).unwrap(), b'b');
    }

    #[test]
    fn a_cut_resets_and_a_half_open_end_stays_silent_until_the_network_heals() {
        let (proxy, mut client) = echo();
        assert_eq!(ask(&mut client).unwrap(), b'b');
        proxy.cut_all(Cut::Both);
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut client = connect_to(&proxy);
        assert_eq!(ask(&mut client).unwrap(), b'b');
        proxy.cut_all(Cut::ServerOnly);
        assert_eq!(ask(&mut client).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        proxy.heal();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_trap_swallows_the_reply_to_what_springs_it() {
        let (proxy, mut client) = echo();
        proxy.cut_at(Direction::ToClient, b"bb", false, Cut::ClientOnly);
        assert_eq!(ask(&mut client).unwrap(), b'b');
        assert_eq!(proxy.sprung(), 0);
        assert_eq!(ask(&mut client).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(proxy.sprung(), 1);
    }
}
