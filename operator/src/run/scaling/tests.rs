//! The scaler with real requests: stand-ins for pods on loopback addresses of their own, as their port is fixed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use bytes::Bytes;
use certeus_autoscale::MissingReason;
use certeus_operator::build::ADMIN_PORT;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::fixtures::{Page, shared_cluster};
use super::*;

/// How a stand-in behaves now.
#[derive(Clone, Copy, Debug)]
struct Behavior {
    page: Page,
    delay: Duration,
    refuses_drain: bool,
}

/// A stand-in for a pod's admin port.
struct FakePod {
    ip: IpAddr,
    behavior: Arc<Mutex<Behavior>>,
    /// When metrics were asked for.
    scrapes: Arc<Mutex<Vec<Instant>>>,
    connections: Arc<AtomicU32>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakePod {
    async fn start() -> Self {
        let (listener, ip) = listen().await;
        let page =
            Page { uptime_seconds: 0.0, cpu_seconds: 0.0, commits: 0, queue: 0.0, spool: 0, draining: false };
        let behavior = Behavior { page, delay: Duration::ZERO, refuses_drain: false };
        let pod = Self {
            ip,
            behavior: Arc::new(Mutex::new(behavior)),
            scrapes: Arc::default(),
            connections: Arc::default(),
        };
        let (behavior, scrapes, connections) =
            (Arc::clone(&pod.behavior), Arc::clone(&pod.scrapes), Arc::clone(&pod.connections));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::Relaxed);
                let (behavior, scrapes) = (Arc::clone(&behavior), Arc::clone(&scrapes));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (behavior, scrapes) = (Arc::clone(&behavior), Arc::clone(&scrapes));
                    async move { Ok::<_, Infallible>(answer(&request, &behavior, &scrapes).await) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        pod
    }

    fn set(&self, change: impl FnOnce(&mut Behavior)) {
        change(&mut lock(&self.behavior));
    }

    fn seen(&self, ordinal: u32) -> PodSeen {
        let long_ago = clock::now() - Duration::from_secs(3600);
        let phase = certeus_autoscale::PodPhase::Running {
            ready: true,
            started_at: long_ago,
            ready_changed_at: long_ago,
        };
        PodSeen { ip: Some(self.ip), phase, ..fixtures::pod(ordinal) }
    }
}

/// An address that nobody else on this machine uses: tests of several processes run beside each other.
async fn listen() -> (TcpListener, IpAddr) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(64).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let [_, a, b, c] = number.to_be_bytes();
        let ip = Ipv4Addr::new(127, 128 | a, b, c.clamp(1, 254));
        let address = SocketAddr::from((ip, u16::try_from(ADMIN_PORT).unwrap()));
        if let Ok(listener) = TcpListener::bind(address).await {
            return (listener, ip.into());
        }
    }
}

async fn answer(
    request: &Request<Incoming>,
    behavior: &Mutex<Behavior>,
    scrapes: &Mutex<Vec<Instant>>,
) -> Response<Full<Bytes>> {
    let now = *lock(behavior);
    tokio::time::sleep(now.delay).await;
    let reply = |status, body: String| Response::builder().status(status).body(Full::from(body)).unwrap();
    if request.uri().path() == "/metrics" {
        lock(scrapes).push(Instant::now());
        lock(behavior).page.commits += 100;
        return reply(StatusCode::OK, now.page.text());
    }
    match *request.method() {
        Method::POST if now.refuses_drain => return reply(StatusCode::CONFLICT, String::new()),
        Method::POST => lock(behavior).page.draining = true,
        Method::DELETE => lock(behavior).page.draining = false,
        _ => {}
    }
    let state = if lock(behavior).page.draining { "drained" } else { "serving" };
    reply(
        StatusCode::OK,
        format!(r#"{{"state":"{state}","queue_events":0,"spool_records":{}}}"#, now.page.spool),
    )
}

/// A scaler, and a reconcile loop that follows its advice.
struct Operated {
    scaler: Scaler,
    cluster: Arc<Cluster>,
    woken: Arc<tokio::sync::Notify>,
    pods: BTreeMap<u32, FakePod>,
    replicas: u32,
}

impl Operated {
    async fn start(spec: &str, replicas: u32) -> Self {
        let woken = Arc::new(tokio::sync::Notify::new());
        let wake = Arc::clone(&woken);
        let metrics = Arc::new(Metrics::new().unwrap());
        let scaler = Scaler::start(metrics, Arc::new(move || wake.notify_one()));
        let mut pods = BTreeMap::new();
        for ordinal in 0..replicas {
            pods.insert(ordinal, FakePod::start().await);
        }
        let operated = Self { scaler, cluster: shared_cluster(spec), woken, pods, replicas };
        operated.observe();
        operated
    }

    fn observe(&self) {
        let seen = self.pods.range(..self.replicas).map(|(ordinal, pod)| pod.seen(*ordinal));
        self.scaler.observe(
            Arc::clone(&self.cluster),
            Some(self.replicas),
            seen.collect(),
            false,
            ParkedVolumes::new(),
        );
    }

    /// Reconciles when woken, until the advice is as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Advice) -> bool) -> Advice {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let advice = self.scaler.advice();
            if wanted(&advice) {
                return advice;
            }
            let woken = tokio::time::timeout_at(deadline, self.woken.notified()).await;
            assert!(woken.is_ok(), "not in time: {what}; {advice:?}");
            let pods = u32::try_from(self.pods.len()).unwrap();
            self.replicas = self.scaler.advice().replicas.min(pods);
            self.observe();
        }
    }
}

