//! `certeus verify`: checks one event, one checkpoint, or that one checkpoint follows from another.
//!
//! This file owns the options, the exit status and the input and output. What is proven, and what refused, is decided by the
//! pure modules below. Never needs the ledger: with files alone it works offline. Read next: `trust.rs`, `event.rs`.

mod consistency;
mod event;
mod report;
mod trust;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use certeus_tlog::note::SignedNote;
use clap::ArgGroup;

use crate::input;
use crate::load::{Endpoint, Span};
use report::Report;
use trust::{Freshness, Refusal, Trust};

/// Lines stay below 98 columns, as clap wraps there.
const AFTER_HELP: &str = "\
What it takes to check an event, each from whom you like; only the key must come from somebody you
trust:
  the event   its bytes as stored, without a line feed at the end
  the proof   a c2sp.org/tlog-proof file; any tool for that format can check it too
  the key     the log's public key, as a line or a file of lines, from its operator

  id=01a1fd17-1ba3-7cee-9ce1-ecb65f900000 url=http://127.0.0.1:8000
  curl -f -H 'Accept: application/octet-stream' -o event $url/v1/ledger/events/$id
  curl -f -o event.proof $url/v1/ledger/events/$id/proof
  certeus verify --event event --proof event.proof --key log.vkey

A log that shows different people different histories is found out by keeping what it signed:
  curl -f -o new.checkpoint $url/log/default/checkpoint
  certeus verify --checkpoint new.checkpoint --key log.vkey --newer-than old.checkpoint
  certeus verify --consistency old.checkpoint new.checkpoint --key log.vkey --log $url/log/default

How old a checkpoint is: Ed25519 signatures of a log carry no time. --newer-than compares with a
checkpoint that you have seen; --max-age needs a signature with a time, which witnesses and
ML-DSA-44 keys make.

Environment:
  CERTEUS_API_KEY  key of the ledger's API, if it wants one (only with http:// addresses)

Exit status:
  0  verified
  1  not verified: what was read does not prove what it should
  2  wrong usage, or an input that cannot be read";

/// The arguments of `certeus verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
#[command(group(ArgGroup::new("subject").required(true).args(["event", "checkpoint", "consistency"])))]
pub(crate) struct Args {
    /// Check the event whose bytes are in this file; '-' is standard input, as everywhere
    #[arg(long, value_name = "FILE", requires = "proof")]
    event: Option<PathBuf>,
    /// The event's proof; with --consistency, the hashes of the consistency proof
    #[arg(long, value_name = "FILE", conflicts_with = "checkpoint")]
    proof: Option<PathBuf>,
    /// Check the signatures of a checkpoint, from a file or an http:// address
    #[arg(long, value_name = "FILE|URL")]
    checkpoint: Option<String>,
    /// Check that the second checkpoint is of the same log as the first, grown or unchanged
    #[arg(long, value_names = ["OLD", "NEW"], num_args = 2)]
    consistency: Option<Vec<String>>,
    /// With --consistency: read what the proof needs from the log at this address
    #[arg(long, value_name = "URL", requires = "consistency", conflicts_with = "proof")]
    log: Option<Endpoint>,
    /// The log's public key, or a file of them; may be given more than once
    #[arg(long, value_name = "KEY|FILE", required = true)]
    key: Vec<String>,
    /// The log's name [default: the name of its keys]
    #[arg(long, value_name = "NAME")]
    origin: Option<String>,
    /// Public key of a witness who must have cosigned, or a file of them; may be given more than once
    #[arg(long, value_name = "KEY|FILE")]
    witness: Vec<String>,
    /// How many of the witnesses must have cosigned [default: all]
    #[arg(long, value_name = "N", requires = "witness")]
    witness_threshold: Option<usize>,
    /// Refuse a checkpoint that is older, by size, than this one
    #[arg(long, value_name = "FILE|URL", conflicts_with = "consistency")]
    newer_than: Option<String>,
    /// Refuse a checkpoint whose newest signature with a time is older, such as 90s or 24h
    #[arg(long, value_name = "TIME")]
    max_age: Option<Span>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Why nothing is verified.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The input is what it should be, and does not prove it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// An input cannot be read.
    #[error(transparent)]
    Input(#[from] input::Error),
    /// An input is not of the format that it should be.
    #[error("{name} is malformed")]
    Malformed { name: String, source: Box<dyn std::error::Error> },
    /// Options that make no sense together.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    fn malformed(name: impl Into<String>, source: impl std::error::Error + 'static) -> Self {
        Self::Malformed { name: name.into(), source: Box::new(source) }
    }

