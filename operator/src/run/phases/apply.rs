//! Writes what was built and removes what is no longer built.
//!
//! An object is left alone without a single request if the watch shows it as it was after our last look and we want the same as
//! then. Otherwise it is read, and written only if it lacks something of what we want or was written for something else: the
//! annotation `certeus.io/applied-hash` says for what, also after a restart. If an object that we had right is not right any
//! more, somebody else changed it, and the repair is counted.
//!
//! If we stop between two objects, the next reconcile finds those done and goes on.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use certeus_operator::build::{MANAGER, Owned};
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::compare;
use super::{Context, Record};
use crate::run::error::Error;
use crate::run::owned::{OwnedKey, Seen, Version, Workload, kind_name, version};
use crate::run::pods::{INSTANCE_LABEL, ObjectKey};
use crate::run::world::Snapshot;

/// What an object was last written for.
const APPLIED_HASH: &str = "certeus.io/applied-hash";
const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// An object as it was after our last look or write.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Applied {
    uid: String,
    version: Version,
    /// Of what we wanted then.
    desired: u64,
    /// Fields that cannot be changed and are not as we want them.
    fixed: Vec<String>,
}

/// What is to be done for a cluster.
pub(crate) struct Plan<'a> {
    namespace: &'a str,
    cluster: &'a str,
    uid: &'a str,
    /// In the order in which to apply it.
    objects: Vec<(OwnedKey, Owned)>,
    owned: &'a BTreeMap<OwnedKey, Seen>,
    /// Whether the workload may be written.
    pub(crate) workload: bool,
    /// Somebody else sets the number of pods.
    pub(crate) held: bool,
}

/// What became of it.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// What went wrong, in order.
    pub(crate) errors: Vec<Error>,
    /// Whether the workload was written.
    pub(crate) workload: bool,
    /// In a dry run: what would be written or removed.
    pub(crate) pending: Vec<String>,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(key: &'a ObjectKey, snapshot: &'a Snapshot, objects: Vec<Owned>) -> Self {
        let named = |owned: Owned| {
            let key =
                (kind_name(&owned.resource.kind), owned.object.metadata.name.clone().unwrap_or_default());
            (key, owned)
        };
        Self {
            namespace: &key.namespace,
            cluster: &key.name,
            uid: &snapshot.cluster.uid,
            objects: objects.into_iter().map(named).collect(),
            owned: &snapshot.owned,
            workload: true,
            held: false,
        }
    }

    /// Whether this is the workload and somebody else sets its number of pods.
    fn holds(&self, key: &OwnedKey) -> bool {
        self.held && self.objects.last().is_some_and(|(workload, _)| workload == key)
    }

    /// Objects of this cluster that are no longer built.
    fn orphans(&self) -> impl Iterator<Item = (&OwnedKey, &Seen)> {
        let wanted = |key: &OwnedKey| self.objects.iter().any(|(built, _)| built == key);
        // The label alone is not enough: anybody can write one.
        self.owned.iter().filter(move |(key, seen)| {
            !wanted(key) && !seen.deleted && seen.controller.as_deref() == Some(self.uid)
        })
    }
}

/// Brings everything into the shape that `plan` says.
pub(crate) async fn apply(context: &Context, record: &mut Record, plan: &Plan<'_>) -> Done {
    let mut done = Done::default();
    let Some((workload, needed)) = plan.objects.split_last() else { return done };
    let mut may_start = plan.workload;
    for (key, owned) in needed {
        if let Err(error) = apply_one(context, record, plan, key, owned).await {
            // Pods need these to be created at all; without the rest they run.
            may_start &= !matches!(key.0, "ServiceAccount" | "ConfigMap");
            done.errors.push(error);
        }
    }
    for (key, seen) in plan.orphans() {
        if let Err(error) = remove(context, plan, key, seen).await {
            done.errors.push(error);
        }
    }
    record.applied.retain(|key, _| plan.objects.iter().any(|(built, _)| built == key));
    if may_start {
        match apply_one(context, record, plan, &workload.0, &workload.1).await {
            Ok(written) => done.workload = written,
            Err(error) => done.errors.push(error),
        }
    }
    let fixed = record.applied.iter().filter(|(_, applied)| !applied.fixed.is_empty());
    done.errors.extend(fixed.map(|((kind, name), applied)| Error::fixed(kind, name, &applied.fixed)));
    done
}

