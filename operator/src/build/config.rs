//! The pod's configuration file, rendered from a cluster. Every key is in `dataplane/server`'s `config.rs`.
//! Promises: equal settings give equal text, whatever the user wrote, and a setting that is left out changes no text, so that
//! pods restart for what concerns them alone.

use std::fmt::Write;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::pods::SPOOL_FOLDER;
use super::{ADMIN_PORT, API_PORT};
use crate::validate::Cluster;

/// Text as YAML: every JSON text is.
fn quoted(text: &str) -> Value {
    Value::from(text)
}

pub(super) fn pod_config(cluster: &Cluster) -> String {
    // Without a key whoever reaches the pod could write to the ledger; the pod refuses other addresses as well. With one it
    // listens on all addresses of both families, as far as its node has them.
    let host = if cluster.security.api_key_secret_ref.is_some() { "[::]" } else { "127.0.0.1" };
    let ledger = &cluster.ledger;
    let mut config = format!(
        "api:\n  listen: \"{host}:{API_PORT}\"\n\
         admin:\n  listen: \"{host}:{ADMIN_PORT}\"\n\
         database:\n  poolSize: {}\n\
         ledger:\n  batchSize: {}\n  batchTimeout: {}ms\n  queueEvents: {}\n  queueBytes: {}\n  writers: {}\n\
         spool:\n  maxBytes: {}\n  persistent: true\n",
        cluster.pool_size,
        ledger.batch_size,
        ledger.batch_timeout.as_millis(),
        ledger.queue_events,
        ledger.queue_bytes.bytes(),
        ledger.writers,
        // The rest is for the file system's own needs, and for what is set aside.
        cluster.spool.size.bytes() / 10 * 9,
    );
    // Writing to a string cannot fail.
    let _written = write_optional(&mut config, cluster);
    config
}

fn write_optional(config: &mut String, cluster: &Cluster) -> std::fmt::Result {
    if let Some(fields) = &cluster.security.encrypted_fields {
        writeln!(config, "encryption:\n  fields: {}", Value::from(fields.clone()))?;
    }
    // By default on the pod's volume, which no restore of the database reaches.
    let file = || format!("file://{SPOOL_FOLDER}/log-anchor");
    let anchor = cluster.log.anchor.clone().unwrap_or_else(file);
    let interval = cluster.log.checkpoint_interval.as_millis();
    writeln!(
        config,
        "log:\n  level: info\n  anchor: {}\n  checkpointInterval: {interval}ms",
        quoted(&anchor)
    )?;
    let retention = &cluster.retention;
    if let Some(archive) = &retention.archive {
        writeln!(config, "retention:\n  archive: {}", quoted(archive))?;
        if let Some(days) = retention.days {
            writeln!(config, "  events: {days}d")?;
        }
    }
    let proofs = &cluster.proofs;
    if proofs.strict || proofs.public_base_url.is_some() {
        writeln!(config, "proofs:\n  strict: {}", proofs.strict)?;
        if let Some(url) = &proofs.public_base_url {
            writeln!(config, "  publicBaseUrl: {}", quoted(url))?;
        }
    }
    Ok(())
}

pub(super) fn hash(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
