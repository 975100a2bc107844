//! Runs programs to their end, and ends them early on Ctrl-C or a termination signal: what follows is an error, which
//! unwinds, so that the pod and PostgreSQL are stopped as after any other error.

use std::process::{Child, Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// Short beside what is timed, which is seconds.
const POLL_EVERY: Duration = Duration::from_millis(5);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Takes the signals that would otherwise end this process at once and leave its children behind.
pub(crate) fn listen_for_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.context("cannot listen for signals")?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        let listen = |kind| signal(kind).context("cannot listen for signals");
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?)
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        INTERRUPTED.store(true, Ordering::Relaxed);
        // The thread stays, as the runtime's end would bring the signals' default action back.
        thread::park();
    });
    Ok(())
}

/// Fails once the measurement is to end.
pub(crate) fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Runs a program to its end. What it prints to a pipe must be little: it is read at the end.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child =
        command.spawn().with_context(|| format!("cannot run {name}: is it built, or installed?"))?;
    let ended = wait(&mut child).with_context(|| format!("{name} was stopped"));
    if ended.is_err() {
        // The first error is the one to report.
        let _gone = child.kill();
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {name}"))?;
    ended.map(|()| output)
}

fn wait(child: &mut Child) -> Result<()> {
    while child.try_wait().context("cannot wait")?.is_none() {
        check()?;
        thread::sleep(POLL_EVERY);
    }
    Ok(())
}
