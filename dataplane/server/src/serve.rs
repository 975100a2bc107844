//! Takes connections and serves a router on each.
//!
//! Owns sockets, connection limits, time limits and the age after which a connection is asked to come anew. A pod that is
//! added takes its share of long-lived connections only because the older ones end: `Connection: close` on a reply tells the
//! client so without ever cutting off a request.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::config::Listen;
use crate::lifecycle::{Lifecycle, Phase};
use crate::listen;

/// Connections served at a time. Further ones wait in the kernel's queue, which another pod may share.
const CONNECTIONS_MAX: usize = 4096;
/// A client has this long for a request's head; also how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// A client that takes in none of its reply for this long is cut off.
const WRITE_STALL: Duration = Duration::from_secs(30);
/// Bytes of a request that are read ahead of the handler.
const READ_BUFFER_BYTES_MAX: usize = 64 << 10;
/// A connection is asked to come anew after 10 to 20 s, spread so that they do not all come at once.
const AGE_MIN: Duration = Duration::from_secs(10);
/// After an accept error such as "too many open files" there is no use in trying at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why a listening socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// File descriptor 0 is not a listening TCP socket.
    #[error("cannot use file descriptor 0 as a listening socket")]
    Inherited(#[source] io::Error),
    /// The inherited socket is reachable from other machines, and no key is asked for.
    #[error("the inherited socket listens on {0}: without CERTEUS_API_KEY only loopback may be served")]
    Exposed(SocketAddr),
}

/// Opens or takes over the listening socket.
///
/// # Errors
/// When that is not possible.
pub(crate) fn bind(listen: Listen, may_be_exposed: bool) -> Result<TcpListener, BindError> {
    let socket = match listen {
        Listen::Address(address) => {
            listen::open(address).map_err(|source| BindError::Bind { address, source })?
        }
        Listen::Inherited => {
            let socket = io::stdin().as_fd().try_clone_to_owned().map_err(BindError::Inherited)?;
            std::net::TcpListener::from(socket)
        }
    };
    let inherited = |source| BindError::Inherited(source);
    let address = socket.local_addr().map_err(inherited)?;
    if !address.ip().is_loopback() && !may_be_exposed {
        return Err(BindError::Exposed(address));
    }
    socket.set_nonblocking(true).map_err(inherited)?;
    TcpListener::from_std(socket).map_err(inherited)
}

/// Serves the API. An inherited socket is left to the other pods as soon as draining begins; a socket of its own is served until
/// the process ends: whoever still comes is told that the pod drains, and knows that nothing was stored.
pub(crate) async fn serve_api(
    listener: TcpListener,
    listen: Listen,
    router: Router,
    lifecycle: Arc<Lifecycle>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = tokio::select! {
            biased;
            () = lifecycle.reached(Phase::LameDuck), if matches!(listen, Listen::Inherited) => match lifecycle.left_lame_duck().await {
                // The drain was cancelled.
                Phase::Serving => continue,
                Phase::LameDuck | Phase::Flushing | Phase::Drained => return,
            },
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, place)) = stream else { continue };
        let (router, lifecycle) = (router.clone(), Arc::clone(&lifecycle));
        let guard = lifecycle.connected();
        tokio::spawn(async move {
            let age = AGE_MIN.mul_f64(1.0 + rand::random::<f64>());
            connection(stream, router, Some(age), &lifecycle).await;
            drop((guard, place));
        });
    }
}

/// Serves metrics, health and drain until the process ends.
pub(crate) async fn serve_admin(listener: TcpListener, router: Router, lifecycle: Arc<Lifecycle>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Some((stream, place)) = accept(&listener, &places).await else { continue };
        let (router, lifecycle) = (router.clone(), Arc::clone(&lifecycle));
        tokio::spawn(async move {
            connection(stream, router, None, &lifecycle).await;
            drop(place);
        });
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Replies are written whole: waiting for more to send only delays them.
            let sent = socket2::SockRef::from(&stream);
            if let Err(error) =
                stream.set_nodelay(true).and_then(|()| sent.set_tcp_user_timeout(Some(WRITE_STALL)))
            {
                tracing::debug!(reason = %error, "a connection ended before it was served");
            }
            Some((stream, place))
        }
        Err(error) => {
            tracing::warn!(reason = %error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Serves one connection. With an age it is asked to end after that, and when the pod drains.
async fn connection(stream: TcpStream, router: Router, age: Option<Duration>, lifecycle: &Arc<Lifecycle>) {
    let ends = age.map(|age| Instant::now() + age);
    // A connection that comes later waits for its one reply.
    let closes = ends.is_some() && lifecycle.phase() < Phase::Flushing;
    let inner = TowerToHyperService::new(router);
    let service = service_fn(|request: Request<Incoming>| {
        let reply = hyper::service::Service::call(&inner, request);
        async move {
            let mut response: Response<Body> = reply.await?;
            let leave = ends.is_some_and(|at| Instant::now() >= at || lifecycle.phase() != Phase::Serving);
            if leave {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(READ_BUFFER_BYTES_MAX);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let served = tokio::select! {
        served = connection.as_mut() => served,
        // From here on an idle connection is closed, and a busy one after its reply.
        () = lifecycle.reached(Phase::Flushing), if closes => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(reason = %error, "a connection ended early");
    }
}