/// Changes nothing but the number of pods, from `present` to `wanted`.
///
/// # Errors
/// Also when there is another number by now.
pub(crate) async fn scale(
    context: &Context,
    namespace: &str,
    name: &str,
    present: u32,
    wanted: u32,
) -> Result<(), Error> {
    let api: Api<StatefulSet> = Api::namespaced(context.client.clone(), namespace);
    let read = api.get(name).await.map_err(|error| Error::api(format!("read StatefulSet {name}"), error))?;
    if Workload::read(&read).replicas != present {
        return Err(Error::overtaken("StatefulSet", name));
    }
    context.metrics.writes.with_label_values(&["StatefulSet", "scale"]).inc();
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    // Late on its way, this write must not undo what the next leader did.
    let patch = json!({
        "metadata": { "uid": read.metadata.uid, "resourceVersion": read.metadata.resource_version },
        "spec": { "replicas": wanted },
    });
    let patched = api.patch(name, &params, &Patch::Merge(&patch)).await;
    patched.map(drop).map_err(|error| Error::write("StatefulSet", name, error))
}

/// What [`apply`] would do, in words.
pub(crate) async fn pending(
    context: &Context,
    record: &mut Record,
    plan: &Plan<'_>,
) -> Result<Vec<String>, Error> {
    let mut pending = Vec::new();
    for (key, owned) in &plan.objects {
        let mut desired = Desired::new(plan, key, owned)?;
        if !is_as_remembered(record, plan, key, &desired)
            && let Some(verb) = look(context, record, plan, key, owned, &mut desired).await?.verb()
        {
            pending.push(format!("{verb} {} {}", key.0, key.1));
        }
    }
    pending.extend(plan.orphans().map(|((kind, name), _)| format!("remove {kind} {name}")));
    Ok(pending)
}

/// An object as we want it.
struct Desired {
    json: Value,
    hash: u64,
    applied_hash: String,
    fixed: Vec<String>,
}

impl Desired {
    fn new(plan: &Plan<'_>, key: &OwnedKey, owned: &Owned) -> Result<Self, Error> {
        let bug = |source| Error::Json { kind: key.0.to_owned(), name: key.1.clone(), source };
        let mut json = serde_json::to_value(&owned.object).map_err(bug)?;
        let text = json.to_string();
        let mut hasher = DefaultHasher::new();
        (&text, plan.uid).hash(&mut hasher);
        // Short, and for comparing with itself alone.
        let digest = Sha256::digest(text.as_bytes());
        let applied_hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        if let Some(metadata) = json.get_mut("metadata") {
            if metadata.get("annotations").is_none_or(Value::is_null) {
                metadata["annotations"] = json!({});
            }
            metadata["annotations"][APPLIED_HASH] = Value::from(applied_hash.clone());
        }
        Ok(Self { json, hash: hasher.finish(), applied_hash, fixed: Vec::new() })
    }

    fn applied(&self, live: &DynamicObject) -> Applied {
        Applied {
            uid: live.metadata.uid.clone().unwrap_or_default(),
            version: version(&live.metadata),
            desired: self.hash,
            fixed: self.fixed.clone(),
        }
    }
}

/// What a look at the live object showed.
enum Look {
    /// It is as we want it.
    Right,
    Absent {
        /// It was there once.
        removed: bool,
    },
    Differs {
        /// As it is.
        live: Value,
        /// It was as we want it once.
        drifted: bool,
    },
}

impl Look {
    fn verb(&self) -> Option<&'static str> {
        match self {
            Self::Right => None,
            Self::Absent { .. } => Some("create"),
            Self::Differs { .. } => Some("change"),
        }
    }
}

