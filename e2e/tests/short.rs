//! The short form of every scenario, one test each. `certeus-torture` runs them at length.
//!
//! The seeds are fixed: what a change breaks is then the change's fault. Other seeds are for `make torture`.

use certeus_e2e::run::{Verdict, run};
use certeus_e2e::scenario::ALL;

const SEED: u64 = 20_260_131;

fn short(name: &str) {
    let scenario = ALL.iter().find(|scenario| scenario.name == name).expect("a scenario of this name");
    let parent = std::env::temp_dir().join("certeus-e2e");
    match run(scenario, SEED, scenario.short_rounds, &parent) {
        Verdict::Held(text) => eprintln!("{name}: {text}"),
        Verdict::Skipped(reason) => eprintln!("{name}: NOT RUN: {reason}"),
        Verdict::Broke(text) => panic!("{name}: {text}"),
    }
}

macro_rules! scenarios {
    ($($(#[$ignored:meta])? $test:ident = $name:literal),+ $(,)?) => {
        $(#[test] $(#[$ignored])? fn $test() { short($name); })+

        #[test]
        fn every_scenario_has_a_short_form() {
            let mut tested = vec![$($name),+];
            let short = ALL.iter().filter(|scenario| scenario.short_rounds > 0);
            let mut known: Vec<&str> = short.map(|scenario| scenario.name).collect();
            tested.sort_unstable();
            known.sort_unstable();
            assert_eq!(tested, known);
        }
    };
}

scenarios! {
    pod_kill = "pod-kill",
    pod_restart = "pod-restart",
    pod_freeze = "pod-freeze",
    clock_jump = "clock-jump",
    clock_leap = "clock-leap",
    backend_kill = "backend-kill",
    postgres_crash = "postgres-crash",
    disk_full = "disk-full",
    spool_outage = "spool-outage",
    spool_disk_full = "spool-disk-full",
    spool_io_error = "spool-io-error",
    network_database = "network-database",
    network_clients = "network-clients",
    tamper_read = "tamper-read",
    sealer_kill = "sealer-kill",
    database_io_error = "database-io-error",
    old_backup = "old-backup",
    old_anchor = "old-anchor",
    rewrite = "rewrite",
    removed_event = "removed-event",
}
