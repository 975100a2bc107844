//! Logs as JSON lines on standard error, and their level, which can be changed while the process runs.

use std::io;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Longest filter that is taken; a few dozen directives.
pub(crate) const FILTER_BYTES_MAX: usize = 1024;

/// Why a level cannot be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "{0:?} is no log level: use error, warn, info, debug, trace, or directives such as info,kube=debug"
    )]
    Filter(String),
    #[error("logging is set up already")]
    Installed(#[source] TryInitError),
    #[error("logging has ended")]
    Gone(#[source] reload::Error),
}

/// The level of the running process.
#[derive(Clone)]
pub(crate) struct LogLevel {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl LogLevel {
    /// Starts logging, once per process.
    pub(crate) fn install(level: &str) -> Result<Self, Error> {
        let (filter, handle) = reload::Layer::new(parse(level)?);
        let lines = fmt::layer().json().flatten_event(true).with_writer(io::stderr);
        tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(Error::Installed)?;
        Ok(Self { filter: handle })
    }

    pub(crate) fn set(&self, level: &str) -> Result<(), Error> {
        self.filter.reload(parse(level)?).map_err(Error::Gone)
    }

    pub(crate) fn current(&self) -> Result<String, Error> {
        self.filter.with_current(ToString::to_string).map_err(Error::Gone)
    }
}

fn parse(level: &str) -> Result<EnvFilter, Error> {
    let refused = || Error::Filter(level.chars().take(80).collect());
    // The parser takes any word for a target, and an empty text for "nothing".
    let sound = |directive: &str| {
        let level = directive.rsplit('=').next().unwrap_or(directive);
        ["error", "warn", "info", "debug", "trace", "off"]
            .contains(&level.trim().to_ascii_lowercase().as_str())
    };
    if level.len() > FILTER_BYTES_MAX || !level.split(',').all(sound) {
        return Err(refused());
    }
    EnvFilter::try_new(level).map_err(|_unreadable| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_levels_are_levels() {
        for good in ["info", "DEBUG", "info,kube=debug", "off", "warn,certeus_operator=trace"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "info,", "kube=", "info,kube", &"info,".repeat(300)] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
