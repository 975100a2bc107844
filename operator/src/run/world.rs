//! Everything the watches have shown, by cluster, and which clusters a change concerns. Pure.
//! Owned by the controller alone; a reconcile gets a [`Snapshot`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::owned::{OwnedKey, Seen, Workload};
use super::pods::{ObjectKey, PodSeen};
use super::watch::{Change, ClusterSeen};

/// What a change means for a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It was not known before.
    Appeared,
    /// Its specification, labels or annotations changed, it is being deleted, or the API server knows other kinds: whatever was
    /// wrong may be right now.
    Changed,
    /// Something that belongs to it changed.
    Around,
    /// A Secret that it refers to changed.
    Secret,
    /// It is gone.
    Gone,
}

/// What one reconcile looks at.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) cluster: Arc<ClusterSeen>,
    /// In order of their numbers.
    pub(crate) pods: Vec<PodSeen>,
    pub(crate) owned: BTreeMap<OwnedKey, Seen>,
    /// An autoscaler on the cluster's own StatefulSet.
    pub(crate) autoscaler: Option<String>,
    pub(crate) service_monitors: bool,
}

impl Snapshot {
    /// The StatefulSet of this name.
    pub(crate) fn workload(&self, name: &str) -> Option<&Workload> {
        self.owned.get(&("StatefulSet", name.to_owned()))?.workload.as_deref()
    }
}

#[derive(Debug, Default)]
pub(crate) struct World {
    clusters: HashMap<ObjectKey, Arc<ClusterSeen>>,
    /// By cluster, in the order of their numbers.
    pods: HashMap<ObjectKey, Vec<PodSeen>>,
    /// By cluster.
    owned: HashMap<ObjectKey, BTreeMap<OwnedKey, Seen>>,
    /// The cluster of each pod and owned object: one that is deleted is known by its own name only.
    owners: HashMap<(&'static str, ObjectKey), ObjectKey>,
    /// Autoscalers and the StatefulSets they scale.
    autoscalers: BTreeMap<ObjectKey, ObjectKey>,
    /// Secrets that clusters refer to, and by which.
    secrets: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    service_monitors: bool,
}

const POD: &str = "Pod";
const SERVICE_MONITOR: &str = "ServiceMonitor";

impl World {
    /// Takes note of a change and tells which clusters it concerns.
    pub(crate) fn apply(&mut self, change: Change) -> Vec<(ObjectKey, Effect)> {
        match change {
            Change::Cluster(key, Some(seen)) => {
                let seen = *seen;
                let effect = match self.clusters.get(&key) {
                    None => Some(Effect::Appeared),
                    Some(old) if old.uid != seen.uid => Some(Effect::Appeared),
                    Some(old) if old.generation != seen.generation || old.deleted != seen.deleted => {
                        Some(Effect::Changed)
                    }
                    // What others write into the status is put right.
                    Some(old) if old.status != seen.status || old.cluster != seen.cluster => {
                        Some(Effect::Around)
                    }
                    Some(_) => None,
                };
                self.clusters.insert(key.clone(), Arc::new(seen));
                effect.map(|effect| (key, effect)).into_iter().collect()
            }
            Change::Cluster(key, None) => {
                let known = self.clusters.remove(&key).is_some();
                self.refer(&key, &BTreeSet::new());
                known.then_some((key, Effect::Gone)).into_iter().collect()
            }
            Change::Pod(pod, seen) => self.pod(&pod, seen.map(|seen| *seen)),
            Change::Owned(kind, key, seen) => self.object(kind, &key, seen.map(|seen| *seen)),
            Change::Secret(key) => {
                let clusters = self.secrets.get(&key).cloned().unwrap_or_default();
                clusters.into_iter().map(|cluster| (cluster, Effect::Secret)).collect()
            }
            Change::Autoscaler(key, target) => {
                let before = match target.clone() {
                    Some(target) => self.autoscalers.insert(key, target),
                    None => self.autoscalers.remove(&key),
                };
                let concerned: BTreeSet<ObjectKey> = if before == target {
                    BTreeSet::new()
                } else {
                    before.into_iter().chain(target).collect()
                };
                // The StatefulSet has its cluster's name.
                let known = concerned.into_iter().filter(|key| self.clusters.contains_key(key));
                known.map(|cluster| (cluster, Effect::Around)).collect()
            }
            Change::ServiceMonitors(known) => {
                if self.service_monitors == known {
                    return Vec::new();
                }
                self.service_monitors = known;
                if !known {
                    // They went with their definition, whether or not the watch could still tell.
                    let is_monitor = |kind: &str| kind == SERVICE_MONITOR;
                    self.owners.retain(|(kind, _), _| !is_monitor(kind));
                    for objects in self.owned.values_mut() {
                        objects.retain(|(kind, _), _| !is_monitor(kind));
                    }
                }
                self.clusters.keys().map(|key| (key.clone(), Effect::Changed)).collect()
            }
            Change::List(_) => Vec::new(),
        }
    }

