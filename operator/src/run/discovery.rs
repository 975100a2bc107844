//! Which kinds the API server knows. Every account may ask that, so no permission is needed.

use std::time::Duration;

use certeus_crds::{GROUP, VERSION};
use kube::Client;
use kube::api::ApiResource;
use tokio::sync::{mpsc, watch};

use super::access::ApiServer;
use super::clock;
use super::telemetry::{Health, Source};
use crate::errors::Reminder;

/// A kind that is added or removed is noticed within this time.
const INTERVAL: Duration = Duration::from_secs(10);
/// While the operator cannot work without them.
const MISSING_INTERVAL: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(10);
/// So often in a row a kind that was there has to be missing before it counts as gone: of several API servers one may not have
/// read all definitions yet.
const ABSENCES_MIN: u32 = 2;
/// Everything the operator reconciles.
const KINDS: [&str; 2] = ["LedgerCluster", "AlertRule"];

/// The API server took the connection and said nothing.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} s", TIMEOUT.as_secs())]
struct NoAnswer;

/// Waits until the API server knows our kinds; false if `stop` came first. Credentials and certificates that are refused are
/// waited for, too: a cluster may be about to get new ones.
pub(crate) async fn wait_for_kinds(
    client: &Client,
    server: &ApiServer,
    health: &Health,
    stop: &mut watch::Receiver<bool>,
) -> bool {
    let mut reminder = Reminder::default();
    loop {
        let (fails, why) = match kinds(client, &format!("{GROUP}/{VERSION}")).await {
            Ok(kinds) => {
                let missing: Vec<&str> =
                    KINDS.into_iter().filter(|kind| !kinds.iter().any(|known| known == kind)).collect();
                if missing.is_empty() {
                    return true;
                }
                let why = format!(
                    "the API server does not know {} of {GROUP}/{VERSION}; install the definitions: \
                     certeus-operator crd | kubectl apply --server-side -f -",
                    missing.join(" and ")
                );
                (false, why)
            }
            Err(error) => (true, server.explain(&error)),
        };
        match (reminder.is_due(&why, clock::now()), fails) {
            (true, true) => tracing::error!(error = why, "the API server cannot be asked; trying again"),
            (true, false) => tracing::warn!(reason = why, "waiting"),
            (false, _) => {}
        }
        health.progress(Source::Controller, clock::now());
        health.wait_for(Some(why));
        tokio::select! {
            () = tokio::time::sleep(MISSING_INTERVAL) => {}
            _ = stop.wait_for(|stop| *stop) => return false,
        }
    }
}

/// Tells, now and then again and again, whether the API server knows a kind of somebody else's.
pub(crate) async fn watch_kind<C>(
    client: Client,
    kind: ApiResource,
    changes: mpsc::Sender<C>,
    change: fn(bool) -> C,
) {
    // One that was never there is gone at once.
    let mut absences = ABSENCES_MIN;
    let mut told = None;
    loop {
        // An error says nothing either way.
        if let Ok(kinds) = kinds(&client, &kind.api_version).await {
            let is_known = kinds.contains(&kind.kind);
            absences = if is_known { 0 } else { absences.saturating_add(1) };
            if is_known || absences >= ABSENCES_MIN {
                if told.replace(is_known).is_some_and(|before| before != is_known) {
                    tracing::info!(kind = kind.kind, is_known, "a kind of others came or went");
                }
                if changes.send(change(is_known)).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The kinds of a group and version; none if it is not served.
async fn kinds(client: &Client, group_version: &str) -> Result<Vec<String>, kube::Error> {
    match tokio::time::timeout(TIMEOUT, client.list_api_group_resources(group_version)).await {
        Ok(Ok(list)) => Ok(list.resources.into_iter().map(|resource| resource.kind).collect()),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(Vec::new()),
        Ok(Err(error)) => Err(error),
        Err(_elapsed) => Err(kube::Error::Service(Box::new(NoAnswer))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use certeus_operator::build::service_monitor_resource;
    use http_body_util::Full;
    use hyper::{Request, Response};
    use kube::client::Body;
    use serde_json::json;
    use tower::{BoxError, service_fn};

    use super::*;

    /// An API server that answers in turn that it knows the kind, that it knows none of its group, or with a failure.
    fn server(answers: &'static [u16]) -> Client {
        let answers = Mutex::new(answers.iter());
        let service = service_fn(move |_: Request<Body>| {
            let answer = answers.lock().unwrap().next().copied();
            async move {
                // Who has no more to say keeps the connection open.
                let Some(code) = answer else { return std::future::pending().await };
                let resource = json!({ "name": "servicemonitors", "singularName": "", "namespaced": true,
                    "kind": "ServiceMonitor", "verbs": [] });
                let body = match code {
                    200 => json!({ "kind": "APIResourceList", "groupVersion": "", "resources": [resource] }),
                    code => {
                        json!({ "kind": "Status", "status": "Failure", "message": "", "reason": "", "code": code })
                    }
                };
                let body = Full::new(Bytes::from(body.to_string()));
                Response::builder().status(code).body(body).map_err(BoxError::from)
            }
        });
        Client::new(service, "ns")
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_that_was_there_is_gone_once_it_was_missing_twice_in_a_row() {
        let check = async |answers: &'static [u16], expected: &[bool]| {
            let (sender, mut changes) = mpsc::channel(16);
            let watching =
                tokio::spawn(watch_kind(server(answers), service_monitor_resource(), sender, |known| known));
            tokio::time::sleep(Duration::from_secs(600)).await;
            watching.abort();
            let mut told = Vec::new();
            while let Some(known) = changes.recv().await {
                told.push(known);
            }
            assert_eq!(told, expected, "{answers:?}");
        };
        check(&[404, 200, 404, 200], &[false, true, true]).await;
        check(&[500, 200, 404, 500, 404, 404, 200], &[true, false, false, true]).await;
    }
}
