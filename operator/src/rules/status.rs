//! What the status of an `AlertRule` says. Equal circumstances give equal status, so that nothing is written when nothing changed.

use certeus_crds::{AlertCounts, AlertRuleStatus, FieldError};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::Accepted;
use crate::counted;

/// Reason of the condition `Accepted` of rules of which pods get everything.
pub const VALID: &str = "Valid";
/// Reason of the condition `Accepted` of rules of which pods get a part.
pub const PARTIAL: &str = "Partial";
/// Reason of the condition `Accepted` of rules with a mistake.
pub const INVALID: &str = "Invalid";
/// Reason of the condition `Accepted` of rules that the operator has no room for.
const NO_ROOM: &str = "NoRoom";
/// Reason of the condition `Accepted` of rules for a cluster that does not exist.
pub const CLUSTER_NOT_FOUND: &str = "ClusterNotFound";

/// Mistakes that a message tells. Who has more will look again after these.
const ERRORS_TOLD_MAX: usize = 10;
/// Characters of an error in a status.
const ERROR_LENGTH_MAX: usize = 1024;

/// What the status is of. An object that cannot be read has one, too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Subject<'a> {
    /// The generation of its spec.
    pub generation: Option<i64>,
    /// The cluster that it names.
    pub cluster: &'a str,
    /// Its status so far.
    pub before: Option<&'a AlertRuleStatus>,
    /// Whether pods may have the rules, or what is wrong with them.
    pub verdict: Result<&'a Accepted, &'a [FieldError]>,
    /// Nothing is wrong with them, but there is no room for them.
    pub lacks_room: bool,
}

/// How far the rules came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery<'a> {
    /// Pods that have this generation.
    pub loaded: u32,
    /// Pods of the cluster; `None` if there is no such cluster.
    pub total: Option<u32>,
    /// What went wrong last with a pod that lacks them.
    pub error: Option<&'a str>,
}

/// The status of an object, given what it was before.
#[must_use]
pub fn status(subject: Subject<'_>, delivery: Delivery<'_>, now: Timestamp) -> AlertRuleStatus {
    let Subject { generation, cluster, before, verdict, lacks_room } = subject;
    let Delivery { loaded, total, error } = delivery;
    let mut accepted = accepted_condition(cluster, verdict, total);
    if lacks_room {
        accepted.reason = NO_ROOM;
    }
    let is_accepted = accepted.holds;
    let last_error = if is_accepted { error } else { Some(accepted.message.as_str()) }.map(shortened);
    let loaded_condition = loaded_condition(is_accepted, loaded, total.unwrap_or(0), last_error.as_deref());
    let conditions = [accepted, loaded_condition].map(|finding| {
        let Finding { type_, holds, reason, message } = finding;
        let status = if holds { "True" } else { "False" };
        let same = |old: &&Condition| old.type_ == type_ && old.status == status;
        let kept = before.and_then(|before| before.conditions.iter().find(same));
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: kept.map_or(Time(now), |old| old.last_transition_time.clone()),
            observed_generation: generation,
        }
    });
    AlertRuleStatus {
        observed_generation: generation,
        loaded_pods: loaded,
        total_pods: total.unwrap_or(0),
        last_error,
        // No pod evaluates rules yet: what nobody knows is not said.
        state: None,
        alerts: AlertCounts::default(),
        conditions: conditions.into(),
    }
}

struct Finding {
    type_: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

fn accepted_condition(
    cluster: &str,
    verdict: Result<&Accepted, &[FieldError]>,
    total: Option<u32>,
) -> Finding {
    let (holds, reason, message) = match (verdict, total) {
        (Err(errors), _) => {
            let mut told: Vec<String> =
                errors.iter().take(ERRORS_TOLD_MAX).map(ToString::to_string).collect();
            if errors.len() > ERRORS_TOLD_MAX {
                told.push(format!("and {} more", errors.len() - ERRORS_TOLD_MAX));
            }
            (false, INVALID, told.join("; "))
        }
        (Ok(_), None) => {
            (false, CLUSTER_NOT_FOUND, format!("there is no LedgerCluster {cluster:?} in this namespace"))
        }
        (Ok(Accepted { groups, rules, left_out, body: _ }), Some(_)) => {
            let message = format!("{} in {}", counted(*rules, "rule"), counted(*groups, "group"));
            if left_out.is_empty() {
                (true, VALID, message)
            } else {
                (true, PARTIAL, format!("{message}; {left_out}"))
            }
        }
    };
    Finding { type_: "Accepted", holds, reason, message: shortened(&message) }
}

fn loaded_condition(is_accepted: bool, loaded: u32, total: u32, error: Option<&str>) -> Finding {
    let count = format!("{loaded} of {total} pods have loaded this generation");
    let (holds, reason, message) = match (is_accepted, loaded, total, error) {
        (false, ..) => (
            false,
            "NotAccepted",
            "rules that are not accepted are not sent; pods keep an earlier generation".into(),
        ),
        (true, _, 0, _) => (false, "NoPods", "the cluster has no pods".to_owned()),
        (true, loaded, total, _) if loaded >= total => (true, "AllPods", count),
        (true, .., Some(error)) => (false, "DeliveryFailed", format!("{count}; {error}")),
        (true, .., None) => (false, "Delivering", count),
    };
    Finding { type_: "Loaded", holds, reason, message }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(ERROR_LENGTH_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
