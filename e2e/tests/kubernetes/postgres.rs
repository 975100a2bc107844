//! What a LedgerCluster says of its PostgreSQL and gets wrong first: once it is corrected, the cluster works.

use certeus_crds::LedgerCluster;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;

use crate::installed::{IN_TIME, Installed, SOON, fixed, secret_of};

const AUTHORITY: &str = include_str!("../../../operator/tests/ca.crt");

fn wait_for_reason(world: &Installed, kind: &str, reason: &str) {
    world.wait(reason, IN_TIME, || {
        let cluster = world.space.get::<LedgerCluster>("trades").unwrap().unwrap();
        let conditions = cluster.status.map(|status| status.conditions).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == kind && condition.reason == reason)
    });
}

/// This server has no TLS, so that whoever trusts certain certificates alone must refuse it.
#[test]
fn certificates_to_trust_are_checked_before_pods_get_them_and_never_passed_over() {
    let _turn = crate::beside();
    let world = Installed::new("trust", false);
    let operator = world.operator();
    world.prepare("trades");
    world.space.put_secret("authority", &[("ca.crt", "-----BEGIN CERTIFICATE-----\nhidden\n")]).unwrap();
    let cluster = |authority: &str| {
        let url = secret_of("trades");
        format!(
            "apiVersion: certeus.io/v1alpha1\nkind: LedgerCluster\nmetadata: {{name: trades}}\nspec:\n  \
             database: {{secretRef: {{name: {url}, key: url}}{authority}}}\n{}",
            fixed(1)
        )
    };
    world.space.apply(&cluster(", caSecretRef: {name: authority, key: ca.crt}")).unwrap();
    wait_for_reason(&world, "Ready", "SecretInvalid");
    let (_, message) = world.wait_for_condition("trades", "Ready", "False");
    assert!(message.contains("\"ca.crt\" of Secret authority") && !message.contains("hidden"), "{message}");
    assert!(world.space.get::<StatefulSet>("trades").unwrap().is_none(), "no pod finds it out by crashing");

    world.space.put_secret("authority", &[("ca.crt", AUTHORITY)]).unwrap();
    // Also when it was corrected while the operator was busy with the first look at the cluster.
    world.wait("the StatefulSet", SOON, || world.space.get::<StatefulSet>("trades").unwrap().is_some());
    world.wait_for_pods("trades", 1);
    wait_for_reason(&world, "Ready", "DatabaseNeverReached");
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'certeus-dataplane'";
    assert_eq!(world.sql("trades").query(sessions, &[]).unwrap()[0].get::<_, i64>(0), 0);

    world.space.apply(&cluster("")).unwrap();
    world.wait_until_ready("trades");
    operator.stop().unwrap();
}

/// With the other way in which a StatefulSet may manage its pods, this one would wait for ever for its first pod.
#[test]
fn an_embedded_database_with_a_wrong_image_starts_once_it_has_the_right_one() {
    let _turn = crate::beside();
    let world = Installed::new("image", false);
    let operator = world.operator();
    let cluster = |database: &str| {
        format!(
            "apiVersion: certeus.io/v1alpha1\nkind: LedgerCluster\nmetadata: {{name: trades}}\nspec:\n  \
             database: {{embedded: true{database}}}\n{}",
            fixed(1)
        )
    };
    world.space.apply(&cluster(", embeddedImage: 'nobody:1'")).unwrap();
    world.wait("a database without an image", SOON, || {
        let pod = world.space.get::<Pod>("trades-database-0").unwrap();
        let statuses = pod.and_then(|pod| pod.status?.container_statuses).unwrap_or_default();
        statuses.iter().any(|status| status.state.as_ref().is_some_and(|state| state.waiting.is_some()))
    });
    world.space.apply(&cluster("")).unwrap();
    world.wait_until_ready("trades");
    operator.stop().unwrap();
}
