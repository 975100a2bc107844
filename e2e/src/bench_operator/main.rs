//! `certeus-bench-operator`: the operator beside a real API server, with 1, 100 and 1,000 LedgerClusters.
//!
//! Measures the time from a cold start until all are reconciled, the reconciles themselves, writes and memory at rest, and how
//! long a load step takes to become a scale write. Pods are stand-ins of this process (`pods.rs`): they answer scrapes with
//! a page of the real one's size and have nothing behind it. *Must not* judge by its exit status how fast a machine is.

mod figures;
mod pods;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use certeus_crds::LedgerCluster;
use certeus_e2e::cluster::guard::Process;
use certeus_e2e::cluster::space::Space;
use certeus_e2e::programs;
use clap::Parser;
use figures::{Page, Usage};
use futures_util::{StreamExt, TryStreamExt, pin_mut, stream};
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::ResourceExt;
use kube::api::{ListParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use pods::Pods;
use serde_json::json;

/// Objects that are created at a time.
const CREATES_MAX: usize = 32;
/// Load steps that are timed.
const STEPS: usize = 20;
/// Pods that a cluster may have; one that has them is passed over.
const REPLICAS_MAX: i32 = 4;
/// A cluster that has not got an answer by then never will.
const STEP_LIMIT: Duration = Duration::from_secs(60);
/// Nothing was written for this long: the world has settled.
const SETTLED_AFTER: Duration = Duration::from_secs(15);

/// Measure the operator beside a real Kubernetes API server on this machine.
#[derive(Debug, Parser)]
#[command(
    name = "certeus-bench-operator",
    version,
    after_help = "Needs certeus-operator beside itself: run it with 'make bench-operator'.\n\n\
                  Exit codes: 0 measured, 1 something did not work, 2 the options are wrong."
)]
struct Args {
    /// Numbers of LedgerClusters
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1000])]
    clusters: Vec<usize>,
    /// How long to watch the world at rest, in seconds
    #[arg(long, default_value_t = 60)]
    rest: u64,
}

