//! Who else sets the number of pods. Pure.

use std::fmt;

use certeus_operator::validate::{Cluster, Scaling};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;

/// An autoscaler beside ours. KEDA works through an HPA of its own, so that one is found, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OtherOwner {
    /// The HPA's name.
    pub(crate) name: String,
    /// The KEDA `ScaledObject` it belongs to.
    scaled_object: Option<String>,
    target: Target,
}

/// What it scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// The pods' StatefulSet, which is ours.
    StatefulSet,
    /// The `LedgerCluster`, while that scales by itself. The API server refuses what such an HPA writes.
    LedgerCluster,
}

impl OtherOwner {
    /// Whether both would write: then neither scaling out nor in would last, so ours holds still.
    pub(crate) fn writes(&self) -> bool {
        self.target == Target::StatefulSet
    }
}

impl fmt::Display for OtherOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scaled_object {
            Some(scaled_object) => {
                write!(f, "ScaledObject {scaled_object} (HorizontalPodAutoscaler {})", self.name)?
            }
            None => write!(f, "HorizontalPodAutoscaler {}", self.name)?,
        }
        f.write_str(match self.target {
            Target::StatefulSet => {
                " scales the StatefulSet, which the operator scales; remove it, or have it scale the LedgerCluster with \
                 spec.autoscaling.enabled: false"
            }
            Target::LedgerCluster => {
                " scales the LedgerCluster, which scales by itself; remove it, or set spec.autoscaling.enabled to false"
            }
        })
    }
}

/// Finds an autoscaler among those of the cluster's namespace that ours would fight with: one of the StatefulSet rather than
/// one of the `LedgerCluster`, then the first by name. An HPA on a `LedgerCluster` of fixed size is how to use an HPA instead of ours.
#[must_use]
pub(crate) fn other_owner(cluster: &Cluster, autoscalers: &[HorizontalPodAutoscaler]) -> Option<OtherOwner> {
    let found = autoscalers.iter().filter_map(|autoscaler| {
        let reference = &autoscaler.spec.scale_target_ref;
        let group =
            reference.api_version.as_deref().unwrap_or_default().split('/').next().unwrap_or_default();
        let target = match (group, reference.kind.as_str()) {
            _ if reference.name != cluster.name => return None,
            ("apps", "StatefulSet") => Target::StatefulSet,
            (certeus_crds::GROUP, "LedgerCluster") if matches!(cluster.scaling, Scaling::Auto(_)) => {
                Target::LedgerCluster
            }
            _ => return None,
        };
        let owners = autoscaler.metadata.owner_references.iter().flatten();
        let scaled_object = owners.into_iter().find(|owner| owner.kind == "ScaledObject");
        let name = autoscaler.metadata.name.clone()?;
        Some(OtherOwner { name, scaled_object: scaled_object.map(|owner| owner.name.clone()), target })
    });
    found.min_by(|a, b| b.writes().cmp(&a.writes()).then_with(|| a.name.cmp(&b.name)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixtures::cluster;
    use super::*;

    fn autoscaler(name: &str, api_version: &str, kind: &str, target: &str) -> HorizontalPodAutoscaler {
        let object = json!({
            "metadata": { "name": name },
            "spec": { "maxReplicas": 5, "scaleTargetRef": { "apiVersion": api_version, "kind": kind, "name": target } }
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn an_hpa_on_our_stateful_set_is_another_owner_and_others_are_not() {
        let auto = cluster("autoscaling: {}");
        let fixed = cluster("autoscaling: { enabled: false }\n  replicas: 4");
        let finds = |cluster, autoscaler| {
            other_owner(cluster, &[autoscaler]).map(|owner: OtherOwner| (owner.name.clone(), owner.writes()))
        };
        let found = |writes| Some(("h".to_owned(), writes));
        for cluster in [&auto, &fixed] {
            assert_eq!(finds(cluster, autoscaler("h", "apps/v1", "StatefulSet", "demo")), found(true));
            assert_eq!(finds(cluster, autoscaler("h", "apps/v1", "StatefulSet", "other")), None);
            assert_eq!(finds(cluster, autoscaler("h", "apps/v1", "Deployment", "demo")), None);
        }
        let ours = || autoscaler("h", "certeus.io/v1alpha1", "LedgerCluster", "demo");
        assert_eq!(finds(&fixed, ours()), None, "the documented way to use an HPA");
        assert_eq!(finds(&auto, ours()), found(false));
    }

    #[test]
    fn keda_is_named_and_the_worst_comes_first() {
        let mut keda = autoscaler("keda-hpa-x", "apps/v1", "StatefulSet", "demo");
        keda.metadata.owner_references = serde_json::from_value(
            json!([{ "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "x", "uid": "u" }]),
        )
        .unwrap();
        let ours = autoscaler("a", "certeus.io/v1alpha1", "LedgerCluster", "demo");
        let found = other_owner(&cluster("autoscaling: {}"), &[ours, keda]).unwrap();
        assert!(
            found.to_string().starts_with("ScaledObject x (HorizontalPodAutoscaler keda-hpa-x) scales the")
        );
    }
}
