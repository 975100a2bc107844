//! The data-plane pod: takes events over HTTP and commits them to PostgreSQL.
//!
//! Owns start, signals and exit. Everything else is in the modules: `config` is read once, `serve` takes connections, `api`
//! answers them, `lifecycle` drains. Exit codes: 0 after draining, 1 on failure, 2 on a configuration that cannot work.

mod api;
mod auth;
mod body;
mod config;
mod last_words;
mod lifecycle;
mod listen;
mod problem;
mod process;
mod ready;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use certeus_ledger::{Ledger, LogConfig, QueueConfig, SigningKeys};
use certeus_monitor::rules::Store as RuleStore;
use clap::Parser;
use prometheus::{IntGauge, Registry};
use tokio::signal::unix::{SignalKind, signal};

use api::{App, Parts};
use auth::ApiKey;
use body::{BODY_BYTES_MAX, MemoryBudget};
use config::{Config, Listen};
use lifecycle::{Lifecycle, Phase};
use process::Process;

/// Name of the ledger that this pod serves.
const LEDGER: &str = "default";
/// A batch takes no further request once it has this many bytes: several times what the network and PostgreSQL need to be busy,
/// small enough that two writers' batches stay far below the memory limit.
const BATCH_BYTES: usize = 8 << 20;
/// Requests may hold, from their first byte to their reply, this many times the bytes that may wait in the queue.
const BUDGET_PER_QUEUE: usize = 2;
/// Published bundles that are being sent may hold this much: three of the largest.
const PUBLIC_REPLIES_BYTES: usize = 72 << 20;
/// Draining ends at the latest after this long, within the 60 s that the operator grants a pod.
const DRAIN_DEADLINE: Duration = Duration::from_secs(45);

/// The Certeus data plane: takes events over HTTP, commits them in batches to PostgreSQL.
#[derive(Parser)]
#[command(
    name = "certeus-dataplane",
    version,
    after_help = "Environment: CERTEUS_DB_URL (required), CERTEUS_API_KEY, CERTEUS_DECRYPT_API_KEY, CERTEUS_ENCRYPTION_KEY, \
                  CERTEUS_SIGNING_KEY; CERTEUS_API_LISTEN, CERTEUS_ADMIN_LISTEN, CERTEUS_METRICS_PORT, CERTEUS_POOL_SIZE, \
                  CERTEUS_LOG_LEVEL, CERTEUS_SIGNING_KEY_FILE, CERTEUS_LOG_ORIGIN, CERTEUS_LOG_ANCHOR, CERTEUS_LOG_ANCHOR_SHARED, STRICT_PROOF_ONLY, \
                  PUBLIC_BASE_URL override the file. CERTEUS_TERMINATION_LOG is a file that takes the reason of a failure \
                  (/dev/termination-log, if that is there).\n\n\
                  Exit codes: 0 drained and stopped, 1 failed, 2 the configuration cannot work.\n\n\
                  Example:\n  CERTEUS_DB_URL=postgres://me:secret@localhost/events certeus-dataplane"
)]
struct Args {
    /// The configuration file (YAML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The folder of the spool, in place of `spool.path` in the file.
    #[arg(long, value_name = "FOLDER")]
    spool: Option<PathBuf>,
    /// Check the configuration and exit.
    #[arg(long)]
    check_config: bool,
    /// Ask the pod that runs here with the same configuration whether it is ready, and exit: 0 if it is, else 1.
    #[arg(long, conflicts_with = "check_config")]
    check_ready: bool,
}

fn main() -> ExitCode {
    let Args { config, spool, check_config, check_ready } = Args::parse();
    let config = match Config::load(config.as_deref(), spool, |name| std::env::var_os(name)) {
        Ok(config) => config,
        Err(error) => return cannot_work(error, !check_config && !check_ready),
    };
    if check_config {
        println!("the configuration is valid");
        return ExitCode::SUCCESS;
    }
    if check_ready {
        return match ready::check(config.admin) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("certeus-dataplane: {:#}", anyhow::Error::from(error));
                ExitCode::FAILURE
            }
        };
    }
    let keys = match config.signing_key.load() {
        Ok(keys) => keys,
        Err(error) => return cannot_work(error, true),
    };
    last_words::leave_panics();
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        // A log line that cannot be written (the disk may be full) must not take the pod with it.
        .log_internal_errors(false)
        .with_current_span(false)
        .with_max_level(config.log_level)
        .with_writer(std::io::stderr)
        .init();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(config, keys)));
    match outcome {
        Ok(()) => {
            // A task that panicked some time ago is not what ended it.
            last_words::leave("");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let reason = format!("{error:#}");
            last_words::leave(&reason);
            tracing::error!(reason, "the pod stops");
            ExitCode::FAILURE
        }
    }
}

