//! Reads the Secrets that a cluster refers to, and makes those that are to be made once.
//!
//! Values live for the length of one call: a keyed hash of them is kept, and the API key of the pods, which the operator needs
//! to scrape and drain them. Nothing of a value is ever logged, shown or put into an error.
//!
//! A generated Secret is created once, never overwritten or made a second time, and has no owner: a log goes on under its own signing key alone, so deleting
//! a LedgerCluster must not take the key along in silence. Whoever makes the cluster anew under the same name gets the same key.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use certeus_crds::SecretKeyRef;
use certeus_operator::build::{self, GeneratedSecret, SecretUse};
use certeus_operator::validate::Cluster;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use rand::TryRng;
use rand::rngs::SysRng;

use super::secret_values::{API_KEY, SIGNING_KEY, is_api_key, public_halves, refusal};
use super::{Context, Record};
use crate::admin::ApiKey;
use crate::run::clock;
use crate::run::error::Error;
use crate::run::owned::{Seen, Workload};
use crate::run::world::Snapshot;

/// What is kept of a cluster's Secrets.
#[derive(Clone, Debug)]
pub(crate) struct Secrets {
    /// Changes with any of the values.
    pub(crate) hash: Option<String>,
    /// What of the specification this was read for.
    uses: Vec<SecretUse>,
    read_at: Duration,
    /// The specification for which it counted last.
    generation: Option<i64>,
}

/// Values are read again after this long, should a change of one have gone unnoticed.
const AGE_MAX: Duration = Duration::from_secs(600);

/// The names of all Secrets that `cluster` refers to.
pub(crate) fn secret_names(cluster: &Cluster) -> BTreeSet<String> {
    build::secret_uses(cluster).into_iter().map(|used| used.reference.name).collect()
}

/// The cluster's Secrets as last read, or read now. What can be read of the API key is noted in `record` although others are
/// missing: without it the pods can be neither measured nor drained. So is what can be said of the signing key.
pub(crate) async fn secrets(
    context: &Context,
    cluster: &Cluster,
    record: &mut Record,
    snapshot: &Snapshot,
) -> Result<Secrets, Error> {
    let uses = build::secret_uses(cluster);
    let now = clock::now();
    let generation = snapshot.cluster.generation;
    if let Some(secrets) = &mut record.secrets
        && secrets.uses == uses
        && now.saturating_sub(secrets.read_at) < AGE_MAX
        && record.secrets_due.is_none_or(|due| now < due && secrets.generation == generation)
    {
        if record.secrets_due.is_none() {
            secrets.generation = generation;
        }
        return Ok(secrets.clone());
    }
    // What cannot be read now is read by the next reconcile.
    (record.secrets, record.secrets_due) = (None, None);
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &cluster.namespace);
    let generated = build::generated_secrets(cluster);
    let (mut read, mut absent, mut failed) = (BTreeMap::new(), BTreeSet::new(), None);
    let names: BTreeSet<String> = uses.iter().map(|used| used.reference.name.clone()).collect();
    for name in names {
        let secret = match (get(&api, &name).await, generated.iter().find(|made| made.name() == name)) {
            (Ok(None), Some(made)) if may_create(cluster, made, snapshot) => {
                create(context, &api, cluster, made).await
            }
            (Ok(None), _) => Err(Error::SecretMissing { name: name.clone() }),
            (Ok(Some(secret)), _) => Ok(secret),
            (Err(error), _) => Err(error),
        };
        match secret {
            Ok(secret) => drop(read.insert(name, secret)),
            Err(error) => {
                if matches!(error, Error::SecretMissing { .. }) {
                    absent.insert(name);
                }
                failed = failed.or(Some(error));
            }
        }
    }
    if let Some(key) = api_key(&uses, &read) {
        record.api_key = Some(key);
    }
    if let Some(keys) = verifier_keys(&uses, &read, &absent) {
        record.verifier_keys = Some(keys);
    }
    if let Some(error) = failed {
        return Err(error);
    }
    let secrets = Secrets { generation, ..summary(uses, &read, now)? };
    record.secrets = Some(secrets.clone());
    Ok(secrets)
}

