//! The ledger: takes events, commits them in batches to PostgreSQL, and reads them back.
//!
//! Owns the event envelope, the admission queue, the commit path and the store. Knows nothing of HTTP, of metrics other
//! than its own, or of what runs the process. Promises (the invariants of the design, numbers 1 to 5): what is
//! acknowledged is flushed, stored exactly once and at a fixed index; indexes have no gap and follow commit order; the
//! bytes committed to are the bytes received; what waits is bounded.
//!
//! The way of an event: [`submission`] finds it in the request's bytes, `queue` admits it, `writer` commits it as part
//! of a `commit` batch under an [`id`] that leads back to its row, and `store` reads it and checks it against its [`envelope`].
//! `erasure` destroys a payload and the salt that could confirm a guess of it; `retention` moves old days to an archive.
//! A request that names itself (a [`request::Identity`]) is stored once however often it is sent: `dedup` decides, and the
//! commit's own transaction makes it so.
//! `bundle` is the format of claims with their proofs, and `publication` makes, records and publishes such bundles.
//! Behind the commits, `sealer` extends the Merkle tree and signs it, and `log` serves checkpoints, tiles and proofs.

pub mod audit;
pub mod bundle;
pub mod envelope;
pub mod field;
pub mod id;
pub mod json;
pub mod request;
pub mod submission;
pub mod timestamp;

mod breaker;
mod cases;
mod commit;
mod dedup;
mod erasure;
mod error;
mod health;
mod ledger;
mod log;
mod metrics;
mod postgres;
mod provenance;
mod publication;
mod queue;
mod retention;
mod schema;
mod sealer;
mod session;
mod spool;
mod store;
mod writer;

pub use breaker::BreakerState;
pub use cases::{CaseEvent, CasePage};
pub use certeus_archive::LocationError;
pub use commit::{CommitError, Receipt};
pub use erasure::{EraseError, Erasure, REASON_BYTES_MAX, Reason};
pub use error::Class;
pub use health::Availability;
pub use ledger::{Acknowledged, AppendError, ArchiveConfig, Config, Ledger, StartError, Tasks};
pub use log::{
    Anchor, AnchorError, CaseProofs, EventProof, KeyError, Latest, LogConfig, LogError, LogState,
    ObjectAnchor, Signed, SigningKeys,
};
pub use metrics::Summary;
pub use postgres::{ConfigError, Database};
pub use publication::{PublicationError, Published};
pub use queue::{Depth, QueueConfig, Refusal};
pub use retention::{Retained, RetentionError};
pub use spool::{SpoolCondition, SpoolConfig, SpoolError, SpoolStatus};
pub use store::{ArchiveLocation, Content, Filter, PAGE_EVENTS_MAX, Page, ReadError, Salt, StoredEvent};
