//! What was verified, as lines for people and as JSON for programs. Pure.

use std::fmt;

use certeus_ledger::envelope::EnvelopeHead;
use certeus_tlog::note::Algorithm;
use serde_json::{Value, json};

use super::Error;
use super::trust::{Opened, Signer};
use crate::input;

/// What was verified.
#[derive(Debug)]
pub(crate) enum Report {
    /// An event is in the log.
    Event(EventReport),
    /// A checkpoint is to be believed.
    Checkpoint(Opened),
    /// The second checkpoint follows from the first.
    Consistency { old: Opened, new: Opened },
}

/// An event that is in the log.
#[derive(Debug)]
pub(crate) struct EventReport {
    index: u64,
    ledger: String,
    id: String,
    kind: String,
    timestamp: String,
    producer: Option<(String, u32, u64)>,
    encrypted: bool,
    opened: Opened,
}

impl EventReport {
    pub(super) fn new(index: u64, head: &EnvelopeHead<'_>, opened: Opened) -> Self {
        let EnvelopeHead { ledger, id, kind, time, producer, content_type: _, key_id } = head;
        Self {
            index,
            ledger: (*ledger).to_owned(),
            id: id.to_string(),
            kind: (*kind).to_owned(),
            timestamp: time.to_string(),
            producer: producer.map(|place| (place.id.to_owned(), place.epoch, place.sequence)),
            encrypted: !key_id.is_empty(),
            opened,
        }
    }
}

impl Report {
    /// As one JSON object.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Event(event) => {
                let EventReport { index, ledger, id, kind, timestamp, producer, encrypted, opened } = event;
                let producer = producer
                    .as_ref()
                    .map(|(id, epoch, sequence)| json!({ "id": id, "epoch": epoch, "sequence": sequence }));
                json!({
                    "verified": true,
                    "event": {
                        "ledger": ledger, "index": index, "id": id, "type": kind, "timestamp": timestamp,
                        "producer": producer, "encrypted": encrypted,
                    },
                    "checkpoint": opened_json(opened),
                })
            }
            Self::Checkpoint(opened) => json!({ "verified": true, "checkpoint": opened_json(opened) }),
            Self::Consistency { old, new } => {
                json!({ "verified": true, "old": opened_json(old), "new": opened_json(new) })
            }
        }
    }
}

/// An error as one JSON object.
pub(super) fn error_json(error: &Error) -> Value {
    json!({ "verified": false, "reason": error.reason(), "detail": input::chain(error) })
}

fn opened_json(opened: &Opened) -> Value {
    let signer = |signer: &Signer| {
        json!({
            "key": key_name(signer), "algorithm": algorithm_name(signer.algorithm), "time": signer.time,
        })
    };
    let checkpoint = &opened.checkpoint;
    json!({
        "origin": checkpoint.origin(), "size": checkpoint.size(), "root": checkpoint.root().to_string(),
        "signed_by": opened.signers.iter().map(signer).collect::<Vec<_>>(),
        "witnessed_by": opened.witnesses.iter().map(signer).collect::<Vec<_>>(),
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(event) => {
                let EventReport { index, ledger, id, kind, timestamp, producer, encrypted, opened } = event;
                writeln!(f, "verified: event {index} of the ledger {ledger:?} is in the log")?;
                writeln!(f, "  id         {id}")?;
                writeln!(f, "  type       {kind}")?;
                writeln!(f, "  timestamp  {timestamp}")?;
                if let Some((id, epoch, sequence)) = producer {
                    writeln!(f, "  producer   {id}, epoch {epoch}, sequence {sequence}")?;
                }
                if *encrypted {
                    writeln!(f, "  fields     encrypted before they were logged")?;
                }
                write_opened(f, opened)
            }
            Self::Checkpoint(opened) => {
                writeln!(f, "verified: a checkpoint of {} events", opened.checkpoint.size())?;
                write_opened(f, opened)
            }
            Self::Consistency { old, new } => {
                let (old, size) = (old.checkpoint.size(), new.checkpoint.size());
                if old == size {
                    writeln!(f, "verified: both checkpoints are of the same {size} events")?;
                } else {
                    writeln!(
                        f,
                        "verified: the log of {size} events begins with the log of {old}, unchanged"
                    )?;
                }
                write_opened(f, new)
            }
        }
    }
}

fn write_opened(f: &mut fmt::Formatter<'_>, opened: &Opened) -> fmt::Result {
    let checkpoint = &opened.checkpoint;
    writeln!(f, "  log        {}", checkpoint.origin())?;
    writeln!(f, "  log size   {}", checkpoint.size())?;
    writeln!(f, "  root       {}", checkpoint.root())?;
    for (label, signers) in [("signed by ", &opened.signers), ("witness   ", &opened.witnesses)] {
        for signer in signers {
            let algorithm = algorithm_name(signer.algorithm);
            write!(f, "  {label} {} ({algorithm}", key_name(signer))?;
            match signer.time.and_then(|time| i64::try_from(time).ok()).map(jiff::Timestamp::from_second) {
                Some(Ok(time)) => writeln!(f, ", {time})")?,
                Some(Err(_)) | None => writeln!(f, ", without a time)")?,
            }
        }
    }
    Ok(())
}

fn key_name(signer: &Signer) -> String {
    format!("{}+{:08x}", signer.name, signer.key_id)
}

fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Ed25519 => "ed25519",
        Algorithm::CosignatureV1 => "cosignature/v1",
        Algorithm::MlDsa44 => "ml-dsa-44",
    }
}
