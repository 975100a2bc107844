//! Objects that belong to a cluster, as the watches show them: enough to know whether anybody changed them.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use certeus_operator::build::CONTAINER;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Kind and name of an object in its cluster's namespace.
pub(crate) type OwnedKey = (&'static str, String);

/// The kind's name for keys and labels: one of those that a cluster may own.
pub(crate) fn kind_name(kind: &str) -> &'static str {
    const KINDS: [&str; 7] = [
        "ServiceAccount",
        "ConfigMap",
        "Service",
        "PodDisruptionBudget",
        "NetworkPolicy",
        "ServiceMonitor",
        "StatefulSet",
    ];
    KINDS.into_iter().find(|known| *known == kind).unwrap_or("other")
}

/// What changes whenever somebody changes what we might have written, and not with every status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Of kinds that count changes of their specification; the hash covers labels, annotations and owners.
    Generation(i64, u64),
    /// Of the others.
    Resource(String),
}

/// One owned object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) uid: String,
    pub(crate) version: Version,
    /// The owner that manages it, by uid.
    pub(crate) controller: Option<String>,
    pub(crate) deleted: bool,
    /// Of a StatefulSet.
    pub(crate) workload: Option<Box<Workload>>,
}

impl Seen {
    pub(crate) fn read(metadata: &ObjectMeta) -> Self {
        let owners = metadata.owner_references.iter().flatten();
        let controller =
            owners.clone().find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone());
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            version: version(metadata),
            controller,
            deleted: metadata.deletion_timestamp.is_some(),
            workload: None,
        }
    }
}

/// What to compare of an object's metadata.
pub(crate) fn version(metadata: &ObjectMeta) -> Version {
    match metadata.generation {
        Some(generation) => {
            // Within one process alone, so any hash will do.
            let mut hasher = DefaultHasher::new();
            (&metadata.labels, &metadata.annotations, &metadata.finalizers).hash(&mut hasher);
            for owner in metadata.owner_references.iter().flatten() {
                (&owner.uid, owner.controller).hash(&mut hasher);
            }
            Version::Generation(generation, hasher.finish())
        }
        None => Version::Resource(metadata.resource_version.clone().unwrap_or_default()),
    }
}

/// What counts of a StatefulSet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Workload {
    /// Pods asked for.
    pub(crate) replicas: u32,
    /// Of the data plane's container.
    pub(crate) image: Option<String>,
    /// Annotations of the pod template.
    pub(crate) template_annotations: BTreeMap<String, String>,
    /// What pods of the newest template carry as their revision.
    pub(crate) update_revision: Option<String>,
    /// Secrets that the pod template refers to.
    pub(crate) secrets: BTreeSet<String>,
}

impl Workload {
    pub(crate) fn read(set: &StatefulSet) -> Self {
        let count = |count: Option<i32>| u32::try_from(count.unwrap_or_default()).unwrap_or_default();
        let spec = set.spec.as_ref();
        let template = spec.map(|spec| &spec.template);
        let containers = template.and_then(|template| template.spec.as_ref()).map(|spec| &spec.containers);
        // Somebody may have put another one before it.
        let container =
            containers.and_then(|containers| containers.iter().find(|container| container.name == CONTAINER));
        let annotations = template.and_then(|template| template.metadata.as_ref()?.annotations.clone());
        let replicas = count(spec.and_then(|spec| spec.replicas));
        Self {
            replicas,
            image: container.and_then(|container| container.image.clone()),
            template_annotations: annotations.unwrap_or_default(),
            update_revision: set.status.as_ref().and_then(|status| status.update_revision.clone()),
            secrets: container.map(secrets).unwrap_or_default(),
        }
    }
}

fn secrets(container: &Container) -> BTreeSet<String> {
    let variables = container.env.iter().flatten();
    let references = variables.filter_map(|variable| variable.value_from.as_ref()?.secret_key_ref.as_ref());
    references.map(|reference| reference.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(generation: Option<i64>, resource_version: &str, label: &str) -> ObjectMeta {
        ObjectMeta {
            generation,
            resource_version: Some(resource_version.to_owned()),
            labels: Some([("a".to_owned(), label.to_owned())].into()),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn a_status_is_no_change_and_everything_else_is() {
        let seen =
            |generation, resource_version, label| version(&metadata(generation, resource_version, label));
        assert_eq!(seen(Some(1), "5", "x"), seen(Some(1), "6", "x"), "only the status changed");
        assert_ne!(seen(Some(1), "5", "x"), seen(Some(2), "6", "x"));
        assert_ne!(seen(Some(1), "5", "x"), seen(Some(1), "6", "y"));
        assert_ne!(seen(None, "5", "x"), seen(None, "6", "x"), "a kind that has no generation");
    }
}
