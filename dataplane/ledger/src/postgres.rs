//! Connections to PostgreSQL, and what its errors mean for a commit.
//!
//! Owns connecting (TCP without Nagle's algorithm, TLS as `tls.rs` says when the URL, the certificates or the server ask for it) and the session settings that
//! make "committed" mean "flushed". Never retries: `writer.rs` and `ledger.rs` do.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{AsyncMessage, Client, Config, Error, Notification};
use tokio_postgres_rustls::MakeRustlsConnect;

mod tls;
mod url;

use tls::Trust;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// A peer that does not acknowledge data for this long is gone: the kernel then ends the connection.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);

/// Notifications that wait to be taken.
const NOTIFICATIONS_MAX: usize = 16;

/// Why the configured database cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The URL cannot be read. It is not repeated, since it holds a password.
    #[error("not a PostgreSQL URL such as postgres://user:password@host:5432/database")]
    Url(#[source] Error),
    /// A parameter of the URL has no counterpart here.
    #[error("the parameter {parameter} cannot be used: {instead}")]
    Parameter {
        /// Its name.
        parameter: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// The TLS library refused its settings.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// What is to be trusted is not a list of certificates.
    #[error("must be certificates in PEM (BEGIN CERTIFICATE), of which number {number} cannot be read")]
    Certificates {
        /// Counted from one.
        number: usize,
    },
    /// The certificates would never be looked at.
    #[error("cannot be used with sslmode=disable in the URL: remove one of the two")]
    NoTls,
}

/// How to connect, parsed once.
#[derive(Clone)]
pub struct Database {
    config: Config,
    tls: MakeRustlsConnect,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("hosts", &self.config.get_hosts()).finish_non_exhaustive()
    }
}

impl Database {
    /// From a connection URL.
    ///
    /// `sslmode=require` and `verify-full` check the server's certificate and its host name against the system's store, or
    /// the file in `SSL_CERT_FILE`. Without them TLS is used when the server has it, and, as everywhere with PostgreSQL, the
    /// certificate is not checked.
    ///
    /// # Errors
    /// When the URL cannot be read.
    pub fn from_url(url: &str) -> Result<Self, ConfigError> {
        let mut config = url::parse(url)?;
        config
            .application_name("certeus-dataplane")
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(KEEPALIVE_IDLE)
            .tcp_user_timeout(TCP_USER_TIMEOUT);
        let trust = if config.get_ssl_mode() == SslMode::Require { Trust::System } else { Trust::Anybody };
        Ok(Self { config, tls: tls::connector(trust)? })
    }

    /// With these certificates, in PEM, in place of the system's store. The server must then have TLS and a certificate for its
    /// host name that one of them signed, even if the URL does not ask for it: whoever names them means them to be checked.
    ///
    /// # Errors
    /// When they are no certificates, or the URL forbids TLS.
    pub fn trusting(mut self, certificates: &str) -> Result<Self, ConfigError> {
        if self.config.get_ssl_mode() == SslMode::Disable {
            return Err(ConfigError::NoTls);
        }
        self.config.ssl_mode(SslMode::Require);
        self.tls = tls::connector(Trust::These(certificates))?;
        Ok(self)
    }

    /// A pool of at most `size` connections for reads.
    pub(crate) fn pool(&self, size: usize) -> Result<deadpool_postgres::Pool, deadpool_postgres::BuildError> {
        let mut config = self.config.clone();
        // A read that takes longer than this is a mistake, and must not hold a connection for ever.
        config.options("-c statement_timeout=10s");
        let manager = deadpool_postgres::Manager::new(config, self.tls.clone());
        deadpool_postgres::Pool::builder(manager)
            .max_size(size)
            .wait_timeout(Some(CONNECT_TIMEOUT))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .recycle_timeout(Some(CONNECT_TIMEOUT))
            .runtime(deadpool_postgres::Runtime::Tokio1)
            .build()
    }

    /// One connection for commits.
    pub(crate) async fn connect(&self) -> Result<Connection, Error> {
        let (client, connection) = self.config.connect(self.tls.clone()).await?;
        // What this task ends with also reaches every request that was waiting for a reply.
        let driver = tokio::spawn(async move { drop(connection.await) });
        let connection = Connection { client, driver };
        connection.client.batch_execute(SESSION).await?;
        Ok(connection)
    }

