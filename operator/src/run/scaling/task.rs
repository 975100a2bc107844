//! The task of one cluster: takes its turns, talks to its pods, feeds the core.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use certeus_autoscale::{MissingReason, PodPhase};
use certeus_operator::decide::{self, MetricsSample};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use hyper::Method;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};

use super::Shared;
use super::drain::{Ask, NoReply, Reply, Request};
use super::metrics::ScrapeEnd;
use super::pace;
use crate::admin::{self, Idle};
use crate::run::clock;
use crate::run::pods::PodSeen;

/// Answers that come within this are part of the round; a pod that takes longer does not make the others wait.
const ROUND_WAIT: Duration = Duration::from_millis(250);
/// Requests to pods that are under way at a time, for all clusters together: with silent pods asked every 8 s and given up
/// after 1 s, thousands of those leave places for the rest.
const REQUESTS_MAX: usize = 512;
/// A request that finds no place for this long is left to the next round.
const PLACE_WAIT: Duration = Duration::from_millis(500);

static PLACES: Semaphore = Semaphore::const_new(REQUESTS_MAX);
/// Counts clusters, to give each a phase of its own.
static CLUSTERS: AtomicU32 = AtomicU32::new(0);

/// What came of a request.
enum Answer {
    Scrape {
        uid: String,
        end: ScrapeEnd,
        sample: Option<Result<Box<MetricsSample>, MissingReason>>,
        idle: Option<Idle>,
    },
    Drain {
        request: Request,
        reply: Reply,
    },
}

/// How a pod's scrapes go.
#[derive(Default)]
struct Scraping {
    under_way: bool,
    misses: u32,
    due: Duration,
    /// From the last scrape to the next one.
    idle: Option<Idle>,
}

/// Takes turns until it is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    let phase = pace::phase(CLUSTERS.fetch_add(1, Ordering::Relaxed));
    let mut answers: FuturesUnordered<BoxFuture<'static, Answer>> = FuturesUnordered::new();
    let mut scraping: HashMap<String, Scraping> = HashMap::new();
    loop {
        let turn = Instant::now() + pace::until_turn(clock::now(), phase);
        // Answers that are late come in between two rounds.
        take_answers(&shared, &mut answers, &mut scraping, turn, |_| false).await;
        begin_scrapes(&shared, &mut scraping, &answers);
        let round_ends = Instant::now() + ROUND_WAIT;
        let all_answered = |scraping: &HashMap<String, Scraping>| scraping.values().all(|pod| !pod.under_way);
        take_answers(&shared, &mut answers, &mut scraping, round_ends, all_answered).await;
        decide_and_ask(&shared, &answers);
    }
}

/// Takes in answers until then, or until it is enough.
async fn take_answers(
    shared: &Arc<Shared>,
    answers: &mut FuturesUnordered<BoxFuture<'static, Answer>>,
    scraping: &mut HashMap<String, Scraping>,
    until: Instant,
    enough: impl Fn(&HashMap<String, Scraping>) -> bool,
) {
    while !enough(scraping) {
        tokio::select! {
            biased;
            Some(answer) = answers.next() => take(shared, scraping, answer),
            () = sleep_until(until) => return,
        }
    }
}

fn take(shared: &Shared, scraping: &mut HashMap<String, Scraping>, answer: Answer) {
    match answer {
        Answer::Scrape { uid, end, sample, idle } => {
            if let Some(pod) = scraping.get_mut(&uid) {
                pod.under_way = false;
                pod.idle = idle;
                pod.misses = match end {
                    ScrapeEnd::Answered => 0,
                    ScrapeEnd::Refused | ScrapeEnd::TimedOut | ScrapeEnd::Failed => {
                        pod.misses.saturating_add(1)
                    }
                    ScrapeEnd::Crowded => pod.misses,
                };
                pod.due = clock::now() + pace::scrape_again_after(pod.misses);
            }
            if let Some(sample) = sample {
                shared.core().scraped(&uid, sample.map(|sample| *sample));
            }
        }
        Answer::Drain { request, reply } => shared.core().drain_replied(clock::now(), request, reply),
    }
}

