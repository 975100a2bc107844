//! Sealers beside a database and an anchor that fail in every way: two at once, without a lock, stopped at any step, with
//! replies that are lost before and after the effect. Whatever gets out must be a prefix of what is committed.

use std::collections::BTreeMap;

use certeus_tlog::proof::consistency;
use certeus_tlog::tile::{TileSet, partial_tiles};
use certeus_tlog::tree::root_of;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const INTERVAL: Duration = Duration::from_secs(1);

fn keys(seed: u8) -> Arc<SigningKeys> {
    use certeus_tlog::note::{Algorithm, SignerKey};
    let key = SignerKey::from_seed("log.example", Algorithm::Ed25519, [seed; 32]).unwrap();
    Arc::new(key.to_secret_text().parse().unwrap())
}

/// What the database holds.
#[derive(Clone, Default)]
struct Database {
    entries: Vec<[u8; ENTRY_BYTES]>,
    epoch: i64,
    head: Option<StoredHead>,
    refused: bool,
    /// What pods know and did not find.
    witnesses: Vec<String>,
    tiles: BTreeMap<(u8, u64), Vec<Hash>>,
}

impl Database {
    fn commit(&mut self, random: &mut StdRng, events: usize) {
        self.entries.extend((0..events).map(|_| random.random::<[u8; ENTRY_BYTES]>()));
    }

    fn size(&self) -> u64 {
        self.entries.len() as u64
    }

    fn leaves(&self, size: u64) -> Vec<Hash> {
        self.entries[..usize::try_from(size).unwrap()].iter().map(|entry| leaf_hash(entry)).collect()
    }

    fn root(&self, size: u64) -> Hash {
        root_of(&self.leaves(size))
    }

    /// A tile as it would be read: level 0 from the entries, the others as stored.
    fn tile(&self, tile: TileId) -> Option<Vec<Hash>> {
        let width = usize::from(tile.width());
        if tile.level() > 0 {
            return self.tiles.get(&(tile.level(), tile.index()))?.get(..width).map(<[Hash]>::to_vec);
        }
        let first = usize::try_from(tile.index() * 256).unwrap();
        Some(self.entries.get(first..first + width)?.iter().map(|entry| leaf_hash(entry)).collect())
    }

    fn claim(&mut self) -> Claim {
        self.epoch += 1;
        let size = self.head.as_ref().map_or(0, |head| head.size);
        Claim {
            epoch: self.epoch,
            head: self.head.clone(),
            edge: partial_tiles(size).filter_map(|tile| Some((tile, self.tile(tile)?))).collect(),
            committed: self.size(),
            witnesses: self.witnesses.clone(),
            was_refused: self.refused,
        }
    }

    fn read(&self, from: u64, limit: usize, random: &mut StdRng) -> Entries {
        let mut rest = self.entries.get(usize::try_from(from).unwrap()..).unwrap_or_default();
        let more = rest.len() >= limit;
        rest = &rest[..rest.len().min(limit)];
        let (mut stretches, mut first) = (Vec::new(), from);
        while !rest.is_empty() {
            let (batch, after) = rest.split_at(random.random_range(1..=rest.len()));
            stretches.push((first, batch.concat()));
            first += batch.len() as u64;
            rest = after;
        }
        Entries { stretches, committed: self.size(), more, seen: Some((self.epoch, self.head.clone())) }
    }

    fn prove(&self, from: u64, to: u64) -> Vec<Hash> {
        let mut set = TileSet::new();
        for tile in certeus_tlog::proof::consistency_tiles(from, to).unwrap() {
            if let Some(hashes) = self.tile(tile) {
                set.insert_hashes(tile, hashes).unwrap();
            }
        }
        consistency(from, to, |level, index| set.subtree_root(level, index)).unwrap_or_default()
    }

    fn store(&mut self, publication: &Publication) -> bool {
        let size = self.head.as_ref().map_or(0, |head| head.size);
        if publication.epoch != self.epoch || publication.old_size != size {
            return false;
        }
        let checkpoint = &publication.signed.checkpoint;
        self.head = Some(StoredHead {
            size: checkpoint.size(),
            root: checkpoint.root(),
            note: publication.signed.note.clone(),
        });
        self.refused = false;
        self.witnesses.clear();
        for (tile, hashes) in &publication.tiles {
            assert!(tile.level() > 0 && hashes.len() == usize::from(tile.width()));
            self.tiles.insert((tile.level(), tile.index()), hashes.clone());
        }
        true
    }
}

/// Everything outside of the sealers.
struct World {
    random: StdRng,
    database: Database,
    anchor: Option<String>,
    /// How likely a step goes wrong, of 100.
    faults: u32,
    /// Every checkpoint that somebody may have seen.
    out: Vec<Checkpoint>,
}

