//! A cluster goes although nothing that it needs is there any more, and what the design keeps is there for the next one.

use std::time::{Duration, Instant};

use certeus_crds::AlertRule;
use certeus_e2e::cluster::guard::Guard;
use certeus_e2e::http::{Client, Exchange, Request};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use crate::installed::{IN_TIME, Installed, SOON, fixed, secret_of};

/// Rules are held for half a minute at most, and those of a cluster that goes not even so long.
const RULES_MAX: Duration = Duration::from_secs(20);

fn rule(name: &str) -> String {
    format!(
        "---\napiVersion: certeus.io/v1alpha1\nkind: AlertRule\nmetadata: {{name: {name}}}\nspec:\n  clusterRef: {{name: trades}}\n  \
         groups: [{{name: g, rules: [{{alert: Down, expr: up == 0}}]}}]\n"
    )
}

#[test]
fn a_cluster_with_rules_goes_without_its_database_and_leaves_what_it_has_acknowledged() {
    let _turn = crate::beside();
    let mut world = Installed::new("delete-all", false);
    let operator = world.operator();
    world.create("trades", &fixed(2));
    world.space.apply(&(rule("one") + &rule("two"))).unwrap();
    world.wait_until_ready("trades");
    world.wait_for_pods("trades", 2);
    let loaded = |rule: Option<&AlertRule>| {
        rule.and_then(|rule| rule.status.as_ref()).is_some_and(|status| status.loaded_pods == 2)
    };
    for name in ["one", "two"] {
        world.space.wait("the rules to be loaded", name, IN_TIME, loaded).unwrap();
    }
    let key = world.api_key("trades");

    // No database: one pod takes an event all the same, and the other one hangs.
    world.postgres.stop().unwrap();
    let headers = [("content-type", "application/json"), ("x-api-key", &key[..])];
    let event = b"{\"type\":\"deletion.test\",\"timestamp\":1769860800}";
    let request = Request { method: "POST", path: "/v1/ledger/events", headers: &headers, body: event };
    world.wait("a pod that keeps an event", IN_TIME, || {
        let exchange =
            Client::new(Duration::from_secs(30)).send(world.kubelet.api_of("trades-0").unwrap(), &request);
        matches!(exchange, Exchange::Reply(reply) if reply.status == 202)
    });
    world.kubelet.freeze("trades-1").unwrap();

    let begun = Instant::now();
    world.space.kubectl(&["delete", "lc/trades", "ar/one", "--wait=false"]).unwrap();
    let gone = |rule: Option<&AlertRule>| rule.is_none();
    world.space.wait("the rules' end", "one", RULES_MAX, gone).unwrap();
    eprintln!("rules of a cluster that goes: {:.1?}", begun.elapsed());
    // Others that are deleted when there is nothing left to tell.
    world.space.kubectl(&["wait", "--for=delete", "lc/trades", "--timeout=20s"]).unwrap();
    world.space.kubectl(&["delete", "ar/two", "--timeout=20s"]).unwrap();
    let kept = ["secret/trades-api-key", "secret/trades-signing-key"];
    world.wait("its objects to go", IN_TIME, || world.owned() == kept);
    // A pod ends when its database is back, or its grace period is over. Neither need be waited for.
    let pods = ["pods", "trades-0", "trades-1", "--ignore-not-found", "--grace-period=0", "--force"];
    world.space.kubectl(&[&["delete"], &pods[..]].concat()).unwrap();
    world.wait("the pods to go", SOON, || world.space.list::<Pod>("").unwrap().is_empty());
    for ordinal in 0..2 {
        let claim = format!("spool-trades-{ordinal}");
        assert!(world.space.get::<PersistentVolumeClaim>(&claim).unwrap().is_some(), "{claim}");
    }

    // The next one of that name has its keys and its volumes.
    world.postgres.restart().unwrap();
    Guard::get().unwrap().note(world.postgres.process_id()).unwrap();
    world.space.put_secret(&secret_of("trades"), &[("url", &world.database_url("trades"))]).unwrap();
    world.apply("trades", &fixed(1));
    world.wait_until_ready("trades");
    assert_eq!(world.api_key("trades"), key);
    let stored = || {
        let sql = "SELECT count(*) FROM certeus.events";
        world.sql("trades").query(sql, &[]).unwrap()[0].get::<_, i64>(0)
    };
    world.wait("what was acknowledged", IN_TIME, || stored() == 1);
    operator.stop().unwrap();
}
