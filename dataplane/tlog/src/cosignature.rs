//! Cosignatures (C2SP `tlog-cosignature`): what a witness, or a log with an ML-DSA-44 key, signs of a checkpoint.
//!
//! Owns the signed messages, which name the time, and their limits. A cosignature's line is a [`crate::note::Signature`] whose
//! bytes begin with the time; [`crate::note::SignedNote::verify`] checks it like any other and returns that time.

use crate::checkpoint::{Checkpoint, CheckpointError};

/// Length of the time at the start of a cosignature: seconds since the Unix epoch, big-endian.
pub const TIME_BYTES: usize = 8;
/// The latest time that may be signed.
pub const TIME_MAX: u64 = i64::MAX as u64;

const V1_HEADER: &str = "cosignature/v1\n";
const SUBTREE_LABEL: &[u8; 12] = b"subtree/v1\n\0";

/// Why there is no message to sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Above [`TIME_MAX`].
    #[error("time {0} is above 2^63 - 1 seconds")]
    Time(u64),
    /// Cosignatures are of checkpoints.
    #[error("the text is not a checkpoint")]
    Checkpoint(#[from] CheckpointError),
    /// The message has one byte for the length of a name.
    #[error("the {0} has more than 255 bytes")]
    TooLong(&'static str),
}

/// What `cosignature/v1` (type 0x04) signs: time, and the whole text of the checkpoint.
pub(crate) fn v1_message(text: &str, time: u64) -> Result<Vec<u8>, MessageError> {
    check_time(time)?;
    Checkpoint::from_text(text)?;
    Ok(format!("{V1_HEADER}time {time}\n{text}").into_bytes())
}

/// What an ML-DSA-44 cosignature (type 0x06) signs of a checkpoint: the structure `cosigned_message`. Unlike `cosignature/v1`
/// it names the cosigner, and says nothing of the checkpoint's extension lines.
pub(crate) fn ml_dsa_44_message(cosigner: &str, text: &str, time: u64) -> Result<Vec<u8>, MessageError> {
    check_time(time)?;
    let checkpoint = Checkpoint::from_text(text)?;
    let mut message = SUBTREE_LABEL.to_vec();
    push_name(&mut message, "cosigner's name", cosigner)?;
    message.extend(time.to_be_bytes());
    push_name(&mut message, "log's origin", checkpoint.origin())?;
    // A checkpoint is the subtree from leaf 0 to its size.
    message.extend(0u64.to_be_bytes());
    message.extend(checkpoint.size().to_be_bytes());
    message.extend(checkpoint.root().as_bytes());
    Ok(message)
}

fn check_time(time: u64) -> Result<(), MessageError> {
    if time > TIME_MAX { Err(MessageError::Time(time)) } else { Ok(()) }
}

fn push_name(message: &mut Vec<u8>, what: &'static str, name: &str) -> Result<(), MessageError> {
    message.push(u8::try_from(name.len()).map_err(|_| MessageError::TooLong(what))?);
    message.extend(name.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests;
