//! Logs as JSON lines on standard error, and their level, which can be changed while the process runs.

use std::io;
use std::str::FromStr;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Longest filter that is taken; a few dozen directives.
pub(crate) const FILTER_BYTES_MAX: usize = 1024;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Why the level cannot be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("logging is set up already")]
    Installed(#[source] TryInitError),
    #[error("logging has ended")]
    Gone(#[source] reload::Error),
}

/// A level or directives that can be used.
#[derive(Clone, Debug)]
pub(crate) struct LogFilter(String);

/// A text that is none. Whoever shows it shows the text.
#[derive(Debug, thiserror::Error)]
#[error("a log level is {}, or directives such as info,certeus_operator=debug", LEVELS.join(", "))]
pub(crate) struct NoFilter;

impl FromStr for LogFilter {
    type Err = NoFilter;

    fn from_str(text: &str) -> Result<Self, NoFilter> {
        // The parser takes any word for a target, and an empty text for "nothing".
        let sound = |directive: &str| {
            let level = directive.rsplit('=').next().unwrap_or(directive);
            LEVELS.contains(&level.trim().to_ascii_lowercase().as_str())
        };
        let sound = text.len() <= FILTER_BYTES_MAX && text.split(',').all(sound);
        let read = sound.then(|| EnvFilter::try_new(text));
        read.and_then(Result::ok).map(|_filter| Self(text.to_owned())).ok_or(NoFilter)
    }
}

impl LogFilter {
    fn filter(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }
}

/// The level of the running process.
#[derive(Clone)]
pub(crate) struct LogLevel {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl LogLevel {
    /// Starts logging, once per process.
    pub(crate) fn install(level: &LogFilter) -> Result<Self, Error> {
        let (filter, handle) = reload::Layer::new(level.filter());
        let lines = fmt::layer().json().flatten_event(true).with_writer(io::stderr);
        let news = filter_fn(|metadata| !is_told_by_us(metadata));
        let layers = tracing_subscriber::registry().with(filter).with(news).with(lines);
        layers.try_init().map_err(Error::Installed)?;
        Ok(Self { filter: handle })
    }

    pub(crate) fn set(&self, level: &LogFilter) -> Result<(), Error> {
        self.filter.reload(level.filter()).map_err(Error::Gone)
    }

    pub(crate) fn current(&self) -> Result<String, Error> {
        self.filter.with_current(ToString::to_string).map_err(Error::Gone)
    }
}

/// What the client warns of it also returns as an error, and whoever gets that tells it in one line and not too often. The
/// client's own lines come with each try, as Rust structures, and may hold whole objects.
fn is_told_by_us(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let client = target.starts_with("kube_client::client") && !target.starts_with("kube_client::client::tls");
    match *metadata.level() {
        Level::ERROR => client,
        Level::WARN => client || target.starts_with("kube_runtime::watcher"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_levels_are_levels() {
        for good in ["info", "DEBUG", "info,kube=debug", "off", "warn,certeus_operator=trace"] {
            assert!(good.parse::<LogFilter>().is_ok(), "{good}");
        }
        for bad in ["", "loud", "info,", "kube=", "info,kube", &"info,".repeat(300)] {
            assert!(bad.parse::<LogFilter>().is_err(), "{bad}");
        }
    }
}