    /// The exit status.
    fn status(&self) -> u8 {
        match self {
            Self::Refused(_) => 1,
            Self::Input(_) | Self::Malformed { .. } | Self::Usage(_) => 2,
        }
    }

    /// Its name in JSON.
    fn reason(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.reason(),
            Self::Input(_) => "unreadable",
            Self::Malformed { .. } => "malformed",
            Self::Usage(_) => "usage",
        }
    }
}

/// Runs the command, prints the outcome, and gives the exit status.
pub(crate) fn run(args: &Args) -> u8 {
    let (text, status) = match verify(args) {
        Ok(report) if args.json => (format!("{}\n", report.to_json()), 0),
        Ok(report) => (report.to_string(), 0),
        Err(error) if args.json => (format!("{}\n", report::error_json(&error)), error.status()),
        Err(error) => {
            let not = if error.status() == 1 { "not verified" } else { "error" };
            eprintln!("{not}: {}", input::chain(&error));
            return error.status();
        }
    };
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => status,
        // Nobody was told: nothing was verified.
        Err(_closed) => 2,
    }
}

fn verify(args: &Args) -> Result<Report, Error> {
    let trust = trust(args)?;
    if let (Some(event), Some(proof)) = (&args.event, &args.proof) {
        if event == proof {
            return Err(Error::Usage("--event and --proof are the same file".to_owned()));
        }
        let (payload, proof) = (input::read(event)?, input::read(proof)?);
        return event::check(&payload, &proof, &trust);
    }
    if let Some(source) = &args.checkpoint {
        let note = read_note(source)?;
        return Ok(Report::Checkpoint(trust.open(&note)?));
    }
    let Some([old, new]) = args.consistency.as_deref() else {
        return Err(Error::Usage("nothing to verify".to_owned()));
    };
    // What is old on purpose must not be refused for its age.
    let old = trust.clone().of_any_age().open(&read_note(old)?)?;
    let new = trust.open(&read_note(new)?)?;
    let hashes = match (&args.proof, &args.log) {
        (Some(file), _) => consistency::parse(&input::read(file)?)
            .map_err(|error| Error::malformed(format!("'{}'", file.display()), error))?,
        (None, Some(log)) => consistency::from_log(log, &old.checkpoint, &new.checkpoint)?,
        (None, None) => Vec::new(),
    };
    if hashes.is_empty() && args.proof.is_none() && consistency::needs_proof(&old.checkpoint, &new.checkpoint)
    {
        return Err(Error::Usage("the two sizes differ: give --proof FILE or --log URL as well".to_owned()));
    }
    consistency::check(&old.checkpoint, &new.checkpoint, &hashes)?;
    Ok(Report::Consistency { old, new })
}

fn read_note(source: &str) -> Result<SignedNote, Error> {
    let bytes = input::read_or_fetch(source)?;
    SignedNote::parse(&bytes).map_err(|error| Error::malformed(format!("the checkpoint '{source}'"), error))
}

fn trust(args: &Args) -> Result<Trust, Error> {
    let keys = input::all_keys(&args.key)?;
    let witnesses = input::all_keys(&args.witness)?;
    let origin = input::origin(args.origin.as_deref(), &keys).map_err(Error::Usage)?;
    let threshold = args.witness_threshold.unwrap_or(witnesses.len());
    if threshold > witnesses.len() {
        let text = format!("--witness-threshold is {threshold}, but there are {} witnesses", witnesses.len());
        return Err(Error::Usage(text));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let freshness = args.max_age.map(|max_age| Freshness { max_age: max_age.0, now });
    let trust = Trust { origin, keys, witnesses, threshold, freshness, seen: None };
    let Some(source) = &args.newer_than else { return Ok(trust) };
    let seen = trust.clone().of_any_age().open(&read_note(source)?);
    let seen = seen.map_err(|refusal| Refusal::Seen(Box::new(refusal)))?.checkpoint;
    Ok(Trust { seen: Some(seen), ..trust })
}