fn is_as_remembered(record: &Record, plan: &Plan<'_>, key: &OwnedKey, desired: &Desired) -> bool {
    let (Some(applied), Some(seen)) = (record.applied.get(key), plan.owned.get(key)) else { return false };
    applied.desired == desired.hash
        && applied.uid == seen.uid
        && applied.version == seen.version
        && !seen.deleted
}

fn api(context: &Context, plan: &Plan<'_>, resource: &ApiResource) -> Api<DynamicObject> {
    Api::namespaced_with(context.client.clone(), plan.namespace, resource)
}

/// Reads the object and compares. Remembers it if it is right.
async fn look(
    context: &Context,
    record: &mut Record,
    plan: &Plan<'_>,
    key: &OwnedKey,
    owned: &Owned,
    desired: &mut Desired,
) -> Result<Look, Error> {
    let (kind, name) = key;
    let live = api(context, plan, &owned.resource).get_opt(name).await;
    let live = live.map_err(|error| Error::api(format!("read {kind} {name}"), error))?;
    let before = record.applied.get(key).filter(|applied| applied.desired == desired.hash);
    let Some(live) = live else { return Ok(Look::Absent { removed: before.is_some() }) };
    let labels = live.metadata.labels.as_ref();
    let label = |label: &str| labels.and_then(|labels| labels.get(label)).map(String::as_str);
    let is_labelled = label(MANAGED_BY_LABEL) == Some(MANAGER) && label(INSTANCE_LABEL) == Some(plan.cluster);
    match Seen::read(&live.metadata).controller {
        Some(uid) if uid == plan.uid => {}
        // Left behind by a cluster of the same name that was deleted without what it owned.
        None if is_labelled => {}
        Some(_) | None => return Err(Error::NameTaken { kind: (*kind).to_owned(), name: name.clone() }),
    }
    let bug = |source| Error::Json { kind: (*kind).to_owned(), name: name.clone(), source };
    let json = serde_json::to_value(&live).map_err(bug)?;
    if *kind == "StatefulSet" {
        desired.fixed = compare::keep_fixed_fields(&mut desired.json, &json);
        // What another one writes between this look and our write is a conflict, and stands: late on its way, a write with a
        // number of pods must not remove those that the next leader added meanwhile.
        desired.json["metadata"]["resourceVersion"] = json["metadata"]["resourceVersion"].clone();
    }
    let is_right = if plan.holds(key) {
        // Without the number an apply would give up the one that we once wrote.
        desired.json["spec"]["replicas"] = json["spec"]["replicas"].clone();
        // It may have been written for another number.
        let mut same = desired.json.clone();
        same["metadata"]["annotations"][APPLIED_HASH] = json["metadata"]["annotations"][APPLIED_HASH].clone();
        compare::contains(&json, &same)
    } else {
        compare::contains(&json, &desired.json)
    };
    if is_right {
        record.applied.insert(key.clone(), desired.applied(&live));
        return Ok(Look::Right);
    }
    if *kind == "StatefulSet" && takes_pods_unseen(plan.owned.get(key), &json, &desired.json) {
        return Err(Error::overtaken(kind, name));
    }
    let annotations = live.metadata.annotations.as_ref();
    let applied_hash = annotations.and_then(|annotations| annotations.get(APPLIED_HASH));
    let drifted = before.is_some() || applied_hash == Some(&desired.applied_hash);
    Ok(Look::Differs { live: json, drifted })
}

/// Whether the write would take pods away that were not known of when it was decided.
fn takes_pods_unseen(seen: Option<&Seen>, live: &Value, desired: &Value) -> bool {
    let decided_on = seen.and_then(|seen| seen.workload.as_ref()).map(|workload| workload.replicas);
    let count = |set: &Value| set["spec"]["replicas"].as_u64();
    count(desired) < count(live) && count(live) != decided_on.map(u64::from)
}

