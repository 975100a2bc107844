//! Ends a local instance: asks a running one to stop, and ends what a killed one left behind.

use std::io;
use std::time::Duration;

use rustix::process::Signal;

use super::process::ProcessId;
use super::say;
use super::state::{Error, Processes, StateDir};

/// Draining takes as long as the manifests allow; how far it is gets printed meanwhile.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// For each step of ending a process that nobody drives any more.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// `certeus-operator down`.
pub(crate) fn run(state: &StateDir, purge: bool) -> Result<(), Error> {
    if !state.exists() {
        say(&format!("nothing runs in {}, and nothing is kept there", state.root().display()));
        return Ok(());
    }
    let running = state.read_processes()?.and_then(|processes| processes.operator);
    let mut stopped = false;
    if let Some(operator) = running.filter(|operator| operator.is_alive()) {
        say(&format!("stopping process {}: pods drain, then PostgreSQL stops", operator.pid));
        operator.signal(Signal::TERM);
        while !operator.wait(PROGRESS_INTERVAL) {
            let pods = state.read_processes()?.map_or(0, |processes| processes.pods.len());
            say(&format!(
                "waiting: {pods} pods still run ('certeus-operator down' once more stops them at once)"
            ));
        }
        stopped = true;
    }
    let _lock = state.lock()?;
    let cleaned = end_leftovers(state)?;
    if purge {
        state.purge()?;
        say(&format!("removed all data in {}", state.root().display()));
    }
    if stopped || cleaned {
        say("stopped");
    } else if !purge {
        say(&format!("nothing runs in {}", state.root().display()));
    }
    Ok(())
}

/// Ends the processes that a killed instance left, pods before PostgreSQL; tells whether there were any.
/// The caller holds the lock. Blocks.
pub(crate) fn end_leftovers(state: &StateDir) -> Result<bool, Error> {
    let Some(Processes { pods, postgres, .. }) = state.read_processes()? else {
        state.forget_instance()?;
        return Ok(false);
    };
    let pods: Vec<ProcessId> = pods.into_values().filter(|pod| pod.is_alive()).collect();
    let postgres = postgres.filter(|postgres| postgres.is_alive());
    let found = !pods.is_empty() || postgres.is_some();
    if found {
        let server = if postgres.is_some() { " and PostgreSQL" } else { "" };
        say(&format!("stopping what a killed instance left: {} pods{server}", pods.len()));
    }
    // A pod drains on SIGTERM.
    end(pods, &[Signal::TERM, Signal::KILL], state)?;
    // PostgreSQL: fast, then immediate. Neither loses what was committed.
    end(postgres.into_iter().collect(), &[Signal::INT, Signal::QUIT, Signal::KILL], state)?;
    state.forget_instance()?;
    Ok(found)
}

fn end(mut processes: Vec<ProcessId>, signals: &[Signal], state: &StateDir) -> Result<(), Error> {
    for signal in signals {
        for process in &processes {
            process.signal(*signal);
        }
        processes.retain(|process| !process.wait(STEP_TIMEOUT));
    }
    if processes.is_empty() {
        return Ok(());
    }
    let stuck = io::Error::other("a process does not end even when killed");
    Err(Error::Io { action: "clean up the processes of", path: state.root().to_owned(), source: stuck })
}
