//! Checks that an event is in a log: rebuilds its log entry from its bytes, and follows the proof to the signed root.
//!
//! Pure. The proof's `extra` is `0x01 ‖ salt (32) ‖ head of the envelope` (docs/formats/envelope.md). Nothing signs it, and
//! nothing needs to: with a wrong one the entry comes out wrong.

use certeus_ledger::envelope::{Envelope, HeadError};
use certeus_tlog::leaf_hash;
use certeus_tlog::proof::verify_inclusion;
use certeus_tlog::tlog_proof::TlogProof;

use super::Error;
use super::report::{EventReport, Report};
use super::trust::{Refusal, Trust};

const EXTRA_VERSION: u8 = 1;
const SALT_BYTES: usize = 32;

/// Why a proof's `extra` does not lead to a log entry.
#[derive(Debug, thiserror::Error)]
enum ExtraError {
    #[error("its line `extra` is missing, so the log entry cannot be rebuilt")]
    Missing,
    #[error("its line `extra` has version {0}, and only {EXTRA_VERSION} is known")]
    Version(u8),
    #[error("its line `extra` ends too early")]
    Truncated,
    #[error("its line `extra` holds no envelope")]
    Head(#[source] HeadError),
}

/// Checks an event's bytes against a proof file.
pub(super) fn check(payload: &[u8], proof: &[u8], trust: &Trust) -> Result<Report, Error> {
    let malformed = |error: ExtraError| Error::malformed("the proof", error);
    let proof = TlogProof::parse(proof).map_err(|error| Error::malformed("the proof", error))?;
    let (version, rest) = proof.extra.split_first().ok_or_else(|| malformed(ExtraError::Missing))?;
    if *version != EXTRA_VERSION {
        return Err(malformed(ExtraError::Version(*version)));
    }
    let (salt, head) =
        rest.split_first_chunk::<SALT_BYTES>().ok_or_else(|| malformed(ExtraError::Truncated))?;
    let (head, payload_len) =
        Envelope::read_head(head).map_err(|error| malformed(ExtraError::Head(error)))?;

    let opened = trust.open(&proof.checkpoint)?;
    let (index, size) = (proof.index, opened.checkpoint.size());
    if size == 0 {
        return Err(Refusal::EmptyLog.into());
    }
    if index >= size {
        return Err(Refusal::IndexBeyond { index, size }.into());
    }
    if payload.len() != payload_len {
        return Err(length_refusal(payload, payload_len).into());
    }
    let entry = Envelope { head, payload }.entry(salt, &mut Vec::new());
    verify_inclusion(index, size, &leaf_hash(&entry), &proof.hashes, &opened.checkpoint.root())
        .map_err(Refusal::Inclusion)?;
    Ok(Report::Event(EventReport::new(index, &head, opened)))
}

/// Says what an editor or a shell most likely did.
fn length_refusal(payload: &[u8], want: usize) -> Refusal {
    let got = payload.len();
    let hint = match payload.get(want..) {
        Some(b"\n" | b"\r\n") => ": there is a line feed at its end which does not belong to it",
        _ => "",
    };
    Refusal::PayloadLength { got, want, hint }
}