const QUEUE_ONLY: &str = "autoscaling: { min: 2, max: 8, cooldown: 1s, cpu: { enabled: false } }";

#[tokio::test]
async fn a_load_step_is_answered_in_under_three_seconds_beside_a_pod_that_hangs() {
    let mut operated = Operated::start(QUEUE_ONLY, 3).await;
    operated.pods[&2].set(|pod| pod.delay = Duration::from_secs(60));
    let measured = |advice: &Advice| advice.scrapes.iter().filter(|pod| pod.latest.is_ok()).count() == 2;
    operated.until("two pods are measured", measured).await;
    let begun = Instant::now();
    for ordinal in [0, 1] {
        operated.pods[&ordinal].set(|pod| pod.page.queue = 900.0);
    }
    let advice = operated.until("more pods", |advice| advice.replicas > 3).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(advice.replicas > 3 && advice.last_change.is_some());
    let page = String::from_utf8(operated.scaler.shared.metrics.text().unwrap()).unwrap();
    for line in ["scaling_reaction_seconds_count 1", "scaling_decisions_total{direction=\"up\",reason="] {
        assert!(page.contains(line), "{line} in {page}");
    }
}

#[tokio::test]
async fn victims_drain_over_the_network_and_one_that_refuses_stays() {
    let mut operated = Operated::start(QUEUE_ONLY, 4).await;
    operated.pods[&2].set(|pod| pod.refuses_drain = true);
    let refused =
        |advice: &Advice| advice.draining.iter().any(|pod| pod.state == DrainState::Refused(Some(409)));
    let advice = operated.until("a refusal", |advice| refused(advice) && advice.replicas == 3).await;
    assert!(lock(&operated.pods[&3].behavior).page.draining);
    assert!(advice.draining[0].message.as_ref().unwrap().contains("409"), "{advice:?}");
    operated.pods[&2].set(|pod| pod.refuses_drain = false);
    operated.until("the other one", |advice| advice.replicas == 2).await;
    assert!(!lock(&operated.pods[&1].behavior).page.draining);
}

#[tokio::test]
async fn scrapes_keep_their_connection_and_their_pace() {
    let operated = Operated::start(QUEUE_ONLY, 2).await;
    tokio::time::sleep(Duration::from_millis(4500)).await;
    for pod in operated.pods.values() {
        let scrapes = lock(&pod.scrapes).clone();
        assert!((3..=5).contains(&scrapes.len()), "{scrapes:?}");
        assert!(pod.connections.load(Ordering::Relaxed) <= 2);
    }
    drop(operated.scaler);
    let before = lock(&operated.pods[&0].scrapes).len();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(lock(&operated.pods[&0].scrapes).len(), before, "a dropped scaler asks nobody");
}

#[tokio::test]
async fn an_address_where_nobody_listens_is_a_missing_sample() {
    let mut operated = Operated::start(QUEUE_ONLY, 2).await;
    let (listener, ip) = listen().await;
    drop(listener);
    operated.pods.get_mut(&1).unwrap().ip = ip;
    operated.observe();
    let silent = |advice: &Advice| {
        let latest: Vec<_> = advice.scrapes.iter().map(|pod| pod.latest.as_ref().err().copied()).collect();
        latest == [None, Some(MissingReason::Unreachable)]
    };
    // What is told of the samples is as old as the last news.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !silent(&operated.scaler.shared.core().current()) {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(operated.scaler.advice().replicas, 2);
}
