//! Brings one pod to what it should have: asks once what it has, then sends and removes what differs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use certeus_operator::rules::{Loaded, Step, Wanted, name_of_imported, path, plan};
use hyper::{Method, StatusCode};
use serde::Deserialize;

use super::super::clock;
use super::super::pods::PodSeen;
use crate::admin::{self, Admin, Idle, Reply, TIMEOUT};

/// A pod writes what it takes to its disk before it answers.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// One round gives one pod this long. What is missing then comes in the next one.
const ROUND_MAX: Duration = Duration::from_secs(20);

/// Namespace and name.
pub(super) type Name = (String, String);

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Whether the pod said what it has. If not, nothing is known.
    pub(super) has_answered: bool,
    /// Objects of which the pod has the wanted generation.
    pub(super) loaded: HashSet<Name>,
    /// Objects of which it has anything.
    pub(super) present: HashSet<Name>,
    /// Why it does not have the rules of single objects.
    pub(super) refused: HashMap<Name, String>,
    /// Why the others are missing.
    pub(super) error: Option<String>,
    /// Whether the time did not suffice.
    pub(super) is_unfinished: bool,
    /// Objects that were sent in this round.
    pub(super) sent: HashSet<Name>,
    pub(super) removed: u64,
}

/// What a pod says when it does not do something.
#[derive(Deserialize)]
struct Problem {
    detail: String,
}

/// Brings `pod` to what is wanted of it. Without `with_imports` it keeps what it has of PrometheusRules.
pub(super) async fn deliver(
    pod: &PodSeen,
    wanted: &BTreeMap<(&str, &str), Wanted<'_>>,
    bodies: &HashMap<(&str, &str), Bytes>,
    with_imports: bool,
) -> Outcome {
    let started = clock::now();
    let mut outcome = Outcome::default();
    let mut idle = None;
    let asked = match pod.admin() {
        Ok(admin) => list(pod, &admin, &mut idle).await.map(|loaded| (admin, loaded)),
        Err(error) => Err(unreachable(pod, &error)),
    };
    let (admin, mut loaded) = match asked {
        Ok(answered) => answered,
        Err(error) => return Outcome { error: Some(error), ..outcome },
    };
    outcome.has_answered = true;
    outcome.present =
        loaded.rules.iter().map(|rules| (rules.namespace.clone(), rules.name.clone())).collect();
    loaded.rules.retain(|rules| with_imports || name_of_imported(&rules.name).is_none());
    let plan = plan(wanted, &loaded);
    outcome.loaded = plan.loaded.into_iter().collect();
    for step in plan.steps {
        if clock::now().saturating_sub(started) > ROUND_MAX {
            outcome.is_unfinished = true;
            break;
        }
        let (method, name, body) = match step {
            Step::Put(namespace, name) => {
                let body = bodies.get(&(namespace.as_str(), name.as_str())).cloned();
                (Method::PUT, (namespace, name), body)
            }
            Step::Delete(namespace, name) => (Method::DELETE, (namespace, name), None),
        };
        let is_put = method == Method::PUT;
        let reply = admin.request(method, &path(&name.0, &name.1), body, WRITE_TIMEOUT, &mut idle).await;
        match reply {
            Ok(reply) if is_put && reply.status.is_success() => {
                outcome.sent.insert(name.clone());
                outcome.present.insert(name.clone());
                outcome.loaded.insert(name);
            }
            Ok(reply) if !is_put && (reply.status.is_success() || reply.status == StatusCode::NOT_FOUND) => {
                outcome.removed += 1;
                outcome.present.remove(&name);
            }
            Ok(reply) => {
                outcome.refused.insert(name, format!("pod {}: {}", pod.name, told(&reply)));
            }
            Err(error) => {
                outcome.error = Some(unreachable(pod, &error));
                break;
            }
        }
    }
    outcome
}

async fn list(pod: &PodSeen, admin: &Admin, idle: &mut Option<Idle>) -> Result<Loaded, String> {
    let reply = admin.request(Method::GET, "/rules", None, TIMEOUT, idle).await;
    let reply = reply.map_err(|error| unreachable(pod, &error))?;
    if reply.status != StatusCode::OK {
        return Err(format!("pod {}: {}", pod.name, told(&reply)));
    }
    serde_json::from_slice(&reply.body)
        .map_err(|error| format!("pod {}: the list of its rules cannot be read: {error}", pod.name))
}

fn unreachable(pod: &PodSeen, error: &admin::Error) -> String {
    format!("pod {}: {}", pod.name, crate::errors::chain(error))
}

/// What a pod said instead of doing it.
fn told(reply: &Reply) -> String {
    match serde_json::from_slice::<Problem>(&reply.body) {
        Ok(Problem { detail }) => format!("{}: {detail}", reply.status),
        Err(_) => reply.status.to_string(),
    }
}