fn main() -> ExitCode {
    let Args { clusters, rest } = Args::parse();
    raise_file_limit();
    println!("| LedgerClusters | {} |", figures::HEADINGS.join(" | "));
    println!("|--:|{}", "--:|".repeat(figures::HEADINGS.len()));
    for count in clusters {
        match measure(count, Duration::from_secs(rest)) {
            Ok(row) => println!("| {count} | {} |", row.join(" | ")),
            Err(error) => {
                eprintln!("error: {count} LedgerClusters: {error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// One row of the table.
fn measure(count: usize, rest: Duration) -> Result<Vec<String>> {
    let space = Space::with_definitions("bench")?;
    let secret = [("url", "postgres://certeus:none@127.0.0.1:5/certeus"), ("api", "0123456789abcdef")];
    space.put_secret("database", &secret)?;
    let pods = Pods::start(&space);
    create(&space, count)?;
    eprintln!("{count} LedgerClusters exist");

    let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?.local_addr()?;
    let begun = Instant::now();
    let operator = start_operator(&space, listen)?;
    let cold = reconciled(&space, count, begun)?;
    let workloads = space.block(space.api::<StatefulSet>().list_metadata(&ListParams::default()))?;
    ensure!(workloads.items.len() == count, "there are {} StatefulSets", workloads.items.len());
    eprintln!("all reconciled after {:.1} s", cold.as_secs_f64());
    pods.wait_for(count, Duration::from_secs(60 + count as u64))?;
    settle(listen)?;

    let before = (Page::fetch(listen)?, Usage::of(operator.id())?);
    std::thread::sleep(rest);
    let after = (Page::fetch(listen)?, Usage::of(operator.id())?);
    let minutes = rest.as_secs_f64() / 60.0;
    let writes = (after.0.sum("certeus_operator_writes_total")
        - before.0.sum("certeus_operator_writes_total"))
        / minutes;
    let scrapes = (after.0.sum("certeus_operator_scrapes_total")
        - before.0.sum("certeus_operator_scrapes_total"))
        / rest.as_secs_f64();
    let cores = (after.1.cpu_seconds - before.1.cpu_seconds) / rest.as_secs_f64();
    eprintln!(
        "at rest: {writes:.1} writes/min, {scrapes:.0} scrapes/s, {cores:.3} cores, {} KiB",
        after.1.resident_kib
    );

    let mut reactions = steps(&space, &pods, count)?;
    reactions.sort_unstable();
    let middle = reactions.get(reactions.len() / 2).copied().unwrap_or_default();
    let worst = reactions.last().copied().unwrap_or_default();
    let last = Usage::of(operator.id())?;
    let quantile = |part| before.0.quantile("certeus_operator_reconcile_duration_seconds", part);
    Ok(vec![
        format!("{:.1} s", cold.as_secs_f64()),
        figures::milliseconds(quantile(0.5)),
        figures::milliseconds(quantile(0.99)),
        format!("{writes:.1}"),
        format!("{:.1} MiB", after.1.resident_kib as f64 / 1024.0),
        format!("{:.1} MiB", last.peak_kib as f64 / 1024.0),
        format!("{scrapes:.0}"),
        format!("{cores:.3}"),
        format!("{:.2} s", middle.as_secs_f64()),
        format!("{:.2} s", worst.as_secs_f64()),
    ])
}

fn name(index: usize) -> String {
    format!("ledger-{index}")
}

fn create(space: &Space, count: usize) -> Result<()> {
    let api = space.api::<LedgerCluster>();
    let creates = (0..count).map(|index| {
        let api = api.clone();
        async move {
            let object: LedgerCluster = serde_json::from_value(json!({
                "metadata": { "name": name(index) },
                "spec": {
                    "image": "certeus/dataplane:bench",
                    "autoscaling": { "min": 1, "max": REPLICAS_MAX },
                    "database": { "secretRef": { "name": "database", "key": "url" } },
                    "security": { "apiKeySecretRef": { "name": "database", "key": "api" } },
                },
            }))?;
            api.create(&PostParams::default(), &object).await.context("cannot create a LedgerCluster")?;
            anyhow::Ok(())
        }
    });
    space.block(stream::iter(creates).buffer_unordered(CREATES_MAX).try_collect::<()>())
}

fn start_operator(space: &Space, listen: SocketAddr) -> Result<Process> {
    let log = |name: &str| std::fs::File::create(space.dir().join(name)).context("cannot create a log");
    let mut command = Command::new(programs::operator()?);
    command
        .args(["run", "--namespace", space.name(), "--lease-namespace", space.name()])
        .args(["--listen", &listen.to_string(), "--log-level", "warn"])
        .args(["--pod-name", "bench", "--pod-namespace", space.name()])
        .env_clear()
        .env("KUBECONFIG", space.plane().kubeconfig())
        .stdout(log("operator-out.log")?)
        .stderr(log("operator.log")?);
    Process::start(&mut command)
}

/// How long it took until the status of every cluster told of its specification.
fn reconciled(space: &Space, count: usize, begun: Instant) -> Result<Duration> {
    let limit = Duration::from_secs(120 + count as u64);
    let all = async {
        let events = watcher(space.api::<LedgerCluster>(), watcher::Config::default()).applied_objects();
        pin_mut!(events);
        let mut done = BTreeSet::new();
        while done.len() < count {
            let object = events.try_next().await?.context("the watch ended")?;
            let seen = object.status.as_ref().and_then(|status| status.observed_generation);
            if seen.is_some() && seen == object.metadata.generation {
                done.insert(object.name_any());
            }
        }
        anyhow::Ok(begun.elapsed())
    };
    let limited = async { tokio::time::timeout(limit, all).await };
    space.block(limited).with_context(|| format!("not all were reconciled within {} s", limit.as_secs()))?
}

/// Waits until the operator has had nothing to write for a while.
fn settle(listen: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(600);
    let writes = || anyhow::Ok(Page::fetch(listen)?.sum("certeus_operator_writes_total"));
    let (mut last, mut since) = (writes()?, Instant::now());
    while since.elapsed() < SETTLED_AFTER {
        ensure!(Instant::now() < deadline, "the operator does not come to rest");
        std::thread::sleep(Duration::from_millis(500));
        let now = writes()?;
        if now > last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(())
}

/// From the moment at which a cluster's queues are full to the moment at which the watch shows more replicas, for some clusters.
fn steps(space: &Space, pods: &Pods, count: usize) -> Result<Vec<Duration>> {
    let mut reactions = Vec::new();
    for step in 0..STEPS.min(count.max(3)) {
        // The same cluster again where there are few: it grows from one pod to four, in three steps at most.
        let index = step * count / STEPS.min(count.max(3));
        // Turns are spread over a second, and so are the steps.
        std::thread::sleep(Duration::from_millis(1000 + 37 * step as u64 % 1000));
        let asked = |set: &StatefulSet| set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
        let answered = async {
            let config = watcher::Config::default().fields(&format!("metadata.name={}", name(index)));
            let events = watcher(space.api::<StatefulSet>(), config).applied_objects();
            pin_mut!(events);
            // The watch is there before the load is.
            let before = asked(&events.try_next().await?.context("the watch ended")?);
            if before >= REPLICAS_MAX {
                return Ok(None);
            }
            let begun = Instant::now();
            pods.load(&name(index), true);
            loop {
                let set = events.try_next().await?.context("the watch ended")?;
                if asked(&set) > before {
                    return anyhow::Ok(Some(begun.elapsed()));
                }
            }
        };
        let limited = async { tokio::time::timeout(STEP_LIMIT, answered).await };
        let reaction = space.block(limited);
        pods.load(&name(index), false);
        match reaction {
            Ok(reaction) => reactions.extend(reaction?),
            Err(_) => bail!("{} got no answer within {} s", name(index), STEP_LIMIT.as_secs()),
        }
    }
    Ok(reactions)
}

/// Every stand-in listens and is connected to.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it is not allowed, a smaller number of clusters can be measured.
    let _as_many_as_allowed = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