/// A Secret is generated once. Where pods have had it, or the log was signed with it, another value would be worse than none:
/// another signing key is another log, and the database's volume keeps its password.
fn may_create(cluster: &Cluster, generated: &GeneratedSecret, snapshot: &Snapshot) -> bool {
    let workload = snapshot.workload(build::workload_name(cluster));
    let pods_have_it = workload.is_some_and(|workload| workload.secrets.contains(generated.name()));
    let origin = format!("{}+", build::signing_key_origin(cluster));
    let status = snapshot.cluster.status.as_ref();
    let signed = matches!(generated, GeneratedSecret::SigningKey { .. })
        && status.is_some_and(|status| status.verifier_keys.iter().any(|key| key.starts_with(&origin)));
    !cluster.paused && !cluster.dry_run && !pods_have_it && !signed
}

/// The StatefulSet of the pods, asked for by name: the watch does not show one that has lost its labels.
pub(crate) async fn workload(context: &Context, cluster: &Cluster, uid: &str) -> Result<Option<Seen>, Error> {
    let name = build::workload_name(cluster);
    let api: Api<StatefulSet> = Api::namespaced(context.client.clone(), &cluster.namespace);
    let found = api.get_opt(name).await;
    let found = found.map_err(|error| Error::api(format!("read StatefulSet {name}"), error))?;
    let seen =
        found.map(|set| Seen { workload: Some(Box::new(Workload::read(&set))), ..Seen::read(&set.metadata) });
    Ok(seen.filter(|seen| seen.controller.as_deref().is_none_or(|owner| owner == uid)))
}

async fn get(api: &Api<Secret>, name: &str) -> Result<Option<Secret>, Error> {
    api.get_opt(name).await.map_err(|error| Error::api(format!("read Secret {name}"), error))
}

/// Creates a Secret unless somebody was faster: then theirs counts.
async fn create(
    context: &Context,
    api: &Api<Secret>,
    cluster: &Cluster,
    generated: &GeneratedSecret,
) -> Result<Secret, Error> {
    let mut random = [0; 32];
    SysRng.try_fill_bytes(&mut random).map_err(|_unavailable| Error::Random)?;
    let name = generated.name();
    let unusable = |_key_error| Error::SigningKeyUnusable { name: name.to_owned() };
    let secret = generated.make(cluster, random).map_err(unusable)?;
    let params = PostParams { field_manager: Some(build::MANAGER.to_owned()), ..PostParams::default() };
    match api.create(&params, &secret).await {
        Ok(secret) => {
            context.metrics.writes.with_label_values(&["Secret", "create"]).inc();
            tracing::info!(cluster.namespace, cluster.name, secret.name = name, "Secret generated");
            Ok(secret)
        }
        Err(kube::Error::Api(status)) if status.code == 409 => {
            get(api, name).await?.ok_or_else(|| Error::SecretMissing { name: name.to_owned() })
        }
        Err(error) => Err(Error::write("Secret", name, error)),
    }
}

fn value<'a>(read: &'a BTreeMap<String, Secret>, used: &SecretUse) -> Option<&'a [u8]> {
    let value = read.get(&used.reference.name)?.data.as_ref()?.get(&used.reference.key)?;
    Some(&value.0)
}

/// The key that the pods ask for, if its Secret was read. One that they refuse is not taken: those that run have the one before.
fn api_key(uses: &[SecretUse], read: &BTreeMap<String, Secret>) -> Option<ApiKey> {
    let key = value(read, uses.iter().find(|used| used.variable == API_KEY)?)?;
    let key = std::str::from_utf8(key).ok().filter(|key| is_api_key(key));
    key.map(ApiKey::new)
}

/// What the values come to. Pure.
fn summary(
    uses: Vec<SecretUse>,
    read: &BTreeMap<String, Secret>,
    read_at: Duration,
) -> Result<Secrets, Error> {
    let mut values: Vec<(&SecretUse, &[u8])> = Vec::new();
    for used in &uses {
        match value(read, used) {
            Some(value) => values.push((used, value)),
            None if used.optional => {}
            None => {
                let SecretKeyRef { name, key } = used.reference.clone();
                return Err(Error::SecretKeyMissing { name, key });
            }
        }
    }
    if let Some(error) = refusal(&values) {
        return Err(error);
    }
    let mut hash = None;
    if let Some((_, key)) = values.iter().find(|(used, _)| used.variable == SIGNING_KEY) {
        // The signing key is not a variable that can be guessed, so its hash may stand where anybody reads it, and it keys the
        // rest.
        let values = values.iter().map(|(used, value)| (used.variable, *value));
        hash = Some(build::secrets_hash(key, values));
    }
    Ok(Secrets { hash, uses, read_at, generation: None })
}