    /// One connection that also hears what is notified on the channels it listens to.
    pub(crate) async fn connect_listening(&self) -> Result<Listener, Error> {
        let (client, mut connection) = self.config.connect(self.tls.clone()).await?;
        let (heard, notifications) = mpsc::channel(NOTIFICATIONS_MAX);
        let driver = tokio::spawn(async move {
            let mut messages = futures_util::stream::poll_fn(move |context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notification(notification) = message {
                    // Whoever is behind by so many will look anyway.
                    let _full = heard.try_send(notification);
                }
            }
        });
        let listener = Listener { client: Arc::new(client), notifications, driver };
        listener.client.batch_execute(SESSION).await?;
        Ok(listener)
    }
}

/// A commit is acknowledged only when it is on disk, whatever the server's default is; stronger settings stay.
const SESSION: &str = "SELECT set_config('synchronous_commit', 'on', false) \
     WHERE current_setting('synchronous_commit') IN ('off', 'local'); \
     SET idle_in_transaction_session_timeout = '30s'; \
     SET statement_timeout = 0; \
     SET default_transaction_isolation = 'read committed'; \
     SET TIME ZONE 'UTC'";

/// A connection; dropping it closes the socket at once, also in mid-command.
pub(crate) struct Connection {
    pub(crate) client: Client,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What the names of the partitions of `certeus.requests` begin with.
pub(crate) const REQUESTS_PREFIX: &str = "requests_";
/// A connection that hears notifications; dropping it closes the socket at once, whoever else has the client.
pub(crate) struct Listener {
    pub(crate) client: Arc<Client>,
    /// At most [`NOTIFICATIONS_MAX`] wait; further ones are left out.
    pub(crate) notifications: mpsc::Receiver<Notification>,
    driver: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What a failed statement or transaction says about its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The connection ended or was ended: if COMMIT was under way, the outcome is unknown.
    Lost,
    /// Rolled back because a key exists: this very batch may have been committed before.
    Duplicate,
    /// Rolled back because a request's identity is taken, or its producer is elsewhere.
    Claimed,
    /// Rolled back for a reason that may pass.
    Refused,
    /// Rolled back because of the rows themselves.
    Rejected,
}

impl Failure {
    pub(crate) fn of(error: &Error) -> Self {
        let Some(database) = error.as_db_error() else { return Self::Lost };
        let state = database.code();
        if *state == SqlState::UNIQUE_VIOLATION {
            if database.table().is_some_and(|table| table.starts_with(REQUESTS_PREFIX)) {
                return Self::Claimed;
            }
            // Other keys hold the batch's own id. This one says that the head stands behind batches that exist.
            let head_is_behind = database.constraint() == Some("batches_pkey");
            return if head_is_behind { Self::Refused } else { Self::Duplicate };
        }
        if *state == SqlState::NOT_NULL_VIOLATION || *state == SqlState::QUERY_CANCELED {
            // No head row, or a statement that was stopped: nothing the rows could help.
            return Self::Refused;
        }
        if *state == SqlState::CHECK_VIOLATION && database.constraint().is_none() {
            // No partition for a row: a pod whose clock is days ahead has dropped it. The next attempt makes it again.
            return Self::Refused;
        }
        match &state.code()[..2] {
            // Connection exceptions, operator intervention (shutdown, crash of another backend), system errors.
            "08" | "57" | "58" | "XX" => Self::Lost,
            // Data exceptions and integrity violations.
            "22" | "23" => Self::Rejected,
            _ => Self::Refused,
        }
    }
}

/// An error with its causes, on one line. Of a database's error only what holds no row values: no detail, no context.
pub(crate) fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut texts = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(database) = error.downcast_ref::<DbError>() {
            let constraint = database.constraint().map(|name| format!(" (constraint {name})"));
            texts.push(format!(
                "{} {}: {}{}",
                database.severity(),
                database.code().code(),
                database.message(),
                constraint.unwrap_or_default()
            ));
            break;
        }
        // Such a wrapper repeats its source's text in full.
        let wraps = error.downcast_ref::<Error>().is_some_and(|error| error.as_db_error().is_some());
        if !wraps {
            texts.push(error.to_string());
        }
        next = error.source();
    }
    texts.join(": ")
}

#[cfg(test)]
mod tests;