    fn pod(&mut self, pod: &ObjectKey, seen: Option<(ObjectKey, PodSeen)>) -> Vec<(ObjectKey, Effect)> {
        let place = (POD, pod.clone());
        let Some((cluster, mut seen)) = seen else {
            let Some(cluster) = self.owners.remove(&place) else { return Vec::new() };
            if let Some(pods) = self.pods.get_mut(&cluster) {
                pods.retain(|other| *other.name != *pod.name);
                if pods.is_empty() {
                    self.pods.remove(&cluster);
                }
            }
            return vec![(cluster, Effect::Around)];
        };
        self.owners.insert(place, cluster.clone());
        let pods = self.pods.entry(cluster.clone()).or_default();
        match pods.binary_search_by(|other| (other.ordinal, &other.name).cmp(&(seen.ordinal, &seen.name))) {
            Ok(place) => {
                let before = &mut pods[place];
                if let (Some(trouble), Some(told)) = (&mut seen.trouble, &before.trouble)
                    && seen.uid == before.uid
                {
                    trouble.settle(told);
                }
                if *before == seen {
                    return Vec::new();
                }
                *before = seen;
            }
            Err(place) => pods.insert(place, seen),
        }
        vec![(cluster, Effect::Around)]
    }

    fn object(
        &mut self,
        kind: &'static str,
        key: &ObjectKey,
        seen: Option<(ObjectKey, Seen)>,
    ) -> Vec<(ObjectKey, Effect)> {
        let (place, owned) = ((kind, key.clone()), (kind, key.name.to_string()));
        let Some((cluster, seen)) = seen else {
            let Some(cluster) = self.owners.remove(&place) else { return Vec::new() };
            if let Some(objects) = self.owned.get_mut(&cluster) {
                objects.remove(&owned);
                if objects.is_empty() {
                    self.owned.remove(&cluster);
                }
            }
            return vec![(cluster, Effect::Around)];
        };
        // Somebody changed the label that says whose it is.
        let before = self.owners.insert(place, cluster.clone()).filter(|before| *before != cluster);
        if let Some(objects) = before.as_ref().and_then(|before| self.owned.get_mut(before)) {
            objects.remove(&owned);
        }
        let old = self.owned.entry(cluster.clone()).or_default().insert(owned, seen.clone());
        let changed = old.is_none_or(|old| old != seen).then_some(cluster);
        before.into_iter().chain(changed).map(|cluster| (cluster, Effect::Around)).collect()
    }

    /// Which Secrets a cluster refers to.
    pub(crate) fn refer(&mut self, cluster: &ObjectKey, secrets: &BTreeSet<String>) {
        self.secrets.retain(|secret, clusters| {
            if secret.namespace == cluster.namespace && !secrets.contains(&*secret.name) {
                clusters.remove(cluster);
            }
            !clusters.is_empty()
        });
        for name in secrets {
            let secret = ObjectKey { namespace: Arc::clone(&cluster.namespace), name: name.as_str().into() };
            self.secrets.entry(secret).or_default().insert(cluster.clone());
        }
    }

    /// What is known of a cluster; `None` if there is none.
    pub(crate) fn snapshot(&self, key: &ObjectKey) -> Option<Snapshot> {
        let cluster = Arc::clone(self.clusters.get(key)?);
        let autoscaler = self.autoscalers.iter().find(|(_, target)| *target == key);
        Some(Snapshot {
            cluster,
            pods: self.pods.get(key).cloned().unwrap_or_default(),
            owned: self.owned.get(key).cloned().unwrap_or_default(),
            autoscaler: autoscaler.map(|(autoscaler, _)| autoscaler.name.to_string()),
            service_monitors: self.service_monitors,
        })
    }

    pub(crate) fn has(&self, key: &ObjectKey) -> bool {
        self.clusters.contains_key(key)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.clusters.keys()
    }

    pub(crate) fn clusters(&self) -> usize {
        self.clusters.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use certeus_autoscale::PodPhase;

    use super::*;
    use crate::run::owned::Version;
    use crate::run::trouble::{Kind, Trouble};

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("ns", name)
    }

    fn cluster(generation: i64, resource_version: &str) -> Change {
        Change::Cluster(
            key("demo"),
            Some(Box::new(ClusterSeen {
                uid: "u".to_owned(),
                generation: Some(generation),
                resource_version: resource_version.to_owned(),
                deleted: false,
                cluster: Err(Vec::new()),
                status: None,
            })),
        )
    }

    fn owned(version: &str) -> Change {
        let seen = Seen {
            uid: "o".to_owned(),
            version: Version::Resource(version.to_owned()),
            controller: None,
            deleted: false,
            workload: None,
        };
        Change::Owned("Service", key("demo-pods"), Some(Box::new((key("demo"), seen))))
    }

    fn pod(phase: PodPhase) -> Change {
        let seen = PodSeen {
            name: "demo-0".to_owned(),
            uid: String::new(),
            ordinal: 0,
            ip: None,
            phase,
            gone_by: None,
            has_run: true,
            trouble: None,
            revision: None,
            key: None,
        };
        Change::Pod(key("demo-0"), Some(Box::new((key("demo"), seen))))
    }