/// One sealer, and what it is to do next.
struct Sealer {
    core: Core,
    command: Option<Command>,
    at: Instant,
    refusal: Option<Refusal>,
}

fn settings(keys: Arc<SigningKeys>, objection_wait: Duration) -> Settings {
    Settings { keys, interval: INTERVAL, has_anchor: true, objection_wait }
}

impl Sealer {
    fn start() -> Self {
        Self::start_with(settings(keys(1), Duration::ZERO), None)
    }

    fn start_with(settings: Settings, shown: Option<Checkpoint>) -> Self {
        let at = Instant::now();
        let (core, command) = Core::start(at, settings, shown);
        Self { core, command: Some(command), at, refusal: None }
    }

    fn restart(&mut self) {
        let (core, command) = Core::start(self.at, settings(keys(1), Duration::ZERO), None);
        (self.core, self.command) = (core, Some(command));
    }

    /// Carries out one command.
    fn step(&mut self, world: &mut World) {
        self.at += Duration::from_millis(world.random.random_range(0..400));
        // A process may end at any step; of an effect it is open whether it happened.
        let fault = world.random.random_range(0..100) < world.faults;
        let happens = !fault || world.random.random();
        let event = match self.command.take().expect("a sealer always has something to do") {
            Command::Claim => happens.then(|| Event::Claimed(Box::new(world.database.claim()))),
            Command::ReadAnchor => Some(Event::Anchor(world.anchor.clone())),
            Command::Prove { from, to } => Some(Event::Proof(world.database.prove(from, to))),
            Command::Read { from } => {
                let limit = world.random.random_range(1..250);
                Some(Event::Entries(world.database.read(from, limit, &mut world.random)))
            }
            Command::SetAnchor { expected, new } => {
                let fits = world.anchor == expected;
                if happens && fits {
                    world.out.push(keys(1).verify(&new).unwrap());
                    world.anchor = Some(new);
                }
                Some(Event::AnchorSet(fits))
            }
            Command::Store(publication) => Some(Event::Stored(happens && world.database.store(&publication))),
            Command::Announce(signed) => {
                world.out.push(signed.checkpoint.clone());
                Some(Event::Announced)
            }
            Command::Wait { .. } => Some(Event::Woken { wanted: world.random.random() }),
            Command::Refuse(refusal) => {
                world.database.refused = true;
                self.refusal = Some(refusal);
                None
            }
            Command::StepDown(_) => None,
        };
        match event.filter(|_| !fault) {
            Some(event) => {
                let now = Now { at: self.at, unix_seconds: 1 };
                self.command = Some(self.core.step(now, event));
            }
            None => self.restart(),
        }
    }
}

impl World {
    fn new(seed: u64, faults: u32) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self { random, database: Database::default(), anchor: None, faults, out: Vec::new() }
    }

    /// Lets the sealers take turns while events come.
    fn run(&mut self, sealers: &mut [Sealer], steps: usize) {
        for _ in 0..steps {
            if self.random.random_range(0..4) == 0 {
                let events = self.random.random_range(1..90);
                self.database.commit(&mut self.random, events);
            }
            let turn = self.random.random_range(0..sealers.len());
            sealers[turn].step(self);
        }
    }

    /// All checkpoints that are out are prefixes of the same list of entries, so any two of them are consistent.
    #[track_caller]
    fn check(&self, seed: u64) {
        let mut out = self.out.clone();
        out.sort_by_key(Checkpoint::size);
        let mut grown = Frontier::new();
        for checkpoint in &out {
            let size = checkpoint.size();
            assert!(size <= self.database.size(), "seed {seed}: more was signed than is committed");
            let (from, to) = (usize::try_from(grown.size()).unwrap(), usize::try_from(size).unwrap());
            for entry in &self.database.entries[from..to] {
                grown.append(leaf_hash(entry), |_, _| {});
            }
            assert_eq!(checkpoint.root(), grown.root(), "seed {seed}: size {size}");
        }
        // And the tree that grew is the one that the definition says.
        assert_eq!(grown.root(), self.database.root(grown.size()), "seed {seed}");
    }
}

