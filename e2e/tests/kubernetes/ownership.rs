//! Somebody else sets the number of pods: it is told, there is no fight, and everything else goes on.

use std::time::Duration;

use certeus_e2e::cluster::front::{Fault, Rule};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;

use crate::installed::{IN_TIME, Installed, SOON, writes};

/// Longer than the cooldown below, and several decisions.
const WATCHED: Duration = Duration::from_secs(4);
const AUTO: &str = "  autoscaling: {min: 1, max: 4, cooldown: 1s}\n";
/// Nothing measures its pods, so that it does no more than keep within its bounds.
const OTHER: &str = "
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: other}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: StatefulSet, name: trades}
  minReplicas: 2
  maxReplicas: 4
";

fn replicas(world: &Installed) -> i32 {
    world.space.get::<StatefulSet>("trades").unwrap().and_then(|set| set.spec?.replicas).unwrap()
}

#[test]
fn an_hpa_on_the_stateful_set_is_told_and_left_to_it_until_it_goes() {
    let _turn = crate::beside();
    let world = Installed::new("owners", false);
    let operator = world.operator();
    let of_the_workload =
        || writes(&operator).into_iter().filter(|write| write.contains("/statefulsets/")).collect::<Vec<_>>();
    world.create("trades", AUTO);
    world.wait_until_ready("trades");
    world.wait_for_pods("trades", 1);

    operator.front().forget();
    world.space.apply(OTHER).unwrap();
    let (reason, message) = world.wait_for_condition("trades", "AmbiguousOwner", "True");
    assert_eq!(reason, "OtherAutoscaler");
    assert!(message.starts_with("HorizontalPodAutoscaler other scales the same StatefulSet"), "{message}");
    let (reason, _) = world.wait_for_condition("trades", "ScalingActive", "False");
    assert_eq!(reason, "AmbiguousOwner");
    world.wait("the HPA's own pods", IN_TIME, || replicas(&world) == 2);
    world.wait_for_pods("trades", 2);
    std::thread::sleep(WATCHED);
    assert_eq!((replicas(&world), of_the_workload()), (2, Vec::new()));
    let (reason, _) = world.wait_for_condition("trades", "Progressing", "False");
    assert_eq!(reason, "Stable", "the count that another one chose is the right one");

    // Everything else goes on, a write of the workload too. What happens between its look and its write stands.
    let slow = Rule::new("PATCH", "/statefulsets/trades", Fault::Delay(Duration::from_secs(2)));
    operator.front().inject(slow.times(1));
    world
        .space
        .kubectl(&["label", "--overwrite", "statefulset/trades", "app.kubernetes.io/name=drifted"])
        .unwrap();
    world.wait("a write of the workload", SOON, || !of_the_workload().is_empty());
    // As one that measures would.
    world.space.kubectl(&["scale", "statefulset/trades", "--replicas=3"]).unwrap();
    world.apply("trades", &format!("{AUTO}  monitoring: {{dashboard: true}}\n"));
    let name = r"jsonpath={.metadata.labels.app\.kubernetes\.io/name}";
    let label = || world.space.kubectl(&["get", "statefulset/trades", "-o", name]).unwrap();
    world.wait("the label to be put right", SOON, || label() == "certeus-dataplane");
    world.wait("a new object", SOON, || world.owned().iter().any(|object| object.contains("dashboard")));
    assert_eq!(replicas(&world), 3, "the operator took a change of the other one back");
    world.wait_for_pods("trades", 3);

    // A stop is one, and an HPA has nothing to say where there is no pod.
    world.apply("trades", &format!("{AUTO}  stopped: true\n"));
    world.wait_for_pods("trades", 0);
    world.wait_for_condition("trades", "Progressing", "False");

    // Without the other one the operator scales again.
    world.space.delete::<HorizontalPodAutoscaler>("other").unwrap();
    world.apply("trades", AUTO);
    world.wait_for_pods("trades", 1);
    let types = ["get", "lc/trades", "-o", "jsonpath={.status.conditions[*].type}"];
    let types = || world.space.kubectl(&types).unwrap();
    world.wait("the condition to go", SOON, || !types().contains("AmbiguousOwner"));
    operator.stop().unwrap();
}

/// On the LedgerCluster, as docs/operations.md says.
const OURS: &str = "
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: ours}
spec:
  scaleTargetRef: {apiVersion: certeus.io/v1alpha1, kind: LedgerCluster, name: trades}
  minReplicas: 3
  maxReplicas: 4
";

#[test]
fn an_hpa_scales_the_ledger_cluster_once_kubectl_has_given_it_a_number() {
    const FIXED: &str = "  autoscaling: {enabled: false, min: 1}\n";
    let _turn = crate::beside();
    let world = Installed::new("scale", false);
    let operator = world.operator();
    world.create("trades", FIXED);
    world.wait_until_ready("trades");
    world.wait_for_pods("trades", 1);

    // Without a number the API server has no scale to show.
    world.space.apply(OURS).unwrap();
    let able = "jsonpath={.status.conditions[?(@.type==\"AbleToScale\")].message}";
    let able = || world.space.kubectl(&["get", "hpa/ours", "-o", able]).unwrap();
    // Of a kind that is new a controller manager learns within half a minute.
    world.wait("the HPA to find nothing to scale", IN_TIME, || able().contains("spec replicas field"));
    assert_eq!(replicas(&world), 1);

    world.space.kubectl(&["delete", "hpa/ours"]).unwrap();
    world.space.kubectl(&["scale", "ledgercluster/trades", "--replicas=2"]).unwrap();
    world.wait_for_pods("trades", 2);
    world.space.apply(OURS).unwrap();
    world.wait("the HPA's number", SOON, || replicas(&world) == 3);
    world.wait_for_pods("trades", 3);
    let types = ["get", "lc/trades", "-o", "jsonpath={.status.conditions[*].type}"];
    assert!(!world.space.kubectl(&types).unwrap().contains("AmbiguousOwner"));
    // Applied again, a manifest without a number takes nothing back.
    world.apply("trades", &format!("{FIXED}  monitoring: {{dashboard: true}}\n"));
    world.wait("a new object", SOON, || world.owned().iter().any(|object| object.contains("dashboard")));
    assert_eq!(replicas(&world), 3);
    operator.stop().unwrap();
}
