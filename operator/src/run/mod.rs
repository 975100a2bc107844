//! `certeus-operator run`: reconciles LedgerCluster and AlertRule against a Kubernetes API server.
//!
//! Owns the process: connection, lease, tasks and their end. It *must not* decide what the library can decide, and nothing here
//! writes before the lease is held. Promises: an unchanged world is not written to; an object that is wrong hurts itself alone;
//! when the lease or a task is lost the process ends, as whoever starts it anew does what is right then.
//! Reading order: this file, `controller.rs`, `phases/mod.rs`, `phases/apply.rs`, `lease.rs`, `access.rs`, `client.rs`.

mod access;
mod client;
mod clock;
mod controller;
mod discovery;
mod error;
mod events;
mod follow;
mod lease;
mod lists;
mod owned;
mod phases;
mod pods;
mod queue;
mod rules;
mod scaling;
mod telemetry;
mod trouble;
mod watch;
mod world;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kube::runtime::events::{Recorder, Reporter};
use rand::RngExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch as signal_watch;
use tokio::task::JoinSet;

use crate::cli::{Exit, RunArgs};
use crate::names::{Namespace, PodName};
use access::Access;
use client::{Clients, Fence};
use controller::Controller;
use lease::{Holder, Place};
use phases::Context;
use pods::PodDirectory;
use telemetry::{Health, LogLevel, Metrics, Source};

pub(crate) use telemetry::LogFilter;

const LEASE: &str = "certeus-operator";
/// Where a pod finds its namespace when nobody told it.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
/// For everything that is to end in order, after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Log(#[from] telemetry::LogError),
    #[error("metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
    #[error(transparent)]
    Access(#[from] access::Error),
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot start")]
    Start(#[source] io::Error),
    #[error(transparent)]
    Lease(#[from] lease::Error),
    #[error("{0} ended by itself")]
    Ended(&'static str),
}

impl Error {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Access(_) => Exit::NoCluster,
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => Exit::AddressInUse,
            Self::Lease(_) => Exit::LeaseLost,
            Self::Log(_) | Self::Metrics(_) | Self::Listen { .. } | Self::Start(_) | Self::Ended(_) => {
                Exit::Failure
            }
        }
    }
}

/// Where the operator looks for objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// In all namespaces; needs cluster roles.
    All,
    /// In these, which are not empty; needs roles in each.
    Namespaces(Vec<Namespace>),
}

impl Scope {
    /// Which of [`Self::namespaces`] a namespace belongs to.
    pub(crate) fn place(&self, namespace: &str) -> Option<usize> {
        match self {
            Self::All => Some(0),
            Self::Namespaces(names) => names.iter().position(|name| name.as_str() == namespace),
        }
    }