#[test]
fn whatever_fails_all_checkpoints_are_prefixes_of_what_is_committed() {
    for seed in 0..60 {
        let mut world = World::new(seed, 15);
        let mut sealers = [Sealer::start(), Sealer::start()];
        world.run(&mut sealers, 250);
        world.check(seed);
        // Without faults a single one catches up, from whatever state is left.
        world.faults = 0;
        let mut survivor = [Sealer::start()];
        for _ in 0..2000 {
            survivor[0].step(&mut world);
            if world.database.head.as_ref().is_some_and(|head| head.size == world.database.size()) {
                break;
            }
        }
        assert!(survivor[0].refusal.is_none(), "seed {seed}: {:?}", survivor[0].refusal);
        let head = world.database.head.as_ref().expect("a head");
        assert_eq!(
            (head.size, head.root),
            (world.database.size(), world.database.root(head.size)),
            "seed {seed}"
        );
        world.check(seed);
        assert!(
            sealers.iter().all(|sealer| sealer.refusal.is_none()),
            "seed {seed}: refused without a reason"
        );
    }
}

#[test]
fn a_database_older_than_the_anchor_is_never_signed_again() {
    for seed in 0..40 {
        let mut world = World::new(seed, 10);
        let mut sealers = [Sealer::start()];
        world.run(&mut sealers, 60);
        let backup = world.database.clone();
        let anchor_before = world.anchor.clone();
        world.run(&mut sealers, 120);
        if world.anchor == anchor_before || world.anchor.is_none() {
            continue;
        }
        // Restored, and then other events are taken, as by pods that know nothing of it.
        world.database = backup;
        let anchored = keys(1).verify(world.anchor.as_deref().unwrap()).unwrap().size();
        if world.database.size() >= anchored {
            continue;
        }
        let (out, anchor) = (world.out.len(), world.anchor.clone());
        let mut restarted = [Sealer::start(), Sealer::start()];
        world.run(&mut restarted, 400);
        assert!(
            world.database.size() > anchored,
            "seed {seed}: the fork must outgrow the log to be interesting"
        );
        assert_eq!((world.out.len(), &world.anchor), (out, &anchor), "seed {seed}: a fork was signed");
        assert!(restarted.iter().any(|sealer| sealer.refusal.is_some()), "seed {seed}");
    }
}

/// Steps a sealer without faults until it refuses.
#[track_caller]
fn refusal(world: &mut World) -> String {
    let mut sealer = Sealer::start();
    for _ in 0..500 {
        sealer.step(world);
        if let Some(refusal) = &sealer.refusal {
            return refusal.to_string();
        }
    }
    panic!("it does not refuse")
}

fn sealed(events: usize) -> World {
    let mut world = World::new(7, 0);
    world.database.commit(&mut world.random, events);
    let mut sealer = Sealer::start();
    while world.database.head.as_ref().is_none_or(|head| head.size < events as u64) {
        sealer.step(&mut world);
    }
    world
}

#[test]
fn what_does_not_match_is_named() {
    let mut world = sealed(1000);
    world.database.entries.truncate(990);
    assert!(
        refusal(&mut world)
            .starts_with("the database ends after 990 events, and the log was signed up to 1000")
    );

    // Somebody wrote another head, with no key or another one.
    let mut world = sealed(1000);
    let head = world.database.head.as_mut().unwrap();
    head.root = Hash([1; 32]);
    assert_eq!(refusal(&mut world), "the newest checkpoint in the database cannot be trusted");
    let forged = keys(2).sign(900, world.database.root(900), 1).unwrap();
    world.database.head =
        Some(StoredHead { size: 900, root: forged.checkpoint.root(), note: forged.note.clone() });
    assert_eq!(refusal(&mut world), "the newest checkpoint in the database cannot be trusted");
    world = sealed(1000);
    world.anchor = Some(forged.note);
    assert_eq!(refusal(&mut world), "the checkpoint in the anchor cannot be trusted");

    // An entry below the right edge, and one in it.
    let mut world = sealed(1000);
    world.database.tiles.get_mut(&(1, 0)).unwrap()[1] = Hash([1; 32]);
    assert!(refusal(&mut world).starts_with("the stored tiles and entries do not lead to the root"));
    let mut world = sealed(1000);
    world.database.entries[999] = [1; 32];
    assert!(refusal(&mut world).starts_with("the stored tiles and entries do not lead to the root"));

    // A restored head, with the entries that the anchor knows replaced by others.
    let mut world = sealed(1000);
    let anchor = world.anchor.clone();
    world.database = sealed(700).database;
    world.database.commit(&mut world.random, 600);
    world.anchor = anchor;
    assert_eq!(
        refusal(&mut world),
        "the first 1000 events in the database are not those that the log was signed for"
    );
}

