//! Which rules a pod lacks, and which it has that nobody wants: the difference between what is wanted and what the pod lists.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What a pod answers to `GET /rules`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Loaded {
    /// Everything the pod has.
    pub rules: Vec<LoadedRules>,
}

/// Rules of one object, as a pod has them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LoadedRules {
    /// The object's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uid: String,
    /// The generation of its spec.
    pub generation: i64,
}

/// What pods should have of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The object's identity.
    pub uid: &'a str,
    /// The generation of its spec.
    pub generation: i64,
    /// Whether this generation may be sent. If not, pods keep what they have of the same object: a mistake in an edit must not
    /// switch off rules that work.
    pub is_accepted: bool,
}

/// What to ask of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send the rules of the object with this namespace and name.
    Put(String, String),
    /// Remove the rules of the object with this namespace and name.
    Delete(String, String),
}

/// What to do about one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// Namespaces and names of the objects that the pod has as wanted.
    pub loaded: Vec<(String, String)>,
}

/// Compares what a pod has with what it should have.
#[must_use]
pub fn plan(wanted: &BTreeMap<(&str, &str), Wanted<'_>>, loaded: &Loaded) -> Plan {
    let mut plan = Plan::default();
    let mut missing = wanted.clone();
    for LoadedRules { namespace, name, uid, generation } in &loaded.rules {
        let key = || (namespace.clone(), name.clone());
        let Some(wanted) = missing.remove(&(namespace.as_str(), name.as_str())) else {
            plan.steps.push(Step::Delete(namespace.clone(), name.clone()));
            continue;
        };
        let is_same = wanted.uid == uid;
        if is_same && wanted.generation == *generation {
            plan.loaded.push(key());
        } else if wanted.is_accepted {
            // A generation from the future: the API server was restored from a backup. Pods refuse to go back.
            if is_same && wanted.generation < *generation {
                plan.steps.push(Step::Delete(namespace.clone(), name.clone()));
            }
            plan.steps.push(Step::Put(namespace.clone(), name.clone()));
        } else if !is_same {
            plan.steps.push(Step::Delete(namespace.clone(), name.clone()));
        }
    }
    let puts = missing.iter().filter(|(_, wanted)| wanted.is_accepted);
    plan.steps
        .extend(puts.map(|((namespace, name), _)| Step::Put((*namespace).to_owned(), (*name).to_owned())));
    plan
}

/// Path of an object's rules on the admin port of a pod. Names of Kubernetes need no escaping.
#[must_use]
pub fn path(namespace: &str, name: &str) -> String {
    format!("/rules/{namespace}/{name}")
}
