//! What keeps a pod from its work, as its status tells: its container crashes or cannot be started, or no node takes it. Pure.
//!
//! Kubernetes' own words change from one attempt to the next: `ErrImagePull` and `ImagePullBackOff` alternate, texts name ports,
//! pauses and numbers of nodes. Promises: the text is one line and bounded; [`Trouble::settle`] keeps what was told where the new says the same,
//! so that a pod that is in the same trouble for days is not news all the time.

use std::time::Duration;

use certeus_autoscale::PodPhase;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::clock;
use super::pods::own_container;

/// Restarts after which a container that has not become ready since is said to crash, though it runs for the moment.
const CRASH_RESTARTS_MIN: i32 = 2;
/// One that ran for longer is restarted without delay by the kubelet, too.
const CRASH_RUN_MAX: Duration = Duration::from_secs(600);
/// Of what Kubernetes or the container says.
const TEXT_CHARACTERS_MAX: usize = 300;
/// A node or a volume that has to be made comes within this time, mostly. Before, it is no trouble.
const LONG: Duration = Duration::from_secs(180);
/// Another text of the same trouble is told at most this often.
const TEXT_INTERVAL: Duration = Duration::from_secs(600);
/// Kubelets before 1.31 tell the cause at each attempt, and only this until the next one.
const BACK_OFF: &str = "ImagePullBackOff";

/// What sort of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its container ends each time soon after it is started.
    Crash {
        /// As far as the kubelet tells.
        exit_code: Option<i32>,
    },
    /// An image of it cannot be had.
    Image,
    /// Its container cannot be made or started.
    Start,
    /// Its node does not get its volumes and network ready.
    Prepare,
    /// No node takes it.
    Schedule,
}

/// What keeps a pod from its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) kind: Kind,
    /// Kubernetes' word for it and what it says, or what a container that crashed left as its last message. May be empty.
    pub(crate) text: String,
    /// Before this it may pass by itself, and is not told. Times are those of [`clock`].
    pub(crate) from: Duration,
    /// When it was read.
    at: Duration,
}

impl Trouble {
    pub(crate) fn new(kind: Kind, text: &str, from: Duration, at: Duration) -> Self {
        // Messages of container runtimes have line feeds.
        let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
        let line = words.collect::<Vec<_>>().join(" ");
        Self { kind, text: line.chars().take(TEXT_CHARACTERS_MAX).collect(), from, at }
    }

    /// Reads it from a pod in this phase.
    pub(crate) fn read(pod: &Pod, phase: PodPhase, now: Duration) -> Option<Self> {
        if matches!(phase, PodPhase::Draining | PodPhase::Failed) {
            return None;
        }
        let status = pod.status.as_ref()?;
        let crash = || crash(status, phase).map(|(kind, text)| Self::new(kind, &text, Duration::ZERO, now));
        let no_start = no_start(status).map(|(kind, text)| Self::new(kind, &text, Duration::ZERO, now));
        let no_place = || no_place(status, now).filter(|_| phase == PodPhase::Pending);
        no_start.or_else(crash).or_else(no_place)
    }

    /// What is told of a pod that was in trouble before: the same as then, unless this says something new.
    pub(crate) fn settle(&mut self, before: &Self) {
        if std::mem::discriminant(&self.kind) != std::mem::discriminant(&before.kind) {
            return;
        }
        let is_same = self.kind == before.kind && words(&self.text).eq(words(&before.text));
        let names_cause = |trouble: &Self| !trouble.text.starts_with(BACK_OFF);
        let is_told = self.at >= before.from && names_cause(before);
        let is_recent = self.at.saturating_sub(before.at) < TEXT_INTERVAL;
        if is_same || is_told && (is_recent || !names_cause(self)) {
            (self.kind, self.at) = (before.kind, before.at);
            self.text.clone_from(&before.text);
        }
    }
}

/// What is left of a text without what is different each time: ports, pauses, numbers of nodes, ids.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_alphanumeric());
    words.filter(|word| !word.is_empty() && !word.contains(|c: char| c.is_ascii_digit()))
}