    /// Each namespace to be watched by itself; `None` is all of them.
    pub(crate) fn namespaces(&self) -> Vec<Option<&str>> {
        match self {
            Self::All => vec![None],
            Self::Namespaces(namespaces) => {
                namespaces.iter().map(|namespace| Some(namespace.as_str())).collect()
            }
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all namespaces"),
            Self::Namespaces(namespaces) => {
                let names: Vec<&str> = namespaces.iter().map(Namespace::as_str).collect();
                f.write_str(&names.join(", "))
            }
        }
    }
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(args: RunArgs) -> Result<(), Error> {
    let level = LogLevel::install(&args.log_level)?;
    // Two threads: the work is waiting for answers.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().map_err(Error::Start)?;
    raise_file_limit();
    let result = runtime.block_on(operate(args, level));
    // What still runs has no more to say.
    runtime.shutdown_background();
    result
}

/// One connection is kept to each pod, and the usual soft limit of 1,024 files would be too few for some hundred clusters.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it is not allowed, pods beyond it are measured less often.
    let _as_many_as_allowed = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

async fn operate(args: RunArgs, level: LogLevel) -> Result<(), Error> {
    let RunArgs { namespaces, lease_namespace, listen, log_level: _, pod_name, pod_namespace } = args;
    let scope = scope(namespaces);
    let metrics = Arc::new(Metrics::new()?);
    let health = Arc::new(Health::new());
    // Closed until the lease is held.
    let fence = Arc::new(Fence::new(Duration::ZERO));
    let Access { config, namespace, server: api_server } = access::find().await?;
    let Clients { fenced, lease } =
        client::connect(config, &metrics, &fence).map_err(|error| api_server.unusable(&error))?;
    let listener = telemetry::listen(listen).map_err(|source| Error::Listen { address: listen, source })?;
    let address = listener.local_addr().map_err(Error::Start)?;
    let identity = identity(pod_name);
    let mounted = || std::fs::read_to_string(NAMESPACE_FILE).ok()?.trim().parse().ok();
    let place = Place {
        namespace: lease_namespace.or(pod_namespace).or_else(mounted).unwrap_or(namespace),
        name: LEASE.to_owned(),
        identity: identity.clone(),
    };
    tracing::info!(
        version = certeus_operator::version(),
        listen.address = %address,
        lease.namespace = %place.namespace,
        lease.identity = identity,
        scope = %scope,
        server.address = api_server.address,
        server.credentials = api_server.credentials,
        "certeus-operator starts"
    );
    let server = tokio::spawn(telemetry::serve(listener, Arc::clone(&metrics), Arc::clone(&health), level));
    let (stop, mut stopped) = signal_watch::channel(false);
    tokio::spawn(until_signal(stop).await?);

    if !discovery::wait_for_kinds(&fenced, &api_server, &health, &mut stopped).await {
        return Ok(());
    }
    health.forget(Source::Controller);
    // Standing by is being ready: the next rollout step of the operator's own Deployment waits for it.
    health.wait_for(None);
    let mut holder = Holder::new(lease, place, fence, Arc::clone(&metrics), Arc::clone(&health));
    if !holder.acquire(&mut stopped).await {
        return Ok(());
    }
    health.wait_for(Some("reading what there is".to_owned()));
    let reporter = Reporter { controller: "certeus.io/operator".to_owned(), instance: Some(identity) };
    let context = Arc::new(Context {
        recorder: Recorder::new(fenced.clone(), reporter),
        client: fenced.clone(),
        pods: PodDirectory::new(),
        metrics: Arc::clone(&metrics),
    });
    let rules = rules::Context {
        client: fenced,
        scope: scope.clone(),
        pods: context.pods.clone(),
        metrics,
        health: Arc::clone(&health),
        stop: stopped.clone(),
    };
    let controller = Controller::new(context, scope, health).run(stopped.clone());
    let work = async {
        let mut tasks = JoinSet::new();
        tasks.spawn(async {
            controller.await;
            "the controller"
        });
        tasks.spawn(async {
            rules::run(rules).await;
            "the controller of AlertRules"
        });
        // None may end before it is told to.
        let ended = tasks.join_next().await.and_then(Result::ok).unwrap_or("a controller, by a panic,");
        if !*stopped.borrow() {
            return Err(Error::Ended(ended));
        }
        let rest = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, rest).await.is_err() {
            tracing::warn!("not everything ended in time");
        }
        Ok(())
    };
    let (release, released) = signal_watch::channel(false);
    let lease = tokio::spawn(holder.hold(released));
    tokio::pin!(lease);
    let result = tokio::select! {
        result = work => result,
        result = &mut lease => match result {
            Ok(result) => return result.map_err(Error::Lease),
            Err(_panic) => return Err(Error::Ended("the lease")),
        },
    };
    // Last, so that nobody else begins while something here still writes.
    let _waits = release.send(true);
    if tokio::time::timeout(STOP_TIMEOUT, lease).await.is_err() {
        tracing::warn!("the lease was not released in time");
    }
    server.abort();
    tracing::info!("certeus-operator ends");
    result
}

fn scope(mut namespaces: Vec<Namespace>) -> Scope {
    namespaces.sort_unstable();
    namespaces.dedup();
    if namespaces.is_empty() { Scope::All } else { Scope::Namespaces(namespaces) }
}

/// Who holds the lease: readable, and never what an earlier process of the same pod was called.
fn identity(pod_name: Option<PodName>) -> String {
    let host =
        || std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned());
    let name =
        pod_name.map(|name| name.to_string()).or_else(host).unwrap_or_else(|| "certeus-operator".to_owned());
    format!("{name}_{:08x}", rand::rng().random::<u32>())
}

/// Sets `stop` at the first SIGTERM or SIGINT; a second one ends the process at once.
async fn until_signal(stop: signal_watch::Sender<bool>) -> Result<impl Future<Output = ()>, Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Start)?;
    Ok(async move {
        let mut asked = false;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if asked {
                std::process::exit(Exit::Failure as i32);
            }
            asked = true;
            tracing::info!("asked to end");
            stop.send_replace(true);
        }
    })
}
