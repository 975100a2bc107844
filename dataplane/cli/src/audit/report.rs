//! The report of an audit, for people and as JSON. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use certeus_ledger::audit::{Finding, Report, RowCounts};
use serde_json::json;

use super::Effort;
use super::progress::span;

/// For people.
pub(super) fn text(report: &Report, effort: Effort) -> String {
    let Report { ledger, origin, events, rows, confirmed, root, checkpoints, findings } = report;
    let RowCounts { rehashed, payload_bytes, erased, .. } = *rows;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut line = |label: &str, value: String| {
        let _infallible = writeln!(text, "{label:<13} {value}");
    };
    line("ledger", format!("{ledger}, log {origin}"));
    line("events", format!("{events}"));
    line("re-hashed", format!("{rehashed} events, {payload_bytes} bytes of payload"));
    if erased > 0 {
        line("erased", format!("{erased} events, on record: their log entries stand for them"));
    }
    archived(rows, &mut line);
    line("signed", format!("{confirmed} events are confirmed by {checkpoints} checkpoints compared with"));
    if *confirmed < *events {
        let unsigned = events - confirmed;
        line("not signed", format!("{unsigned} events after them agree with their log entries only"));
    }
    line("root", format!("{root} of all {events} events"));
    let Effort { elapsed, cpu, rehashed } = effort;
    let rate = |time: Duration| rehashed as f64 / time.as_secs_f64().max(0.001);
    line(
        "took",
        format!("{}, {:.0} events/s, {:.0} for each core in use", span(elapsed), rate(elapsed), rate(cpu)),
    );
    line("findings", format!("{}", findings.count()));
    for finding in findings.kept() {
        let _infallible = writeln!(text, "  {finding}");
    }
    let more = findings.count() - findings.kept().len() as u64;
    if more > 0 {
        let _infallible = writeln!(text, "  and {more} more");
    }
    text
}

/// What was done of archived events.
fn archived(rows: &RowCounts, line: &mut impl FnMut(&str, String)) {
    let RowCounts { archived, archived_rehashed, archived_payload_bytes, archived_erased, .. } = *rows;
    if archived_rehashed > 0 {
        let what = format!(
            "{archived_rehashed} events, re-hashed from their files, {archived_payload_bytes} bytes of payload"
        );
        line("archived", what);
    }
    if archived_erased > 0 {
        line("", format!("{archived_erased} erased events, on record: their log entries stand for them"));
    }
    let unseen = rows.archived_unseen();
    if unseen > 0 {
        let label = if unseen < archived { "" } else { "archived" };
        line(label, format!("{unseen} events, NOT re-hashed: only their log entries were looked at"));
    }
}

/// For programs.
pub(super) fn json(report: &Report, effort: Effort) -> String {
    let Report { ledger, origin, events, rows, confirmed, root, checkpoints, findings } = report;
    let RowCounts {
        rehashed,
        payload_bytes,
        erased,
        archived,
        archived_rehashed,
        archived_payload_bytes,
        archived_erased,
    } = *rows;
    let finding = |one: &Finding| {
        json!({
            "kind": one.kind.name(),
            "first_index": one.indexes.map(|(first, _)| first),
            "last_index": one.indexes.map(|(_, last)| last),
            "id": one.id,
            "detail": one.detail,
        })
    };
    let json = json!({
        "clean": findings.count() == 0,
        "complete": rows.archived_unseen() == 0,
        "ledger": ledger,
        "origin": origin,
        "events": events,
        "rehashed": rehashed,
        "payload_bytes": payload_bytes,
        "erased": erased,
        "archived": archived,
        "archived_rehashed": archived_rehashed,
        "archived_payload_bytes": archived_payload_bytes,
        "archived_erased": archived_erased,
        "archived_not_rehashed": rows.archived_unseen(),
        "confirmed": confirmed,
        "checkpoints": checkpoints,
        "root": root.to_string(),
        "elapsed_seconds": effort.elapsed.as_secs_f64(),
        "cpu_seconds": effort.cpu.as_secs_f64(),
        "finding_count": findings.count(),
        "findings": findings.kept().iter().map(finding).collect::<Vec<_>>(),
    });
    format!("{json}\n")
}