    #[test]
    fn only_what_changed_concerns_a_cluster() {
        let mut world = World::default();
        let demo = |effect| vec![(key("demo"), effect)];
        assert_eq!(world.apply(cluster(1, "1")), demo(Effect::Appeared));
        assert_eq!(world.apply(cluster(1, "2")), [], "a write of our own");
        assert_eq!(world.apply(cluster(2, "3")), demo(Effect::Changed));
        assert_eq!(world.apply(owned("5")), demo(Effect::Around));
        assert_eq!(world.apply(owned("5")), [], "a new list shows the same");
        assert_eq!(world.apply(owned("6")), demo(Effect::Around));
        assert_eq!(world.apply(pod(PodPhase::Pending)), demo(Effect::Around));
        assert_eq!(world.apply(pod(PodPhase::Pending)), []);
        assert_eq!(world.snapshot(&key("demo")).unwrap().pods.len(), 1);
        assert_eq!(world.apply(Change::Pod(key("demo-0"), None)), demo(Effect::Around));
        assert_eq!(world.apply(Change::Owned("Service", key("demo-pods"), None)), demo(Effect::Around));
        assert!(world.snapshot(&key("demo")).unwrap().owned.is_empty());
        assert_eq!(world.apply(Change::Cluster(key("demo"), None)), demo(Effect::Gone));
        assert!(world.snapshot(&key("demo")).is_none());
    }

    #[test]
    fn a_pod_in_the_same_trouble_is_no_change_and_its_successor_is() {
        let mut world = World::default();
        let waits = |uid: &str, text: &str, second| {
            let Change::Pod(key, Some(mut seen)) = pod(PodPhase::Pending) else { unreachable!() };
            let at = Duration::from_secs(second);
            seen.1.uid = uid.to_owned();
            seen.1.trouble = Some(Box::new(Trouble::new(Kind::Image, text, Duration::ZERO, at)));
            Change::Pod(key, Some(seen))
        };
        let around = vec![(key("demo"), Effect::Around)];
        assert_eq!(world.apply(waits("a", "ErrImagePull: timeout", 100)), around);
        assert_eq!(world.apply(waits("a", "ImagePullBackOff: in 20 s", 110)), []);
        assert_eq!(world.apply(waits("a", "ErrImagePull: refused", 120)), []);
        assert_eq!(world.apply(waits("b", "ErrImagePull: timeout", 130)), around);
        assert_eq!(world.apply(waits("b", "ErrImagePull: refused", 830)), around);
        assert_eq!(world.apply(pod(PodPhase::Pending)), around);
    }

    #[test]
    fn a_secret_concerns_those_who_refer_to_it() {
        let mut world = World::default();
        let told = |world: &mut World, name| world.apply(Change::Secret(key(name))).len();
        world.refer(&key("a"), &["one".to_owned(), "two".to_owned()].into());
        world.refer(&key("b"), &["two".to_owned()].into());
        assert_eq!((told(&mut world, "one"), told(&mut world, "two"), told(&mut world, "three")), (1, 2, 0));
        world.refer(&key("a"), &["two".to_owned()].into());
        world.apply(Change::Cluster(key("b"), None));
        assert_eq!((told(&mut world, "one"), told(&mut world, "two")), (0, 1));
    }

    #[test]
    fn service_monitors_go_with_their_definition() {
        let mut world = World::default();
        world.apply(cluster(1, "1"));
        let monitor = || match owned("1") {
            Change::Owned(_, key, seen) => Change::Owned(SERVICE_MONITOR, key, seen),
            other => other,
        };
        let count = |world: &World| world.snapshot(&key("demo")).unwrap().owned.len();
        assert_eq!(world.apply(Change::ServiceMonitors(true)), [(key("demo"), Effect::Changed)]);
        world.apply(owned("1"));
        world.apply(monitor());
        assert_eq!(count(&world), 2);
        assert_eq!(world.apply(Change::ServiceMonitors(false)), [(key("demo"), Effect::Changed)]);
        assert_eq!((count(&world), world.apply(Change::ServiceMonitors(false)).len()), (1, 0));
        assert_eq!(world.apply(Change::Owned(SERVICE_MONITOR, key("demo-pods"), None)), []);
    }

    #[test]
    fn an_autoscaler_concerns_the_cluster_whose_workload_it_scales() {
        let mut world = World::default();
        world.apply(cluster(1, "1"));
        let hpa = |target: Option<&str>| Change::Autoscaler(key("hpa"), target.map(key));
        assert_eq!(world.apply(hpa(Some("other"))), []);
        assert_eq!(world.apply(hpa(Some("demo"))), [(key("demo"), Effect::Around)]);
        assert_eq!(world.snapshot(&key("demo")).unwrap().autoscaler.as_deref(), Some("hpa"));
        assert_eq!(world.apply(hpa(None)), [(key("demo"), Effect::Around)]);
    }
}