/// The public halves of the signing keys; none if there is no key that can sign, and `None` if that could not be found out.
fn verifier_keys(
    uses: &[SecretUse],
    read: &BTreeMap<String, Secret>,
    absent: &BTreeSet<String>,
) -> Option<Vec<String>> {
    let used = uses.iter().find(|used| used.variable == SIGNING_KEY)?;
    let name = &used.reference.name;
    (read.contains_key(name) || absent.contains(name))
        .then(|| value(read, used).and_then(public_halves).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use certeus_tlog::note::{Algorithm, SignerKey};
    use k8s_openapi::ByteString;

    use super::*;

    fn used(variable: &'static str, key: &str, optional: bool) -> SecretUse {
        let reference = SecretKeyRef { name: "s".to_owned(), key: key.to_owned() };
        SecretUse { variable, reference, optional }
    }

    fn read(values: &[(&str, &str)]) -> BTreeMap<String, Secret> {
        let data =
            values.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
        [("s".to_owned(), Secret { data: Some(data.collect()), ..Secret::default() })].into()
    }

    fn signer(seed: u8) -> String {
        let key = SignerKey::from_seed("log", Algorithm::Ed25519, [seed; 32]).unwrap();
        key.to_secret_text().to_string()
    }

    const KEY: &str = "visible-and-long";

    #[test]
    fn any_value_changes_the_hash_and_none_is_shown() {
        let uses = || vec![used(SIGNING_KEY, "k", false), used(API_KEY, "a", false), used("X", "x", true)];
        let summary = |values: &[(&str, &str)]| summary(uses(), &read(values), Duration::ZERO).unwrap();
        let first = summary(&[("k", &signer(1)), ("a", KEY)]);
        assert_eq!(api_key(&uses(), &read(&[("a", KEY)])), Some(ApiKey::new(KEY)));
        let others = [
            summary(&[("k", &signer(1)), ("a", "another-long-key")]),
            summary(&[("k", &signer(2)), ("a", KEY)]),
            summary(&[("k", &signer(1)), ("a", KEY), ("x", "")]),
        ];
        assert!(others.iter().all(|other| other.hash != first.hash), "{others:?}");
        assert_eq!(summary(&[("k", &signer(1)), ("a", KEY), ("y", "")]).hash, first.hash);
        assert!(!format!("{first:?}").contains(KEY), "{first:?}");
    }

    #[test]
    fn an_api_key_that_the_pods_would_refuse_is_not_used() {
        let uses = [used(API_KEY, "a", false)];
        for wrong in ["short", "0123456789abcdef\n"] {
            assert_eq!(api_key(&uses, &read(&[("a", wrong)])), None);
            let told = summary(uses.to_vec(), &read(&[("a", wrong)]), Duration::ZERO).unwrap_err();
            assert_eq!(told.reason(), "SecretInvalid");
        }
    }

    #[test]
    fn signing_keys_are_known_absent_unusable_or_unknown() {
        let uses = [used(SIGNING_KEY, "k", false)];
        let keys = |values: &[(&str, &str)]| verifier_keys(&uses, &read(values), &BTreeSet::new());
        assert_eq!(keys(&[("k", &signer(1))]).unwrap().len(), 1);
        assert_eq!((keys(&[("k", "none")]), keys(&[])), (Some(Vec::new()), Some(Vec::new())));
        let nothing_read = |absent: &[&str]| {
            verifier_keys(&uses, &BTreeMap::new(), &absent.iter().map(ToString::to_string).collect())
        };
        assert_eq!((nothing_read(&["s"]), nothing_read(&["other"])), (Some(Vec::new()), None));
    }

    #[test]
    fn a_missing_key_is_named_and_an_optional_one_is_not_missed() {
        let summary = |uses| summary(uses, &read(&[]), Duration::ZERO);
        let told = summary(vec![used(API_KEY, "a", false)]).unwrap_err();
        assert_eq!(told.to_string(), "Secret s has no key \"a\"");
        assert!(summary(vec![used(API_KEY, "a", true)]).is_ok());
    }
}