fn begin_scrapes(
    shared: &Arc<Shared>,
    scraping: &mut HashMap<String, Scraping>,
    answers: &FuturesUnordered<BoxFuture<'static, Answer>>,
) {
    let now = clock::now();
    let pods: Vec<PodSeen> = shared.core().pods().to_vec();
    scraping.retain(|uid, _| pods.iter().any(|pod| pod.uid == *uid));
    for pod in pods {
        // A pod that is being deleted counts no more, and one without a process has nothing to say.
        if pod.ip.is_none() || !matches!(pod.phase, PodPhase::Running { .. }) {
            continue;
        }
        let state = scraping.entry(pod.uid.clone()).or_default();
        if !state.under_way && state.due <= now {
            state.under_way = true;
            answers.push(Box::pin(scrape(Arc::clone(shared), pod, state.idle.take())));
        }
    }
}

fn decide_and_ask(shared: &Arc<Shared>, answers: &FuturesUnordered<BoxFuture<'static, Answer>>) {
    let (asks, report) = {
        let mut core = shared.core();
        let (requests, report) = core.round(clock::now());
        let pod = |ordinal| core.pods().iter().find(|pod| pod.ordinal == ordinal).cloned();
        let asks: Vec<_> = requests.into_iter().map(|request| (request, pod(request.ordinal))).collect();
        (asks, report)
    };
    for (request, pod) in asks {
        answers.push(Box::pin(ask(request, pod)));
    }
    shared.metrics.scaling.report(&report);
    if report.is_news {
        (shared.wake)();
    }
}

async fn scrape(shared: Arc<Shared>, pod: PodSeen, mut idle: Option<Idle>) -> Answer {
    let begun = clock::now();
    let (end, sample) = match timeout(PLACE_WAIT, PLACES.acquire()).await {
        // The last sample counts on until it is too old.
        Err(_) | Ok(Err(_)) => (ScrapeEnd::Crowded, None),
        Ok(Ok(_place)) => match get_metrics(&pod, &mut idle).await {
            Ok(reply) if reply.status.is_success() => {
                let sample = decide::parse(clock::now(), &String::from_utf8_lossy(&reply.body));
                (ScrapeEnd::Answered, Some(Ok(Box::new(sample))))
            }
            Ok(_refused) => (ScrapeEnd::Refused, Some(Err(MissingReason::Unreachable))),
            Err(admin::Error::Timeout(_)) => (ScrapeEnd::TimedOut, Some(Err(MissingReason::Unreachable))),
            Err(error) => {
                tracing::debug!(pod = %pod.name, reason = %error, "a pod gives no metrics");
                (ScrapeEnd::Failed, Some(Err(MissingReason::Unreachable)))
            }
        },
    };
    shared.metrics.scaling.scraped(end, clock::now().saturating_sub(begun));
    Answer::Scrape { uid: pod.uid, end, sample, idle }
}

async fn get_metrics(pod: &PodSeen, idle: &mut Option<Idle>) -> Result<admin::Reply, admin::Error> {
    pod.admin()?.request(Method::GET, "/metrics", None, admin::TIMEOUT, idle).await
}

async fn send(pod: &PodSeen, ask: Ask) -> Result<admin::Reply, admin::Error> {
    let method = match ask {
        Ask::Drain => Method::POST,
        Ask::Look => Method::GET,
        Ask::Cancel => Method::DELETE,
    };
    pod.admin()?.request(method, "/admin/drain", None, admin::TIMEOUT, &mut None).await
}

async fn ask(request: Request, pod: Option<PodSeen>) -> Answer {
    let reply = match (pod, timeout(PLACE_WAIT, PLACES.acquire()).await) {
        (Some(pod), Ok(Ok(_place))) => match send(&pod, request.ask).await {
            Ok(reply) if reply.status.is_success() => {
                serde_json::from_slice(&reply.body).map_err(|_unreadable| NoReply::Silent)
            }
            Ok(reply) => Err(NoReply::Status(reply.status.as_u16())),
            Err(error) => {
                tracing::debug!(pod = %pod.name, reason = %error, "a pod gives no answer about its drain");
                Err(NoReply::Silent)
            }
        },
        (None, _) | (_, Err(_) | Ok(Err(_))) => Err(NoReply::Silent),
    };
    Answer::Drain { request, reply }
}