/// Writes an object if need be; true if it was written.
async fn apply_one(
    context: &Context,
    record: &mut Record,
    plan: &Plan<'_>,
    key: &OwnedKey,
    owned: &Owned,
) -> Result<bool, Error> {
    let (kind, name) = key;
    let mut desired = Desired::new(plan, key, owned)?;
    if is_as_remembered(record, plan, key, &desired) {
        return Ok(false);
    }
    let look = look(context, record, plan, key, owned, &mut desired).await?;
    let (live, repair) = match look {
        Look::Right => return Ok(false),
        Look::Absent { removed } => (None, removed),
        Look::Differs { live, drifted } => (Some(live), drifted),
    };
    let written = write(context, plan, key, owned, &desired, live.as_ref()).await?;
    record.applied.insert(key.clone(), desired.applied(&written));
    if live.is_none_or(|live| live["metadata"]["resourceVersion"] != json!(written.metadata.resource_version))
    {
        tracing::info!(
            cluster.namespace = plan.namespace,
            cluster.name = plan.cluster,
            object.kind = kind,
            object.name = name,
            repair,
            "object written"
        );
        if repair {
            context.metrics.drift_repairs.with_label_values(&[kind]).inc();
        }
    }
    Ok(true)
}

/// Applies the object. Entries of lists that others own stay through that, or keep it from being valid; then the whole of it
/// is replaced, at the version that was read.
async fn write(
    context: &Context,
    plan: &Plan<'_>,
    (kind, name): &OwnedKey,
    owned: &Owned,
    desired: &Desired,
    live: Option<&Value>,
) -> Result<DynamicObject, Error> {
    let api = api(context, plan, &owned.resource);
    let refused = |error| Error::write(kind, name, error);
    context.metrics.writes.with_label_values(&[kind, "apply"]).inc();
    let params = PatchParams::apply(MANAGER).force();
    let applied = api.patch(name, &params, &Patch::Apply(&desired.json)).await.map_err(refused);
    let bug = |source| Error::Json { kind: (*kind).to_owned(), name: name.clone(), source };
    let base = match (&applied, live) {
        (Ok(written), Some(_)) => {
            let written = serde_json::to_value(written).map_err(bug)?;
            if compare::lists_agree(&written, &desired.json) {
                return applied;
            }
            written
        }
        (Err(Error::Refused { .. }), Some(live)) => live.clone(),
        (Ok(_) | Err(_), _) => return applied,
    };
    // A merge patch takes lists as they are given. The version that was read is in it, so it replaces nothing unseen.
    let mut whole = compare::overlay(base, &desired.json);
    whole.as_object_mut().and_then(|object| object.remove("status"));
    let metadata = whole.get_mut("metadata").and_then(Value::as_object_mut);
    metadata.and_then(|metadata| metadata.remove("managedFields"));
    context.metrics.writes.with_label_values(&[kind, "replace"]).inc();
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let replaced = api.patch(name, &params, &Patch::Merge(&whole)).await.map_err(refused);
    // What stands there may be meant to: an admission webhook may put it back each time.
    replaced.or(applied)
}

async fn remove(context: &Context, plan: &Plan<'_>, key: &OwnedKey, seen: &Seen) -> Result<(), Error> {
    let (kind, name) = key;
    let kinds = certeus_operator::build::owned_kinds(true);
    let Some(resource) = kinds.iter().find(|resource| resource.kind == *kind) else { return Ok(()) };
    // Not one that has taken its place meanwhile.
    let preconditions = Preconditions { uid: Some(seen.uid.clone()), resource_version: None };
    let params = DeleteParams::background().preconditions(preconditions);
    context.metrics.writes.with_label_values(&[kind, "delete"]).inc();
    match api(context, plan, resource).delete(name, &params).await {
        Ok(_) => {
            context.metrics.orphans_removed.with_label_values(&[kind]).inc();
            tracing::info!(
                cluster.namespace = plan.namespace,
                cluster.name = plan.cluster,
                object.kind = kind,
                object.name = name,
                "object removed, as it is no longer wanted"
            );
            Ok(())
        }
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(Error::api(format!("remove {kind} {name}"), error)),
    }
}
