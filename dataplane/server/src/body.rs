//! Reads a request body whole, within limits of size, time and memory.
//!
//! Owns decompression and the budget of bytes that requests may hold from their first byte to their reply. Never
//! buffers past either limit: a client that sends more than fits is answered, not served slowly.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::problem::{Code, Error};

/// Bytes of a request body, before and after decompression; fewer where the queue could not hold as many.
pub(crate) const BODY_BYTES_MAX: usize = 32 << 20;
/// A body has this long to arrive, so that a slow client does not hold memory for ever.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Memory is set aside as a body arrives, not as it is announced; this much at first.
const FIRST_CAPACITY: usize = 64 << 10;
/// A body up to this size is copied out of the connection's read buffer, which it would otherwise keep alive while it waits.
const COPIED_BYTES_MAX: usize = 64 << 10;
/// zstd frames may ask for a window of at most this many bytes, as a power of two.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;

/// Bytes that all requests together may hold.
#[derive(Debug, Clone)]
pub(crate) struct MemoryBudget(Arc<Semaphore>);

impl MemoryBudget {
    /// A budget of so many bytes.
    #[must_use]
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// Sets bytes aside, or says at once that there are none.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        Arc::clone(&self.0).try_acquire_many_owned(permits).map_err(|error| match error {
            TryAcquireError::NoPermits => {
                Error::new(Code::Overloaded, "requests in progress hold all the memory set aside for them")
            }
            TryAcquireError::Closed => Error::new(Code::Internal, "the memory budget is closed"),
        })
    }
}

/// A body and the memory it holds.
pub(crate) struct Received {
    /// The uncompressed bytes.
    pub(crate) bytes: Bytes,
    /// Given back to the budget when the request is answered.
    pub(crate) held: OwnedSemaphorePermit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

impl Encoding {
    fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
        let encoding = values.next().map_or(&b"identity"[..], HeaderValue::as_bytes).to_ascii_lowercase();
        match (&encoding[..], values.next()) {
            (b"identity", None) => Ok(Self::Identity),
            (b"gzip" | b"x-gzip", None) => Ok(Self::Gzip),
            (b"zstd", None) => Ok(Self::Zstd),
            _ => Err(Error::new(Code::UnsupportedMediaType, "Content-Encoding may be gzip or zstd")),
        }
    }
}

/// Reads and decompresses a body.
///
/// # Errors
/// When it is too large, too slow, cut short, wrongly compressed, or does not fit into the budget.
pub(crate) async fn receive(
    headers: &HeaderMap,
    body: Body,
    max: usize,
    budget: &MemoryBudget,
) -> Result<Received, Error> {
    let encoding = Encoding::of(headers)?;
    let arrived =
        tokio::time::timeout(BODY_TIMEOUT, collect(body, max, budget)).await.map_err(|_elapsed| {
            Error::new(
                Code::RequestTimeout,
                format!("the body took longer than {} s", BODY_TIMEOUT.as_secs()),
            )
        })??;
    if encoding == Encoding::Identity {
        return Ok(arrived);
    }
    // Milliseconds of work: let other tasks go on meanwhile.
    tokio::task::block_in_place(|| decompress(encoding, &arrived.bytes, max, budget))
}

fn too_large(max: usize) -> Error {
    Error::new(Code::TooLarge, format!("a request body has at most {max} bytes, also when uncompressed"))
}

async fn collect(mut body: Body, max: usize, budget: &MemoryBudget) -> Result<Received, Error> {
    let mut held = budget.reserve(0)?;
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Error::new(Code::InvalidRequest, format!("the body ended early or cannot be read: {error}"))
        })?;
        // Trailers mean nothing here.
        let Ok(data) = frame.into_data() else { continue };
        let length = first.len() + rest.len() + data.len();
        if length > max {
            return Err(too_large(max));
        }
        held.merge(budget.reserve(data.len())?);
        // A large body that comes in one piece needs no copy.
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            if rest.is_empty() {
                rest.reserve(FIRST_CAPACITY.max(length * 2));
                rest.extend_from_slice(&first);
                first = Bytes::new();
            }
            rest.extend_from_slice(&data);
        }
    }
    let bytes = match (rest.is_empty(), first.len()) {
        (false, _) => rest.freeze(),
        (true, 0..=COPIED_BYTES_MAX) => Bytes::copy_from_slice(&first),
        (true, _) => first,
    };
    Ok(Received { bytes, held })
}

fn decompress(
    encoding: Encoding,
    compressed: &[u8],
    max: usize,
    budget: &MemoryBudget,
) -> Result<Received, Error> {
    let broken = |error: &io::Error| {
        Error::new(Code::InvalidRequest, format!("the compressed body is broken or cut short: {error}"))
    };
    match encoding {
        Encoding::Identity => read_bounded(compressed, max, budget, broken),
        Encoding::Gzip => read_bounded(flate2::read::MultiGzDecoder::new(compressed), max, budget, broken),
        Encoding::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(compressed).map_err(|error| broken(&error))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|error| broken(&error))?;
            read_bounded(decoder, max, budget, broken)
        }
    }
}

/// Reads to the end, piece by piece, so that a small body that unpacks to gigabytes stops at the limit.
fn read_bounded(
    mut source: impl Read,
    max: usize,
    budget: &MemoryBudget,
    broken: impl Fn(&io::Error) -> Error,
) -> Result<Received, Error> {
    const PIECE: usize = 256 << 10;
    let mut held = budget.reserve(0)?;
    let mut bytes = Vec::new();
    loop {
        let read =
            source.by_ref().take(PIECE as u64).read_to_end(&mut bytes).map_err(|error| broken(&error))?;
        if read == 0 {
            return Ok(Received { bytes: bytes.into(), held });
        }
        if bytes.len() > max {
            return Err(too_large(max));
        }
        held.merge(budget.reserve(read)?);
    }
}

/// The bytes of a reply, which give back their part of the budget when they have been sent.
struct Held {
    bytes: Vec<u8>,
    _held: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A reply that counts against the budget until it is sent.
///
/// # Errors
/// When the budget is spent: clients that do not read their replies must not fill the memory.
pub(crate) fn reply(bytes: Vec<u8>, budget: &MemoryBudget) -> Result<Bytes, Error> {
    let held = budget.reserve(bytes.len())?;
    Ok(Bytes::from_owner(Held { bytes, _held: held }))
}
