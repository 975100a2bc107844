//! Kubernetes Events: how one is formed and published. Never so important that something else fails for it.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder};

use super::telemetry::Metrics;
use crate::errors::chain;

/// Kubernetes takes no longer note in an event.
const NOTE_BYTES_MAX: usize = 1000;

/// An event, its note cut to what Kubernetes takes.
pub(crate) fn event(type_: EventType, reason: &str, action: &str, note: &str) -> Event {
    let note = note[..note.floor_char_boundary(NOTE_BYTES_MAX)].to_owned();
    Event { type_, reason: reason.to_owned(), note: Some(note), action: action.to_owned(), secondary: None }
}

/// Publishes an event about an object; one that is lost is counted.
///
/// The recorder takes events of one reason about one reference for repetitions, and shows the first one's note for minutes: a
/// reference with a `resourceVersion` keeps them apart.
pub(crate) async fn publish(recorder: &Recorder, metrics: &Metrics, event: &Event, about: &ObjectReference) {
    metrics.writes.with_label_values(&["Event", "create"]).inc();
    if let Err(error) = recorder.publish(event, about).await {
        metrics.events_lost.inc();
        tracing::debug!(error = chain(&error), "a Kubernetes Event could not be published");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_has_no_more_bytes_than_kubernetes_takes() {
        let note = |text: &str| event(EventType::Normal, "Reason", "Action", text).note.unwrap();
        assert_eq!(note("short"), "short");
        assert_eq!(note(&"é".repeat(600)), "é".repeat(500));
    }
}