/// A container, be it one that somebody injected, that cannot be made; the words are those of the kubelet.
fn no_start(status: &PodStatus) -> Option<(Kind, String)> {
    let init = status.init_container_statuses.iter().flatten();
    init.chain(status.container_statuses.iter().flatten()).find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref()?;
        let message = waiting.message.as_deref().unwrap_or_default();
        match reason {
            // This and `ErrImagePull` alternate, and are to read the same.
            BACK_OFF => {
                let cause = message.find("ErrImagePull: ").map(|place| message[place..].to_owned());
                Some((Kind::Image, cause.unwrap_or_else(|| colon(reason, message))))
            }
            "ErrImagePull"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "SignatureValidationFailed" => Some((Kind::Image, colon(reason, message))),
            "CreateContainerConfigError"
            | "CreateContainerError"
            | "PreCreateHookError"
            | "PreStartHookError" => Some((Kind::Start, colon(reason, message))),
            "RunContainerError" if !is_run_again(container) => Some((Kind::Start, colon(reason, message))),
            _ => None,
        }
    })
}

/// From its second attempt on this alternates with `CrashLoopBackOff`.
fn is_run_again(container: &ContainerStatus) -> bool {
    container.restart_count > 0
}

fn colon(reason: &str, message: &str) -> String {
    if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") }
}

/// Between two waits of a crash loop the container runs for a moment, or has ended already: that is the same trouble still. One
/// that became ready since it was started, or ran for long before it ended, is over it.
fn crash(status: &PodStatus, phase: PodPhase) -> Option<(Kind, String)> {
    let was_ready = match phase {
        PodPhase::Running { ready, started_at, ready_changed_at } => ready || ready_changed_at > started_at,
        PodPhase::Pending | PodPhase::Draining | PodPhase::Failed => false,
    };
    let container = own_container(status)?;
    let state = container.state.as_ref()?;
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let ended = state.terminated.as_ref().or(last);
    let waits = match state.waiting.as_ref().and_then(|waiting| waiting.reason.as_deref()) {
        Some("CrashLoopBackOff") => true,
        Some("RunContainerError") => is_run_again(container),
        Some(_) | None => false,
    };
    let again = container.restart_count >= CRASH_RESTARTS_MIN && ended.is_some_and(was_short) && !was_ready;
    (waits || again).then(|| {
        let text = |text: &Option<String>| text.as_deref().map(str::trim).unwrap_or_default().to_owned();
        // Any exit code but 0 is an `Error`.
        let reason = ended.map(|ended| text(&ended.reason)).filter(|reason| reason != "Error");
        let message = ended.map(|ended| text(&ended.message)).filter(|message| !message.is_empty());
        let exit_code = ended.map(|ended| ended.exit_code);
        (Kind::Crash { exit_code }, message.or(reason).unwrap_or_default())
    })
}

fn was_short(run: &ContainerStateTerminated) -> bool {
    let (started, finished) = (at(run.started_at.as_ref()), at(run.finished_at.as_ref()));
    // One that never ran was started at the beginning of time.
    started.is_some_and(|started| started.is_zero())
        || started
            .zip(finished)
            .is_some_and(|(started, finished)| finished.saturating_sub(started) < CRASH_RUN_MAX)
}

fn at(time: Option<&Time>) -> Option<Duration> {
    time.map(|time| clock::since_unix_epoch(time.0))
}

/// A pod without a node, or on one that does not get its volumes and network ready. Either is part of an ordinary start.
fn no_place(status: &PodStatus, now: Duration) -> Option<Trouble> {
    let fails = |type_: &str| {
        let mut conditions = status.conditions.iter().flatten();
        conditions.find(|condition| condition.type_ == type_ && condition.status == "False")
    };
    let told = |kind, condition: &PodCondition, text: &str| {
        let since = at(condition.last_transition_time.as_ref()).unwrap_or_default();
        Trouble::new(kind, text, since + LONG, now)
    };
    if let Some(condition) = fails("PodScheduled") {
        let reason = condition.reason.as_deref().unwrap_or("PodScheduled is False");
        let message = condition.message.as_deref().unwrap_or_default();
        return Some(told(Kind::Schedule, condition, &colon(reason, message)));
    }
    // The condition never has a message.
    fails("PodReadyToStartContainers").map(|condition| told(Kind::Prepare, condition, "ContainerCreating"))
}

#[cfg(test)]
mod tests;
