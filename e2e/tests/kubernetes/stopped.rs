//! A cluster that is stopped while its database is away, as for a restore: its pods go, and what they have acknowledged comes back.

use std::time::{Duration, Instant};

use certeus_crds::{LedgerCluster, SpooledVolume};
use certeus_e2e::cluster::guard::Guard;
use certeus_e2e::http::{Client, Exchange, Request};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use crate::installed::{IN_TIME, Installed, fixed, pods_of, secret_of};

/// Pods drain side by side, and one that cannot is let go after a minute.
const STOP_MAX: Duration = Duration::from_secs(60);

fn spooled(world: &Installed) -> Vec<SpooledVolume> {
    let cluster: LedgerCluster = world.space.get("trades").unwrap().unwrap();
    cluster.status.map(|status| status.spooled_volumes).unwrap_or_default()
}

#[test]
fn a_cluster_stops_without_its_database_and_commits_what_it_has_spooled_when_it_starts() {
    let _turn = crate::beside();
    let mut world = Installed::new("stopped", false);
    let operator = world.operator();
    world.create("trades", &fixed(3));
    world.wait_until_ready("trades");
    world.wait_for_pods("trades", 3);
    let key = world.api_key("trades");

    world.postgres.stop().unwrap();
    let headers = [("content-type", "application/json"), ("x-api-key", &key[..])];
    let event = b"{\"type\":\"stopped.test\",\"timestamp\":1769860800}";
    let request = Request { method: "POST", path: "/v1/ledger/events", headers: &headers, body: event };
    // The pod between them has nothing that waits.
    for (pod, count) in [("trades-0", 1), ("trades-2", 3)] {
        for _ in 0..count {
            world.wait("a pod that keeps an event", IN_TIME, || {
                let address = world.kubelet.api_of(pod).unwrap();
                let exchange = Client::new(Duration::from_secs(30)).send(address, &request);
                matches!(exchange, Exchange::Reply(reply) if reply.status == 202)
            });
        }
    }

    let begun = Instant::now();
    world.apply("trades", &format!("{}  stopped: true\n", fixed(3)));
    world
        .wait("the pods to go", STOP_MAX, || world.space.list::<Pod>(&pods_of("trades")).unwrap().is_empty());
    eprintln!("stopped within {:.1?}", begun.elapsed());
    let waits = |ordinal: u32, records: u64| SpooledVolume {
        name: format!("spool-trades-{ordinal}"),
        records: Some(records),
    };
    assert_eq!(spooled(&world), [waits(0, 1), waits(2, 3)]);
    let (_, message) = world.wait_for_condition("trades", "Stopped", "True");
    assert!(message.contains("requests wait on 2 volumes"), "{message}");
    let (reason, _) = world.wait_for_condition("trades", "Progressing", "False");
    assert_eq!(reason, "Stopped");
    for volume in spooled(&world) {
        assert!(world.space.get::<PersistentVolumeClaim>(&volume.name).unwrap().is_some(), "{volume:?}");
    }

    // Fewer pods, by another operator: those with something in their spools come all the same.
    operator.stop().unwrap();
    let operator = world.operator();
    world.postgres.restart().unwrap();
    Guard::get().unwrap().note(world.postgres.process_id()).unwrap();
    world.space.put_secret(&secret_of("trades"), &[("url", &world.database_url("trades"))]).unwrap();
    world.apply("trades", &fixed(1));
    world.wait("nothing to wait any more", IN_TIME, || spooled(&world).is_empty());
    let stored = world.sql("trades").query("SELECT count(*) FROM certeus.events", &[]).unwrap();
    assert_eq!(stored[0].get::<_, i64>(0), 4, "each once");
    operator.stop().unwrap();
}
