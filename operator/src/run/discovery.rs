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
    loop {
        // An error says nothing either way.
        if let Ok(kinds) = kinds(&client, &kind.api_version).await
            && changes.send(change(kinds.contains(&kind.kind))).await.is_err()
        {
            return;
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
