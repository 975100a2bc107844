//! Pods are replaced when they must be and only then; operators come and go meanwhile.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;

use crate::installed::{IN_TIME, Installed, SOON, fixed, secret_of, writes};

/// A lease's duration and some time to look.
const TAKE_OVER: Duration = Duration::from_secs(40);

#[test]
fn a_change_of_the_database_secret_replaces_every_pod_once() {
    let _alone = crate::alone();
    let world = Installed::new("rotate", false);
    let operator = world.operator();
    world.create("trades", &fixed(2));
    world.wait_until_ready("trades");
    world.wait_for_pods("trades", 2);
    let before = world.pods("trades");
    let revision = || {
        let set = world.space.get::<StatefulSet>("trades").unwrap().unwrap();
        set.status.unwrap().update_revision.unwrap()
    };
    let old = revision();
    let connections = || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'rotated'";
        world.sql("trades").query(sql, &[]).unwrap()[0].get::<_, i64>(0)
    };
    assert_eq!(connections(), 0);
    world.sql("trades").batch("CREATE ROLE rotated LOGIN SUPERUSER PASSWORD 'new'").unwrap();
    let url = format!("postgres://rotated:new@{}/trades", world.postgres.address());
    world.space.put_secret(&secret_of("trades"), &[("url", &url)]).unwrap();
    world.wait("new pods", IN_TIME, || {
        let now = world.pods("trades");
        now.len() == 2 && now.iter().all(|pod| !before.contains(pod))
    });
    world.wait_for_pods("trades", 2);
    world.wait("connections with the new password", SOON, || connections() > 0);
    let (after, new) = (world.pods("trades"), revision());
    assert_ne!(old, new);
    // Once: nothing follows.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!((world.pods("trades"), revision()), (after, new));
    operator.stop().unwrap();
}

#[test]
fn another_operator_goes_on_where_a_killed_one_stopped_and_restarts_no_pod_without_reason() {
    let _alone = crate::alone();
    let world = Installed::new("leader", false);
    let first = world.operator();
    world.create("trades", &fixed(2));
    world.wait_until_ready("trades");
    world.wait_for_pods("trades", 2);
    assert!(first.leads(&world.space).unwrap());
    let second = world.operator();
    world.wait("the second one to stand by", IN_TIME, || second.health("/readyz").is_ok());
    assert!(!second.leads(&world.space).unwrap());
    assert_eq!(writes(&second), [""; 0], "written without the lease");

    // Killed in the middle of a rollout: one pod is new, the other one is not.
    let before = world.pods("trades");
    world.apply("trades", &format!("{}  ledger: {{batchSize: 777}}\n", fixed(2)));
    world.wait("the first pod to be replaced", IN_TIME, || {
        world.pods("trades").iter().any(|pod| !before.contains(pod))
    });
    first.kill();
    // What only the next one can do.
    world.apply("trades", &format!("{}  ledger: {{batchSize: 778}}\n", fixed(3)));
    world.wait("the lease to change hands", TAKE_OVER, || second.leads(&world.space).unwrap());
    world.wait_for_pods("trades", 3);
    let settled = |set: Option<&StatefulSet>| {
        let status = set.and_then(|set| set.status.as_ref());
        status.is_some_and(|status| {
            status.updated_replicas == Some(3) && status.current_revision == status.update_revision
        })
    };
    world.space.wait("the rollout to end", "trades", IN_TIME, settled).unwrap();
    world.wait_until_ready("trades");

    // A new operator in the place of the old one, in good order: at once, and no pod notices.
    world.wait_for_condition("trades", "Progressing", "False");
    let before = world.pods("trades");
    let third = world.operator();
    world.wait("the third one to stand by", IN_TIME, || third.health("/readyz").is_ok());
    let begun = Instant::now();
    second.stop().unwrap();
    world.wait("the lease to be handed over", TAKE_OVER, || third.leads(&world.space).unwrap());
    assert!(begun.elapsed() < Duration::from_secs(10), "handed over after {:?}", begun.elapsed());
    std::thread::sleep(Duration::from_secs(5));
    let touched: Vec<String> =
        writes(&third).into_iter().filter(|write| !write.ends_with("/status")).collect();
    assert_eq!(touched, [""; 0], "the new operator changed objects");
    assert_eq!(world.pods("trades"), before);
    let restarted = |pod: &Pod| {
        let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        statuses.map(|status| status.restart_count).sum::<i32>() > 0
    };
    assert!(!world.space.list::<Pod>(&crate::installed::pods_of("trades")).unwrap().iter().any(restarted));
    third.stop().unwrap();
}
