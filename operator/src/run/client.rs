//! The connection to the API server: timeouts, and the one place where requests are sent again.
//!
//! [`resilient`] repeats a request that the server did not take up (429 and 503, after the time the server asks for) or that failed
//! on the way, a few times within [`PATIENCE`]. A write that failed on the way may have happened; every write of the operator may
//! be repeated: applies say the whole content, updates name the version they replace, creates have a fixed name.
//! Once the lease is lost, it lets no write pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use rand::RngExt;
use tower::{BoxError, service_fn};

use super::clock;
use super::telemetry::Metrics;

/// Until a reply begins. A list of a thousand objects begins within a second or two.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);
/// Silence on a connection. Watches end by themselves after 290 s, and bookmarks come every minute.
const READ_TIMEOUT: Duration = Duration::from_secs(295);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For a request and its repeats together. What still fails then is the caller's: its object waits, others do not.
const PATIENCE: Duration = Duration::from_secs(10);
const ATTEMPTS_MAX: u32 = 4;
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// Until when this process may write, in nanoseconds of [`clock`]: set by whoever renews the lease.
#[derive(Debug)]
pub(crate) struct Fence {
    until: AtomicU64,
}

impl Fence {
    /// Without a lease, or before there is one.
    pub(crate) fn new(until: Duration) -> Self {
        Self { until: AtomicU64::new(nanoseconds(until)) }
    }

    pub(crate) fn extend(&self, until: Duration) {
        self.until.store(nanoseconds(until), Ordering::Release);
    }

    fn is_open(&self) -> bool {
        nanoseconds(clock::now()) < self.until.load(Ordering::Acquire)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A write after the lease was lost.
#[derive(Debug, thiserror::Error)]
#[error("this process no longer holds the lease, so it must not write")]
pub(crate) struct Fenced;

/// The clients of the process.
pub(crate) struct Clients {
    /// For everything but the lease.
    pub(crate) fenced: Client,
    /// For the lease alone.
    pub(crate) lease: Client,
}

/// Makes the clients. No request is made yet.
pub(crate) fn connect(
    mut config: kube::Config,
    metrics: &Arc<Metrics>,
    fence: &Arc<Fence>,
) -> Result<Clients, kube::Error> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    // Repeats happen in one place, this module.
    config.default_retry = false;
    let agent = HeaderValue::from_static(certeus_operator::PRODUCT);
    config.headers.push((USER_AGENT, agent));
    // A connection of its own, so that no load delays a renewal.
    let lease = Client::try_from(config.clone())?;
    let plain = Client::try_from(config)?;
    let fenced = resilient(plain, Arc::clone(fence), Arc::clone(metrics));
    Ok(Clients { fenced, lease })
}

/// A client in front of `inner` that waits for it, asks again, and stops writing when the fence is closed.
pub(crate) fn resilient(inner: Client, fence: Arc<Fence>, metrics: Arc<Metrics>) -> Client {
    let namespace = inner.default_namespace().to_owned();
    let service = service_fn(move |request| {
        let (inner, fence, metrics) = (inner.clone(), Arc::clone(&fence), Arc::clone(&metrics));
        send(inner, fence, metrics, request)
    });
    Client::new(service, namespace)
}

async fn send(
    inner: Client,
    fence: Arc<Fence>,
    metrics: Arc<Metrics>,
    request: Request<Body>,
) -> Result<Response<Body>, BoxError> {
    let started = clock::now();
    let (head, body) = request.into_parts();
    let mut attempt = 1;
    loop {
        if head.method != Method::GET && !fence.is_open() {
            return Err(Box::new(Fenced));
        }
        let mut repeat = Request::builder().method(head.method.clone()).uri(head.uri.clone());
        if let Some(headers) = repeat.headers_mut() {
            headers.clone_from(&head.headers);
        }
        // Only a body that is read from elsewhere cannot be had twice, and kube makes none.
        let request = repeat.body(body.try_clone().ok_or("the request's body cannot be repeated")?)?;
        let sent = tokio::time::timeout(RESPONSE_TIMEOUT, inner.send(request)).await;
        let (reason, asked) = match &sent {
            Ok(Ok(response)) => match refusal(response.status()) {
                None => return Ok(sent??),
                Some(reason) => (reason, retry_after(response.headers())),
            },
            Ok(Err(_)) => ("connection", None),
            Err(_) => ("timeout", None),
        };
        let wait = pause(attempt, asked, rand::rng().random());
        let spent = clock::now().saturating_sub(started);
        if attempt == ATTEMPTS_MAX || spent + wait > PATIENCE {
            return match sent {
                Ok(answer) => Ok(answer?),
                Err(_elapsed) => Err(Box::new(NoReply)),
            };
        }
        metrics.retries.with_label_values(&[reason]).inc();
        tracing::debug!(reason, attempt, path = head.uri.path(), "a request to the API server is sent again");
        tokio::time::sleep(wait).await;
        attempt += 1;
    }
}

/// The API server took the connection and said nothing.
#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer within {} s", RESPONSE_TIMEOUT.as_secs())]
pub(crate) struct NoReply;

/// Replies after which the same request may succeed shortly. 500 is among them: etcd's timeouts are reported so.
fn refusal(status: StatusCode) -> Option<&'static str> {
    match status {
        StatusCode::TOO_MANY_REQUESTS => Some("too_many_requests"),
        StatusCode::INTERNAL_SERVER_ERROR
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Some("server_error"),
        _ => None,
    }
}

