use super::*;

const fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A Lease as an API server keeps it: a write at an old version fails.
#[derive(Default)]
struct Server {
    lease: Option<Lease>,
    version: u64,
}

impl Server {
    /// A candidate's try at `now`; false if the server cannot be reached from there.
    fn attempt(&mut self, core: &mut Core, now: Duration, known: &mut Option<Lease>, reachable: bool) {
        core.tried(now, 0.5);
        if !reachable {
            return;
        }
        if !core.is_held() {
            known.clone_from(&self.lease);
        }
        if let Some(lease) = &known {
            core.saw(seen(lease), now);
        }
        if !core.may_claim(now) {
            return;
        }
        let mut next = claim(known.as_ref(), "lease", &core.identity, Timestamp::UNIX_EPOCH);
        let current = self.lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
        if next.metadata.resource_version == current {
            self.version += 1;
            next.metadata.resource_version = Some(self.version.to_string());
            self.lease = Some(next.clone());
            core.saw(seen(&next), now);
            core.renewed(now);
            *known = Some(next);
        } else {
            known.clone_from(&self.lease);
            core.saw(seen(self.lease.as_ref().unwrap()), now);
        }
    }
}

/// Runs two candidates, of whom the first cannot reach the server from `cut` on. Returns when each began and ended to
/// lead, in milliseconds.
fn race(cut: u64, skew: u64) -> [(Option<u64>, Option<u64>); 2] {
    let mut server = Server::default();
    let mut cores = [Core::new("a".to_owned()), Core::new("b".to_owned())];
    let mut known = [None, None];
    let mut led = [(None, None); 2];
    for now in (0..60_000).step_by(50) {
        for (index, core) in cores.iter_mut().enumerate() {
            if led[index].1.is_some() || (index == 1 && now < 500) {
                continue;
            }
            // Each has a clock of its own.
            let local = at(now + if index == 1 { skew } else { 0 });
            if core.step(local) == Step::Try {
                server.attempt(core, local, &mut known[index], index == 1 || now < cut);
            }
            if core.is_held() && led[index].0.is_none() {
                led[index].0 = Some(now);
            }
            if core.step(local) == Step::Lost {
                led[index].1 = Some(now);
            }
        }
    }
    led
}

#[test]
fn a_cut_off_holder_has_ended_before_the_next_begins() {
    for cut in [100, 1_000, 5_550, 20_000] {
        for skew in [0, 86_400_000] {
            let [(a_from, a_to), (b_from, b_to)] = race(cut, skew);
            assert_eq!((a_from, b_to), (Some(0), None));
            let (ended, began) = (a_to.unwrap(), b_from.unwrap());
            assert!(ended + 3_000 <= began && began <= ended + 10_000, "{cut}: {ended} {began}");
            assert!(ended <= cut + 10_000, "{cut}: {ended}");
        }
    }
}

#[test]
fn a_released_lease_is_taken_at_the_next_try() {
    let mut core = Core::new("b".to_owned());
    let released = Seen { holder: String::new(), version: "7".to_owned(), duration: at(1_000) };
    core.saw(released, at(0));
    assert!(core.may_claim(at(0)));
    let held = Seen { holder: "a".to_owned(), version: "8".to_owned(), duration: at(15_000) };
    core.saw(held.clone(), at(100));
    core.saw(held, at(14_000));
    assert!(!core.may_claim(at(15_099)), "counted from the first sight of this version");
    assert!(core.may_claim(at(15_100)));
}

#[test]
fn followers_do_not_try_in_step() {
    let mut core = Core::new("a".to_owned());
    core.tried(at(0), 0.0);
    let early = core.next_try;
    core.tried(at(0), 1.0);
    assert_eq!((early, core.next_try), (at(2_000), at(2_400)));
    assert_eq!(core.step(at(400)), Step::Wait(at(2_000)));
}

#[test]
fn a_change_of_holder_counts_as_a_transition_and_keeps_the_version() {
    let mut first = claim(None, "lease", "a", Timestamp::UNIX_EPOCH);
    first.metadata.resource_version = Some("5".to_owned());
    let second = claim(Some(&first), "lease", "b", Timestamp::UNIX_EPOCH);
    assert_eq!(second.metadata.resource_version.as_deref(), Some("5"));
    let transitions = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
    assert_eq!((transitions(&first), transitions(&second)), (Some(0), Some(1)));
    assert_eq!(transitions(&claim(Some(&second), "lease", "b", Timestamp::UNIX_EPOCH)), Some(1));
}
