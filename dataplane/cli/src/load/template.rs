//! Made-up events: one request body, built once, in which time and sequence number are patched for every request.
//!
//! Owns the body's memory. Never reads a clock and never allocates after the start, as long as the previous body has
//! been let go of by then: generation must cost next to nothing beside the server that shares the machine.
//! Every event is a JSON object of exactly the asked size, one per line. The sequence number is a JSON number padded
//! on the left with spaces (JSON forbids leading zeros, and allows space), so it always has the same place.

use std::io::Write;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;

/// Digits and padding of the sequence number: enough for a million million events.
const SEQ_WIDTH: usize = 12;
/// Sequence numbers end before this one.
pub(crate) const SEQ_END: u64 = 10_u64.pow(12);
/// Length of `2026-01-01T00:00:00.000000Z`, true for the years 0 to 9999.
const TIMESTAMP_WIDTH: usize = 27;
const TIMESTAMP_AT: usize = r#"{"timestamp":""#.len();

/// Type, channel and region of the made-up events, in turn.
const KINDS: [(&str, &str, &str); 8] = [
    ("payment.authorized", "web", "eu-central-1"),
    ("payment.captured", "mobile", "eu-west-1"),
    ("payment.refunded", "support", "eu-central-1"),
    ("order.placed", "mobile", "us-east-1"),
    ("order.shipped", "warehouse", "us-east-1"),
    ("account.opened", "web", "ap-southeast-2"),
    ("account.limit.changed", "backoffice", "eu-west-1"),
    ("login.succeeded", "mobile", "eu-north-1"),
];
/// What the notes are written with, so that they compress like text.
const WORDS: [&str; 16] = [
    "invoice",
    "settled",
    "by",
    "transfer",
    "customer",
    "confirmed",
    "address",
    "second",
    "attempt",
    "after",
    "review",
    "limit",
    "approved",
    "card",
    "present",
    "retry",
];

/// A patched-in-place body of `batch` events.
#[derive(Debug)]
pub(crate) struct Template {
    body: Bytes,
    event_size: usize,
    seq_at: usize,
}

/// The least size of an event of a run, in bytes. The size of an event's fields depends on its kind alone.
pub(crate) fn event_size_min(run_id: &str) -> usize {
    KINDS.iter().enumerate().map(|(i, _)| skeleton(run_id, i).0.len()).max().unwrap_or(0) + 2
}