/// The API server sends seconds, never a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// How long to wait before the repeat after `attempt`; `random` is from 0 to 1. Never less than the server asked for.
fn pause(attempt: u32, asked: Option<Duration>, random: f64) -> Duration {
    let backoff = BACKOFF_MIN * (1 << attempt.min(8));
    asked.unwrap_or_default() + backoff.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Api;
    use kube::api::PostParams;

    use super::*;

    /// What becomes of a read and how many requests it takes, when the server gives these answers in turn.
    async fn check(
        answers: Vec<(u16, Option<&'static str>)>,
        fence: Fence,
        write: bool,
    ) -> (Result<(), u16>, usize) {
        let asked = Arc::new(Mutex::new(0));
        let count = Arc::clone(&asked);
        let service = service_fn(move |_: Request<Body>| {
            let mut asked = count.lock().unwrap();
            let (status, retry_after) = answers[*asked];
            *asked += 1;
            let mut response = Response::builder().status(status);
            if let Some(seconds) = retry_after {
                response = response.header(RETRY_AFTER, seconds);
            }
            let body = if status < 300 { "{}".to_owned() } else { format!("{{\"code\":{status}}}") };
            let response = response.body(http_body_util::Full::new(bytes::Bytes::from(body)));
            async move { response.map_err(BoxError::from) }
        });
        let client =
            resilient(Client::new(service, "default"), Arc::new(fence), Arc::new(Metrics::new().unwrap()));
        let api: Api<ConfigMap> = Api::default_namespaced(client);
        let result = if write {
            api.create(&PostParams::default(), &ConfigMap::default()).await
        } else {
            api.get("x").await
        };
        let requests = *asked.lock().unwrap();
        let code = |error| match error {
            kube::Error::Api(status) => status.code,
            kube::Error::Service(error) if error.is::<Fenced>() => 1,
            other => panic!("{other:?}"),
        };
        (result.map(|_| ()).map_err(code), requests)
    }

    fn open() -> Fence {
        Fence::new(Duration::MAX)
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_succeed_shortly_is_sent_again() {
        assert_eq!(check(vec![(200, None)], open(), false).await, (Ok(()), 1));
        assert_eq!(check(vec![(503, None), (500, None), (200, None)], open(), true).await, (Ok(()), 3));
        assert_eq!(check(vec![(429, Some("1")), (200, None)], open(), false).await, (Ok(()), 2));
        assert_eq!(check(vec![(503, None); 9], open(), false).await, (Err(503), 4));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_succeed_or_would_take_too_long_is_given_back() {
        for status in [400, 403, 404, 409, 422] {
            assert_eq!(check(vec![(status, None)], open(), true).await, (Err(status), 1));
        }
        assert_eq!(check(vec![(429, Some("60"))], open(), false).await, (Err(429), 1));
    }

    #[tokio::test]
    async fn no_write_passes_a_closed_fence() {
        let closed = || Fence::new(Duration::ZERO);
        assert_eq!(check(vec![(200, None)], closed(), true).await, (Err(1), 0));
        assert_eq!(check(vec![(200, None)], closed(), false).await, (Ok(()), 1));
    }

    #[test]
    fn a_pause_is_never_shorter_than_asked_and_grows() {
        for random in [0.0, 0.5, 1.0] {
            assert!(pause(1, Some(Duration::from_secs(3)), random) >= Duration::from_secs(3));
            assert!(pause(3, None, random) >= pause(1, None, random) * 3);
            assert!(pause(100, None, random) <= Duration::from_secs(30));
        }
    }
}
