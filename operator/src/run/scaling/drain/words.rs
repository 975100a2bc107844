//! What is asked of pods that drain, what they answer, and the states in between with their words for users.

use serde::Deserialize;

use super::DRAIN_TIMEOUT;

/// What a pod is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::run::scaling) enum Ask {
    /// To drain, and how far it is.
    Drain,
    /// How far it is.
    Look,
    /// To serve again.
    Cancel,
}

/// One request to one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::run::scaling) struct Request {
    pub(in crate::run::scaling) ordinal: u32,
    pub(in crate::run::scaling) ask: Ask,
}

/// The part of a pod's answer that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(in crate::run::scaling) struct PodDrain {
    pub(in crate::run::scaling) state: PodState,
    /// Requests that only a pod which serves can bring to the database; `None` if it does not know either.
    pub(in crate::run::scaling) spool_records: Option<u64>,
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::run::scaling) enum PodState {
    Serving,
    Draining,
    Drained,
    /// Its process ends once it has drained, and is started anew.
    Restarting,
}

/// Why there is no answer that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::run::scaling) enum NoReply {
    /// Nothing came back, or nothing that can be read.
    Silent,
    /// The pod did not agree.
    Status(u16),
}

pub(in crate::run::scaling) type Reply = Result<PodDrain, NoReply>;

/// Where the drain of a pod stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DrainState {
    /// Not asked yet: requests wait in its spool, and only while it serves do they get to the database.
    Spooled,
    /// It answers no scrape, or does not say what is in its spool, so nobody knows what it holds.
    Unknown,
    /// It finishes what it admitted.
    Draining,
    /// It holds nothing more.
    Drained,
    /// It did not agree to drain, or did not answer.
    Refused(Option<u16>),
    /// It has not drained in [`DRAIN_TIMEOUT`].
    Stuck,
    /// It is to serve again.
    Cancelling,
    /// It is being deleted already.
    Leaving,
    /// It is being deleted, and has not gone [`super::LEAVE_SLACK`] after its grace period.
    Hanging,
    /// No process of it runs, and its volume is empty.
    Absent,
    /// No process of it runs, and its volume holds requests, or may hold some.
    Down,
    /// The cluster is stopped: it goes, and what its volume holds, or may hold, waits there.
    Parked,
}

impl DrainState {
    pub(super) fn is_released(self) -> bool {
        matches!(self, Self::Drained | Self::Absent)
    }

    /// It will not end without somebody's help.
    pub(crate) fn needs_help(self) -> bool {
        matches!(self, Self::Stuck | Self::Down | Self::Hanging)
    }

    /// What the pod waits for, or what went wrong; `None` while all goes as it should.
    pub(in crate::run::scaling) fn message(self) -> Option<String> {
        let message = match self {
            Self::Draining | Self::Drained | Self::Leaving | Self::Absent => return None,
            Self::Parked => "goes as the cluster is stopped; what is in its spool stays on its volume until it runs again".to_owned(),
            Self::Spooled => "holds spooled requests, and serves until the database has them".to_owned(),
            Self::Unknown => "does not say what it holds, and stays until it does".to_owned(),
            Self::Refused(Some(status)) => {
                format!("does not agree to drain (status {status}), and is asked again")
            }
            Self::Refused(None) => "does not answer when asked to drain, and is asked again".to_owned(),
            Self::Stuck => {
                format!("has not drained within {} s, and stays until it has", DRAIN_TIMEOUT.as_secs())
            }
            Self::Cancelling => "is needed after all, and returns to service".to_owned(),
            Self::Hanging => "is being deleted and does not end: if its node is gone for good, delete the Node, or \
                              the pod with --force"
                .to_owned(),
            Self::Down => "does not run, and its spool holds requests or may hold some: it stays until it runs again \
                           and the database has them. To remove it all the same, scale the StatefulSet by hand; \
                           its volume stays"
                .to_owned(),
        };
        Some(message)
    }
}

/// What became of a drain, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::run::scaling) enum DrainEnd {
    Drained,
    Refused,
    Stuck,
    Cancelled,
}

impl DrainEnd {
    pub(in crate::run::scaling) const ALL: [Self; 4] =
        [Self::Drained, Self::Refused, Self::Stuck, Self::Cancelled];

    pub(in crate::run::scaling) fn as_str(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Refused => "refused",
            Self::Stuck => "stuck",
            Self::Cancelled => "cancelled",
        }
    }
}