/// The event at a position up to its note, and where its sequence number goes.
fn skeleton(run_id: &str, position: usize) -> (String, usize) {
    let (kind, channel, region) = KINDS[position % KINDS.len()];
    // Fixed multipliers spread the values without a random source, so equal settings give equal events.
    let account = position.wrapping_mul(2_654_435_761) % 0x100_0000;
    let amount = 100_000 + position.wrapping_mul(7_919) % 900_000;
    let timestamp = "0".repeat(TIMESTAMP_WIDTH);
    let head = format!(r#"{{"timestamp":"{timestamp}","run":"{run_id}","seq":"#);
    let seq_at = head.len();
    let tail = format!(
        r#","type":"{kind}","account":"acct-{account:06x}","amount":"{}.{:02}","currency":"EUR","channel":"{channel}","region":"{region}","note":""#,
        amount / 100,
        amount % 100,
    );
    (format!("{head}{:>SEQ_WIDTH$}{tail}", 0), seq_at)
}

impl Template {
    /// `event_size` must be at least [`event_size_min`] of the run; `run_id` must not need escaping in JSON.
    pub(crate) fn new(run_id: &str, event_size: usize, batch: usize) -> Self {
        assert!(event_size >= event_size_min(run_id), "events are too small for their fields");
        let mut body = String::with_capacity(batch * (event_size + 1));
        let mut seq_at = 0;
        for position in 0..batch {
            let (head, at) = skeleton(run_id, position);
            seq_at = at;
            body.push_str(&head);
            let note_end = position * (event_size + 1) + event_size - 2;
            let mut word = position;
            while body.len() < note_end {
                body.push_str(WORDS[word % WORDS.len()]);
                body.push(' ');
                word = word.wrapping_mul(5).wrapping_add(3);
            }
            body.truncate(note_end);
            body.push_str("\"}\n");
        }
        Self { body: Bytes::from(body), event_size, seq_at }
    }

    /// The body of `count` events from `first_seq` on. It shares the template's memory: the next call is cheap
    /// only when this body has been dropped, and correct in any case.
    pub(crate) fn body(&mut self, first_seq: u64, count: usize, now: Timestamp) -> Bytes {
        let mut body = match std::mem::take(&mut self.body).try_into_mut() {
            Ok(unique) => unique,
            Err(shared) => BytesMut::from(&shared[..]),
        };
        let mut timestamp = [b'0'; TIMESTAMP_WIDTH];
        let written = write!(&mut timestamp[..], "{now:.6}");
        assert!(written.is_ok(), "timestamps of four-digit years fit");
        let line = self.event_size + 1;
        for (seq, event) in (first_seq..).zip(body.chunks_exact_mut(line).take(count)) {
            event[TIMESTAMP_AT..TIMESTAMP_AT + TIMESTAMP_WIDTH].copy_from_slice(&timestamp);
            write_padded(&mut event[self.seq_at..self.seq_at + SEQ_WIDTH], seq);
        }
        self.body = body.freeze();
        self.body.slice(..count * line - 1)
    }
}

/// Writes a number into a field, at its right end, with spaces before it.
fn write_padded(field: &mut [u8], number: u64) {
    let mut rest = number;
    for (place, byte) in field.iter_mut().rev().enumerate() {
        *byte = if rest == 0 && place > 0 { b' ' } else { b"0123456789"[usize::from((rest % 10) as u8)] };
        rest /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(run_id: &str, event_size: usize, batch: usize, first_seq: u64, count: usize) {
        let now: Timestamp = "2026-01-02T03:04:05.000007Z".parse().unwrap();
        let mut template = Template::new(run_id, event_size, batch);
        // A full batch before: nothing of it may be left over.
        template.body(SEQ_END - batch as u64, batch, now);
        let body = template.body(first_seq, count, now);
        let lines: Vec<&[u8]> = body.split(|byte| *byte == b'\n').collect();
        assert_eq!(lines.len(), count);
        for (seq, line) in (first_seq..).zip(lines) {
            assert_eq!(line.len(), event_size);
            let event: serde_json::Value = serde_json::from_slice(line).unwrap();
            assert_eq!(event["seq"], seq);
            assert_eq!(event["run"], run_id);
            assert_eq!(event["timestamp"], "2026-01-02T03:04:05.000007Z");
            assert!(KINDS.iter().any(|(kind, _, _)| event["type"] == *kind));
        }
    }

    #[test]
    fn the_least_size_and_the_largest_number_fit() {
        check("r", event_size_min("r"), 16, SEQ_END - 16, 16);
        check("r", event_size_min("r"), 1, 0, 1);
    }

    proptest! {
        #[test]
        fn events_are_valid_json_of_the_asked_size(
            run_id in "[A-Za-z0-9._-]{1,64}", extra in 0_usize..2000, batch in 1_usize..40,
            first_seq in 0..SEQ_END - 40, part in 1_usize..40,
        ) {
            check(&run_id, event_size_min(&run_id) + extra, batch, first_seq, part.min(batch));
        }
    }

    #[test]
    fn memory_is_reused_when_free_and_left_alone_when_not() {
        let now = Timestamp::UNIX_EPOCH;
        let mut template = Template::new("r", 300, 10);
        let first = template.body(0, 10, now);
        let place = first.as_ptr();
        drop(first);
        let second = template.body(10, 10, now);
        assert_eq!(second.as_ptr(), place);

        let held = second.to_vec();
        let third = template.body(20, 10, now);
        assert_eq!(second, held);
        assert_ne!(third.as_ptr(), place);
    }
}