/// However many checkpoints are known from elsewhere, and wherever they lie, each is compared.
#[test]
fn every_checkpoint_that_is_known_is_compared() {
    let truth = sealed(1000);
    let of = |world: &World, size: u64| keys(1).sign(size, world.database.root(size), 1).unwrap();
    let mut other = World::new(8, 0);
    other.database.commit(&mut other.random, 1300);
    let sizes = [1, 300, 700, 1000, 1100, 1200];
    for wrong in [None, Some(0), Some(1), Some(2), Some(3), Some(4), Some(5)] {
        let mut world = sealed(1000);
        world.database.commit(&mut world.random, 250);
        let known = sizes.iter().enumerate().map(|(n, size)| {
            let forged = wrong == Some(n);
            of(
                if forged {
                    &other
                } else if *size <= 1000 {
                    &truth
                } else {
                    &world
                },
                *size,
            )
        });
        let mut known: Vec<Signed> = known.collect();
        let shown = known.remove(3).checkpoint;
        world.anchor = Some(known.remove(2).note);
        world.database.witnesses = known.into_iter().map(|signed| signed.note).collect();
        world.database.refused = true;
        let mut sealer = Sealer::start_with(settings(keys(1), Duration::ZERO), Some(shown));
        let head = world.database.head.clone();
        for _ in 0..200 {
            if sealer.command.is_none() || sealer.refusal.is_some() || world.database.head != head {
                break;
            }
            sealer.step(&mut world);
        }
        match wrong {
            None => {
                assert_eq!(world.database.head.unwrap().size, 1250);
                assert!(world.database.witnesses.is_empty() && !world.database.refused);
            }
            Some(wrong) => {
                let expected = format!("the first {} events in the database are not those", sizes[wrong]);
                let refusal = sealer.refusal.expect("a refusal").to_string();
                assert!(refusal.starts_with(&expected), "{refusal}");
                assert_eq!(world.database.head, head);
            }
        }
    }

    let mut world = sealed(10);
    world.database.witnesses = vec![keys(2).sign(5, world.database.root(5), 1).unwrap().note];
    assert_eq!(refusal(&mut world), "the checkpoint that another pod knows cannot be trusted");
    world.database.witnesses = vec![of(&other, 11).note];
    assert!(refusal(&mut world).contains("ends after 10 events, and the log was signed up to 11"));
}

/// Who may know less than others leaves them time to say so, even when it is asked for a checkpoint.
#[test]
fn a_claim_waits_for_objections_before_it_signs() {
    let mut world = sealed(10);
    world.database.commit(&mut world.random, 10);
    let (wait, size) = (Duration::from_secs(3), |world: &World| world.database.head.as_ref().unwrap().size);
    let mut sealer = Sealer::start_with(settings(keys(1), wait), None);
    let started = sealer.at;
    while size(&world) == 10 {
        sealer.step(&mut world);
        assert!(sealer.at < started + 2 * wait, "it never signs");
    }
    assert!(sealer.at >= started + wait);
    assert_eq!(size(&world), 20);

    // An objection raises the epoch: the sealer lets go without having signed.
    let mut sealer = Sealer::start_with(settings(keys(1), wait), None);
    while !matches!(sealer.command, Some(Command::Wait { .. })) {
        sealer.step(&mut world);
    }
    world.database.commit(&mut world.random, 10);
    world.database.epoch += 1;
    while !matches!(sealer.command, Some(Command::StepDown(_))) {
        sealer.step(&mut world);
    }
    assert_eq!(size(&world), 20);
}

#[test]
fn a_missing_batch_stops_the_log() {
    let mut world = sealed(10);
    world.database.commit(&mut world.random, 10);
    let mut sealer = Sealer::start();
    while !matches!(sealer.command, Some(Command::Read { .. })) {
        sealer.step(&mut world);
    }
    let mut entries = world.database.read(10, 100, &mut world.random);
    entries.stretches = vec![(12, vec![0; 8 * ENTRY_BYTES])];
    let now = Now { at: Instant::now(), unix_seconds: 1 };
    let command = sealer.core.step(now, Event::Entries(entries));
    assert!(matches!(command, Command::Refuse(Refusal::Gap { missing: 10 })), "{command:?}");
}

/// A new key beside the old one signs at once, so that the old one can go.
#[test]
fn a_new_key_signs_the_present_size_again() {
    use certeus_tlog::note::{Algorithm, SignerKey};
    let mut world = sealed(5);
    let text = |seed| {
        let key = SignerKey::from_seed("log.example", Algorithm::Ed25519, [seed; 32]).unwrap();
        key.to_secret_text().to_string()
    };
    let both: Arc<SigningKeys> = Arc::new(format!("{}\n{}", text(1), text(2)).parse().unwrap());
    let mut sealer = Sealer::start_with(settings(both, Duration::ZERO), None);
    for _ in 0..10 {
        sealer.step(&mut world);
    }
    let head = world.database.head.unwrap();
    assert_eq!(keys(2).verify(&head.note).unwrap().size(), 5);
    assert_eq!(keys(1).verify(&head.note).unwrap().size(), 5);
}