/// `as_pod`: it is the pod itself that ends, not somebody who only looks at its configuration.
fn cannot_work(error: impl Into<anyhow::Error>, as_pod: bool) -> ExitCode {
    let reason = format!("{:#}", error.into());
    if as_pod {
        last_words::leave(&reason);
    }
    eprintln!("certeus-dataplane: {reason}");
    ExitCode::from(2)
}

async fn run(config: Config, keys: Option<Arc<SigningKeys>>) -> anyhow::Result<()> {
    let Config {
        api,
        admin,
        database,
        pool_size,
        batch_events,
        batch_timeout,
        queue_events,
        queue_bytes,
        writers,
        archive,
        spool,
        rules,
        log_level: _,
        api_keys,
        encryption,
        signing_key: _,
        anchor,
        anchor_shared,
        checkpoint_interval,
        proofs,
    } = config;
    raise_file_limit();
    if let Some(encryption) = &encryption {
        let keys: Vec<String> = encryption.keyring.ids().map(|id| id.to_string()).collect();
        tracing::info!(
            encryption.fields = encryption.fields.len(),
            encryption.key_ids = keys.join(", "),
            "the first of these keys encrypts fields, all of them decrypt"
        );
    }
    // Before anything slow, so that a signal at any time drains instead of killing.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let registry = Registry::new();
    let ledger_config = certeus_ledger::Config {
        name: LEDGER.to_owned(),
        database,
        writers,
        // One more is the health check's, and one the log's if it is signed.
        read_connections: (pool_size - writers - 1).saturating_sub(usize::from(keys.is_some())).max(1),
        queue: QueueConfig {
            queue_events_max: queue_events,
            queue_bytes_max: queue_bytes,
            batch_events,
            batch_bytes: BATCH_BYTES,
            batch_timeout,
        },
        encryption,
        log: keys.map(|keys| LogConfig { keys, anchor, anchor_shared, checkpoint_interval }),
        archive,
        spool,
    };
    let api_socket = serve::bind(api, api_keys.is_some())?;
    let admin_socket = serve::bind(Listen::Address(admin), api_keys.is_some())?;
    let (api_address, admin_address) = (api_socket.local_addr()?, admin_socket.local_addr()?);
    let (ledger, tasks) = Ledger::start(ledger_config, &registry)?;
    let rules = RuleStore::open(rules, &registry)?;
    let lifecycle = Lifecycle::new(matches!(api, Listen::Address(_)));
    let draining = IntGauge::new("certeus_draining", "Whether the pod is draining (1) or not (0).")?;
    registry.register(Box::new(draining.clone()))?;
    let app = App::new(Parts {
        ledger: ledger.clone(),
        lifecycle: Arc::clone(&lifecycle),
        process: Process::register(&registry)?,
        draining,
        registry,
        budget: MemoryBudget::new(queue_bytes * BUDGET_PER_QUEUE),
        public_budget: MemoryBudget::new(PUBLIC_REPLIES_BYTES),
        body_bytes_max: BODY_BYTES_MAX.min(queue_bytes),
        pool_size,
        proofs,
        rules,
    });
    let key = ApiKey::new(api_keys.as_ref());
    let mut servers = tokio::task::JoinSet::new();
    let admin_router = api::admin_router(app.clone(), key.clone());
    servers.spawn(serve::serve_admin(admin_socket, admin_router, Arc::clone(&lifecycle)));
    let api_server = serve::serve_api(api_socket, api, api::api_router(app, key), Arc::clone(&lifecycle));
    servers.spawn(api_server);
    tracing::info!(api.address = %api_address, admin.address = %admin_address, "serving");

    let mut drain = std::pin::pin!(lifecycle.drain(&ledger, tasks));
    let mut drained = false;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = lifecycle.restart_asked() => break,
            () = &mut drain, if !drained => {
                drained = true;
                anyhow::ensure!(lifecycle.phase() == Phase::Drained, "the ledger stopped by itself");
            }
        }
    }
    lifecycle.end();
    if !drained {
        tokio::time::timeout(DRAIN_DEADLINE, drain)
            .await
            .context("what was admitted could not be committed in time; it was not acknowledged")?;
    }
    servers.shutdown().await;
    Ok(())
}

/// Connections need a file each, and the usual soft limit of 1,024 would also starve those to the database.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it is not allowed, the pod serves as many connections as it can.
    let _as_many_as_allowed = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
