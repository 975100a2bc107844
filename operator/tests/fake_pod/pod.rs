//! A stand-in for `certeus-dataplane` in the tests of local mode. It keeps the contract between operator and pod
//! (listening socket on descriptor 0, admin port, metrics with a key, drain, SIGTERM) and has nothing behind it.
//! Tests steer it through its admin port: `POST /fake/queue/N` sets the queue depth, `POST /fake/crash` ends it, and
//! after `POST /fake/stubborn` it never finishes draining.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

static QUEUE_EVENTS: AtomicU64 = AtomicU64::new(0);
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
static STUBBORN: AtomicBool = AtomicBool::new(false);
static DRAINING: AtomicBool = AtomicBool::new(false);

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [option, config, spool] = args.as_slice() else {
        panic!("expected --config FILE --spool=FOLDER, got {args:?}")
    };
    assert_eq!(option, "--config");
    let spool = spool.strip_prefix("--spool=").map(std::path::Path::new);
    assert!(spool.is_some_and(std::path::Path::is_dir), "{args:?}");
    let config = PathBuf::from(config);
    let text = std::fs::read_to_string(&config)?;
    assert_eq!(std::env::var("CERTEUS_API_LISTEN").as_deref(), Ok("fd:0"));
    assert!(std::env::var("CERTEUS_DB_URL").is_ok_and(|url| url.starts_with("postgres://")));
    // All pods of an instance share one signing key, from the manifests or made on first use, and one anchor.
    let given = |name| std::env::var(name).unwrap_or_default();
    assert!(given("CERTEUS_LOG_ANCHOR").starts_with("file:///"));
    let made =
        given("CERTEUS_SIGNING_KEY_FILE").starts_with('/') && given("CERTEUS_LOG_ORIGIN") == "localhost/demo";
    assert!(made != std::env::var("CERTEUS_SIGNING_KEY").is_ok());
    let socket = std::net::TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    let api = TcpListener::from_std(socket)?;
    let admin = std::env::var("CERTEUS_ADMIN_LISTEN").expect("an admin address");
    let admin = TcpListener::bind(&admin).await?;
    let key = std::env::var("CERTEUS_API_KEY").ok();
    println!("fake pod {} serves", std::process::id());
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            accepted = api.accept(), if !DRAINING.load(Ordering::SeqCst) => {
                let (stream, text) = (accepted?.0, text.clone());
                CONNECTIONS.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    // A client that goes away is no concern of a stand-in.
                    let _gone = serve(stream, None, |_| Some(text)).await;
                    CONNECTIONS.fetch_sub(1, Ordering::SeqCst);
                });
            }
            accepted = admin.accept() => {
                // Not beside this loop: once told to drain, it accepts nothing more.
                let _gone = serve(accepted?.0, key.as_deref(), admin_reply).await;
            }
        }
    }
}

/// One request per connection: the body of the reply, or 503.
async fn serve(
    stream: TcpStream,
    key: Option<&str>,
    reply: impl FnOnce(&str) -> Option<String>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    stream.read_line(&mut request).await?;
    let mut header = String::new();
    let mut authorized = key.is_none();
    while stream.read_line(&mut header).await? > 2 {
        authorized |= key.is_some_and(|key| header.trim_end().ends_with(&format!(": Bearer {key}")));
        header.clear();
    }
    let (status, body) = match reply(request.trim_end()) {
        _ if !authorized && request.contains("/metrics") => ("401 Unauthorized", String::new()),
        Some(body) => ("200 OK", body),
        None => ("503 Service Unavailable", String::new()),
    };
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await?;
    // Reads the end of the other side, so that closing cannot reset what it has not read yet.
    stream.read_to_string(&mut header).await.map(|_| ())
}

fn admin_reply(request: &str) -> Option<String> {
    let mut words = request.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let draining = DRAINING.load(Ordering::SeqCst);
    match (method, path) {
        ("GET", "/health/ready") => (!draining).then(String::new),
        ("GET", "/metrics") => Some(metrics()),
        ("POST", "/admin/drain") => {
            DRAINING.store(true, Ordering::SeqCst);
            Some(String::new())
        }
        ("GET", "/admin/drain") => {
            let connections = CONNECTIONS.load(Ordering::SeqCst);
            let state = match (draining, connections > 0 || STUBBORN.load(Ordering::SeqCst)) {
                (false, _) => "serving",
                (true, true) => "draining",
                (true, false) => "drained",
            };
            Some(format!(
                r#"{{"state":"{state}","queueEvents":0,"inFlightEvents":0,"connections":{connections}}}"#
            ))
        }
        ("POST", "/fake/stubborn") => {
            STUBBORN.store(true, Ordering::SeqCst);
            Some(String::new())
        }
        ("POST", "/fake/crash") => std::process::exit(3),
        ("POST", path) => {
            let events = path.strip_prefix("/fake/queue/")?.parse().ok()?;
            QUEUE_EVENTS.store(events, Ordering::SeqCst);
            Some(String::new())
        }
        _ => None,
    }
}

fn metrics() -> String {
    let queue = QUEUE_EVENTS.load(Ordering::SeqCst);
    let draining = u8::from(DRAINING.load(Ordering::SeqCst));
    let lines = [
        "certeus_process_cpu_seconds_total 1".to_owned(),
        "certeus_process_start_time_seconds 1".to_owned(),
        "certeus_process_resident_memory_bytes 1000000".to_owned(),
        format!("certeus_ledger_queue_events {queue}"),
        "certeus_ledger_queue_events_max 1000".to_owned(),
        "certeus_ledger_queue_bytes 0".to_owned(),
        "certeus_ledger_queue_bytes_max 1000000".to_owned(),
        "certeus_ledger_queue_oldest_age_seconds 0".to_owned(),
        "certeus_ledger_commit_duration_seconds_sum 0".to_owned(),
        "certeus_ledger_commit_duration_seconds_count 0".to_owned(),
        "certeus_ledger_events_committed_total 0".to_owned(),
        "certeus_ledger_database_up 1".to_owned(),
        format!("certeus_draining {draining}"),
    ];
    lines.join("\n") + "\n"
}
