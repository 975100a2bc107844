//! `certeus-operator status`: prints what a running instance last wrote about itself.

use std::fmt::Write;
use std::fs;
use std::io;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::snapshot::{PodStatus, Snapshot};
use super::state::StateDir;
use super::{state, table};
use crate::cli::Output;

/// Why there is nothing to print.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no local instance runs in {0}: start one with 'certeus-operator local'")]
    NotRunning(String),
    #[error("the local instance in {0} is just starting or stopping: ask again in a moment")]
    Changing(String),
    #[error(transparent)]
    State(#[from] state::Error),
    #[error("the state that the running instance wrote cannot be read: was it written by another version?")]
    Format(#[from] serde_json::Error),
    #[error("the state cannot be written as YAML")]
    Yaml(#[from] serde_saphyr::ser_error::Error),
}

/// The text to print.
pub(crate) fn run(state: &StateDir, output: Option<Output>) -> Result<String, Error> {
    let folder = || state.root().display().to_string();
    let operator = state.read_processes()?.and_then(|processes| processes.operator);
    if !operator.is_some_and(super::process::ProcessId::is_alive) {
        return Err(Error::NotRunning(folder()));
    }
    let path = state.status();
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Changing(folder())),
        Err(error) => return Err(state::io_error("read", &path)(error).into()),
    };
    let snapshot: Snapshot = serde_json::from_slice(&bytes)?;
    match output {
        None => tables(&snapshot, false, Timestamp::now()),
        Some(Output::Wide) => tables(&snapshot, true, Timestamp::now()),
        Some(Output::Yaml) => Ok(serde_saphyr::to_string(&snapshot)?),
        Some(Output::Json) => Ok(serde_json::to_string_pretty(&snapshot)? + "\n"),
    }
}

fn tables(snapshot: &Snapshot, wide: bool, now: Timestamp) -> Result<String, Error> {
    let [cluster_crd, rule_crd] = certeus_crds::crds();
    let cluster = serde_json::to_value(&snapshot.ledger_cluster)?;
    let mut text = table::objects(&cluster_crd, &[cluster], wide, now);
    text.push('\n');
    text += &pods(&snapshot.pods, wide, now);
    if !snapshot.alert_rules.is_empty() {
        let rules = snapshot.alert_rules.iter().map(json).collect::<Result<Vec<_>, _>>()?;
        text.push('\n');
        text += &table::objects(&rule_crd, &rules, wide, now);
    }
    let status = snapshot.ledger_cluster.status.as_ref();
    if let Some(decision) = status.and_then(|status| status.last_decision.as_ref()) {
        // Writing to a string cannot fail.
        let _written = writeln!(text, "\nlast decision: {} ({})", decision.message, decision.reason);
    }
    if let Some(error) = &snapshot.manifests_error {
        let _written = writeln!(text, "\nthe manifests were edited but not taken over: {error}");
    }
    Ok(text)
}

fn json(object: &impl Serialize) -> Result<Value, serde_json::Error> {
    serde_json::to_value(object)
}

fn pods(pods: &[PodStatus], wide: bool, now: Timestamp) -> String {
    let mut head = vec!["pod", "ready", "status", "restarts", "age", "admin", "pid"];
    if wide {
        head.push("log");
    }
    let rows: Vec<Vec<String>> = pods
        .iter()
        .map(|pod| {
            let PodStatus { name, ready, phase, restarts, log, process } = pod;
            let running = process.as_ref();
            let dash = || "-".to_owned();
            vec![
                name.clone(),
                if *ready { "1/1" } else { "0/1" }.to_owned(),
                format!("{phase:?}"),
                restarts.to_string(),
                running.map_or_else(dash, |process| table::age(process.start_time.0, now)),
                running.map_or_else(dash, |process| process.admin_address.to_string()),
                running.map_or_else(dash, |process| process.pid.to_string()),
                log.display().to_string(),
            ]
        })
        .collect();
    table::render(&head, &rows)
}
