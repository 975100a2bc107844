use proptest::prelude::*;

use super::*;
use crate::postgres::Failure;
use crate::request::{IdempotencyKey, Identity};

/// A request of the simulation: who it says it is, and what it asks for.
#[derive(Debug, Clone)]
struct Request {
    identity: Option<Identity>,
    body: u8,
    event_count: usize,
}

impl Request {
    fn claim(&self) -> Option<Claim<'_>> {
        let identity = self.identity.as_ref()?;
        let producer = match identity {
            Identity::Key(_) => None,
            Identity::Producer(producer) => Some(producer),
        };
        let body = BodyDigest([self.body; 32]);
        let event_count = self.event_count;
        Some(Claim { key: identity.key("l"), body, producer, event_count, keyring: None })
    }
}

fn key(name: &str) -> Request {
    let identity = Some(Identity::Key(IdempotencyKey::new(name).unwrap()));
    Request { identity, body: 0, event_count: 1 }
}

fn numbered(id: &str, epoch: u32, first: u64, event_count: usize) -> Request {
    let identity = Some(Identity::Producer(ProducerSequence::new(id, epoch, first).unwrap()));
    Request { identity, body: 0, event_count }
}

fn verdicts(requests: &[Request], known: &Known) -> Vec<Verdict> {
    let claims: Vec<_> = requests.iter().map(Request::claim).collect();
    plan(&claims, known).verdicts
}

fn producer_at(epoch: u32, next: u64) -> Known {
    let states = HashMap::from([("p".to_owned(), ProducerState { epoch, next })]);
    Known { stored: HashMap::new(), producers: Some(states) }
}

#[test]
fn a_digest_is_stored_keyed_and_recognised_under_every_key() {
    const KEYS: [&str; 2] =
        ["AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="];
    let request = key("a");
    let [old, both, other] =
        [KEYS[0], &KEYS.join(","), &KEYS[1].replace("AgI", "AwM")].map(|keys| Keyring::parse(keys).unwrap());
    let claim = |keyring| Claim { keyring, ..request.claim().unwrap() };
    let plain = claim(None).stored_body();
    let keyed = claim(Some(&old)).stored_body();
    assert!(plain == claim(None).body && keyed != plain && claim(Some(&other)).stored_body() != keyed);
    let rotated = Keyring::parse(&[KEYS[1], KEYS[0]].join(",")).unwrap();
    for keyring in [&old, &both, &rotated] {
        assert!(claim(Some(keyring)).asks_for(keyed) && claim(Some(keyring)).asks_for(plain));
    }
    assert!(!claim(Some(&other)).asks_for(keyed) && !claim(None).asks_for(keyed));
}

#[test]
fn without_a_look_the_first_of_each_identity_counts_as_new() {
    use Verdict::{Later, New, SameAs};
    let anonymous = Request { identity: None, body: 0, event_count: 1 };
    let nothing = Known::default();
    let requests = [key("a"), anonymous.clone(), key("b"), key("a"), anonymous];
    assert_eq!(verdicts(&requests, &nothing), [New, New, New, SameAs(0), New]);
    let in_row =
        [numbered("p", 1, 5, 2), numbered("q", 0, 0, 1), numbered("p", 1, 7, 1), numbered("p", 1, 5, 2)];
    assert_eq!(verdicts(&in_row, &nothing), [New, New, New, SameAs(0)]);
    let claims: Vec<_> = in_row.iter().map(Request::claim).collect();
    let advances = plan(&claims, &nothing).advances;
    assert_eq!(
        advances,
        [
            Advance { producer: "p", epoch: 1, first: 5, next: 8 },
            Advance { producer: "q", epoch: 0, first: 0, next: 1 },
        ]
    );
    // After one that does not follow, none of this producer goes first.
    let gap =
        [numbered("p", 1, 5, 2), numbered("p", 1, 8, 1), numbered("p", 1, 7, 1), numbered("p", 1, 8, 1)];
    assert_eq!(verdicts(&gap, &nothing), [New, Later, Later, Later]);
    assert_eq!(verdicts(&[numbered("p", 1, 5, 2), numbered("p", 2, 0, 1)], &nothing), [New, Later]);
}

#[test]
fn what_is_stored_decides() {
    let one = |request: Request, known: &Known| verdicts(&[request], known)[0];
    let refused = |error| Verdict::Answered(Err(error));
    for (request, verdict) in [
        (numbered("p", 3, 10, 2), Verdict::New),
        (numbered("p", 3, 11, 2), refused(CommitError::SequenceGap { expected: 10 })),
        (numbered("p", 3, 8, 2), refused(CommitError::Duplicate)),
        (numbered("p", 3, 9, 2), refused(CommitError::SequenceOverlap { expected: 10 })),
        (numbered("p", 2, 10, 2), refused(CommitError::ProducerFenced { epoch: 3 })),
        (numbered("p", 4, 0, 2), Verdict::New),
        (numbered("p", 4, 10, 2), refused(CommitError::SequenceGap { expected: 0 })),
        (numbered("new", 9, 0, 2), Verdict::New),
        (numbered("new", 9, 1, 2), refused(CommitError::SequenceGap { expected: 0 })),
    ] {
        assert_eq!(one(request.clone(), &producer_at(3, 10)), verdict, "{request:?}");
    }
    // The same first number with more events is another matter.
    assert_eq!(
        verdicts(&[numbered("p", 3, 9, 1), numbered("p", 3, 9, 2)], &producer_at(3, 10)),
        [refused(CommitError::Duplicate), refused(CommitError::SequenceOverlap { expected: 10 })]
    );
    let receipt = Receipt { first_index: 5, count: 1, first_id: uuid::Uuid::nil(), replayed: false };
    let stored = Stored { body: BodyDigest([0; 32]), batch: BatchId::new(1, 1), receipt };
    let with = |request: &Request, known: Known| {
        let key = request.claim().unwrap().key;
        Known { stored: HashMap::from([(key, stored)]), ..known }
    };
    let replay = Verdict::Answered(Ok(Receipt { replayed: true, ..receipt }));
    let known = with(&key("a"), producer_at(0, 1));
    assert_eq!(one(key("a"), &known), replay);
    assert_eq!(one(Request { body: 1, ..key("a") }, &known), refused(CommitError::KeyReused));
    let first = numbered("p", 3, 0, 1);
    assert_eq!(one(first.clone(), &with(&first, producer_at(3, 1))), replay);
    let other = Request { body: 1, ..first.clone() };
    assert_eq!(one(other, &with(&first, producer_at(3, 1))), refused(CommitError::SequenceReused));
    // Who was replaced is told so, whatever it had stored.
    assert_eq!(
        one(first.clone(), &with(&first, producer_at(4, 0))),
        refused(CommitError::ProducerFenced { epoch: 4 })
    );
}

#[test]
fn in_doubt_a_gap_is_no_reason_to_part() {
    let gap = Verdict::Answered(Err(CommitError::SequenceGap { expected: 1 }));
    assert!(must_part(&[Verdict::New, gap], false));
    assert!(!must_part(&[Verdict::New, gap], true));
    for error in [
        CommitError::KeyReused,
        CommitError::Duplicate,
        CommitError::ProducerFenced { epoch: 1 },
        CommitError::SequenceOverlap { expected: 1 },
    ] {
        assert!(must_part(&[gap, Verdict::Answered(Err(error))], true));
    }
    assert!(!must_part(&[Verdict::New, Verdict::SameAs(0), Verdict::Later], false));
}

/// The database as the statements of `session.rs` see it.
#[derive(Debug, Default)]
struct Database {
    stored: HashMap<RequestKey, Stored>,
    producers: HashMap<String, ProducerState>,
    batches: HashMap<BatchId, Vec<Receipt>>,
    /// Producer, epoch and number of each event, in log order.
    log: Vec<Option<(String, u32, u64)>>,
    ids: u128,
}

/// A batch as it is sent to the database.
#[derive(Debug, Clone)]
struct Sent {
    id: BatchId,
    requests: Vec<Request>,
}

impl Database {
    fn new_id(&mut self) -> BatchId {
        self.ids += 1;
        BatchId::new(1, self.ids << 20)
    }

    /// Stores a batch whole or not at all.
    fn commit(&mut self, sent: &Sent) -> Result<(), Failure> {
        let claims: Vec<_> = sent.requests.iter().map(Request::claim).collect();
        let advances = plan(&claims, &Known::default()).advances;
        let taken = |claim: &Claim<'_>| self.stored.contains_key(&claim.key);
        let out_of_place = |advance: &Advance<'_>| match self.producers.get(advance.producer) {
            Some(state) if state.epoch == advance.epoch => state.next != advance.first,
            Some(state) => state.epoch > advance.epoch || advance.first != 0,
            None => advance.first != 0,
        };
        if claims.iter().flatten().any(taken) || advances.iter().any(out_of_place) {
            return Err(Failure::Claimed);
        }
        if self.batches.contains_key(&sent.id) {
            return Err(Failure::Duplicate);
        }
        for Advance { producer, epoch, next, .. } in advances {
            self.producers.insert(producer.to_owned(), ProducerState { epoch, next });
        }
        let mut receipts = Vec::new();
        for (request, claim) in sent.requests.iter().zip(&claims) {
            let first_index = self.log.len() as u64;
            let (count, first_id) = (request.event_count, sent.id.uuid());
            let receipt = Receipt { first_index, count, first_id, replayed: false };
            for offset in 0..count as u64 {
                let producer = claim.and_then(|claim| claim.producer);
                self.log.push(producer.map(|p| (p.id().to_owned(), p.epoch(), p.first() + offset)));
            }
            if let Some(claim) = claim {
                self.stored.insert(claim.key, Stored { body: claim.body, batch: sent.id, receipt });
            }
            receipts.push(receipt);
        }
        self.batches.insert(sent.id, receipts);
        Ok(())
    }

    fn look_up(&self, claims: &[Option<Claim<'_>>]) -> Known {
        let mut stored = self.stored.clone();
        stored.retain(|key, _| claims.iter().flatten().any(|claim| claim.key == *key));
        Known { stored, producers: Some(self.producers.clone()) }
    }
}

/// What happens to a statement on its way.
#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    /// It takes effect, or fails, and the reply is lost.
    ReplyLost,
    /// The connection is lost, and the statement arrives later, if ever.
    Delayed,
}

/// A writer with its batch, which does one step at a time as `writer.rs` does.
#[derive(Debug, Default)]
struct Writer {
    waiting: Vec<Request>,
    known: Known,
    attempt: Option<Sent>,
    in_doubt: bool,
    contested: bool,
    attempts: usize,
    answers: Vec<(Request, Result<Receipt, CommitError>)>,
}

impl Writer {
    fn step(&mut self, database: &mut Database, fault: Fault, delayed: &mut Vec<Sent>) {
        let requests = self.waiting.clone();
        let claims: Vec<_> = requests.iter().map(Request::claim).collect();
        let verdicts = plan(&claims, &self.known).verdicts;
        let is_new = |verdict: &&Verdict| matches!(verdict, Verdict::New);
        let Some(sent) = self.attempt.clone() else {
            let new = requests.iter().zip(&verdicts).filter(|(_, verdict)| is_new(verdict));
            let new: Vec<Request> = new.map(|(request, _)| request.clone()).collect();
            if new.is_empty() {
                return self.answer(requests.clone(), &verdicts, &[]);
            }
            self.attempt = Some(Sent { id: database.new_id(), requests: new });
            (self.in_doubt, self.contested, self.attempts) = (false, false, 0);
            return;
        };
        if self.contested {
            self.contested = false;
            let known = database.look_up(&claims);
            if known.stored.values().any(|stored| stored.batch == sent.id) {
                self.in_doubt = true;
            } else {
                let sent_claims: Vec<_> = sent.requests.iter().map(Request::claim).collect();
                if must_part(&plan(&sent_claims, &known).verdicts, self.in_doubt) {
                    (self.known, self.attempt) = (known, None);
                    return;
                }
            }
        }
        if self.in_doubt
            && let Some(receipts) = database.batches.get(&sent.id)
        {
            let receipts: Vec<_> = receipts.iter().copied().map(Ok).collect();
            return self.answer(requests.clone(), &verdicts, &receipts);
        }
        self.attempts += 1;
        if self.attempts > 8 {
            let error = if self.in_doubt { CommitError::OutcomeUnknown } else { CommitError::Unavailable };
            return self.answer(requests.clone(), &verdicts, &vec![Err(error); sent.requests.len()]);
        }
        match fault {
            Fault::None => match database.commit(&sent) {
                Ok(()) => {
                    let receipts: Vec<_> = database.batches[&sent.id].iter().copied().map(Ok).collect();
                    self.answer(requests.clone(), &verdicts, &receipts);
                }
                Err(Failure::Claimed) => self.contested = true,
                Err(_duplicate) => self.in_doubt = true,
            },
            Fault::ReplyLost => {
                let _lost = database.commit(&sent);
                self.in_doubt = true;
            }
            Fault::Delayed => {
                delayed.push(sent);
                self.in_doubt = true;
            }
        }
    }

    fn answer(&mut self, requests: Vec<Request>, verdicts: &[Verdict], new: &[Result<Receipt, CommitError>]) {
        let mut new = new.iter().copied();
        let mut outcomes: Vec<Option<Result<Receipt, CommitError>>> = Vec::new();
        for (verdict, request) in verdicts.iter().zip(&requests) {
            outcomes.push(match verdict {
                Verdict::New => new.next(),
                Verdict::Answered(outcome) => Some(*outcome),
                Verdict::Later => None,
                Verdict::SameAs(leader) => {
                    let same = requests[*leader].body == request.body;
                    let reused = Some(Err(reused(&request.claim().unwrap())));
                    if same || outcomes[*leader].is_some_and(|o| o.is_err()) {
                        outcomes[*leader]
                    } else {
                        reused
                    }
                }
            });
        }
        self.waiting.clear();
        for (request, outcome) in requests.into_iter().zip(outcomes) {
            match outcome {
                Some(outcome) => self.answers.push((request, outcome)),
                None => self.waiting.push(request),
            }
        }
        (self.known, self.attempt) = (Known::default(), None);
    }
}

fn any_request() -> impl Strategy<Value = Request> {
    // With the number of events of its usual body: what has the same bytes has the same events.
    let named = prop_oneof![
        1 => (1..4_usize).prop_map(|count| (None, count)),
        3 => (0..3_u8).prop_map(|name| (key(&name.to_string()).identity, usize::from(name) + 1)),
        6 => (0..2_u8, 0..3_u32, 0..8_usize).prop_map(|(id, epoch, first)| {
            (numbered(&id.to_string(), epoch, first as u64, 1).identity, first % 3 + 1)
        }),
    ];
    let body = prop_oneof![9 => Just(0_u8), 1 => Just(1_u8)];
    (named, body).prop_map(|((identity, usual), body)| Request {
        identity,
        body,
        event_count: usual + usize::from(body),
    })
}

fn any_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![6 => Just(Fault::None), 1 => Just(Fault::ReplyLost), 2 => Just(Fault::Delayed)]
}

proptest! {
    // What goes wrong needs several coincidences: rare among the usual 256 cases.
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Two writers, whose steps fall between each other in any way, commit batches of any requests, while replies are lost
    /// and statements arrive late.
    #[test]
    fn no_interleaving_stores_twice_or_out_of_order(
        batches in prop::collection::vec((0..2_usize, prop::collection::vec(any_request(), 1..6)), 1..12),
        turns in prop::collection::vec((0..2_usize, any_fault(), any::<bool>()), 0..80),
    ) {
        let mut database = Database::default();
        let mut queues: [Vec<Vec<Request>>; 2] = Default::default();
        for (pod, batch) in batches {
            queues[pod].push(batch);
        }
        let mut pods = [Writer::default(), Writer::default()];
        let mut delayed: Vec<Sent> = Vec::new();
        let mut turns = turns.into_iter();
        for step in 0.. {
            prop_assert!(step < 2000, "a writer makes no progress");
            let (turn, fault, arrives) = turns.next().unwrap_or((step % 2, Fault::None, false));
            if arrives && !delayed.is_empty() {
                let _nobody_listens = database.commit(&delayed.swap_remove(step % delayed.len()));
            }
            let pod = &mut pods[turn];
            if pod.waiting.is_empty() {
                pod.waiting = queues[turn].pop().unwrap_or_default();
            }
            if !pod.waiting.is_empty() {
                pod.step(&mut database, fault, &mut delayed);
            }
            if pods.iter().all(|pod| pod.waiting.is_empty()) && queues.iter().all(Vec::is_empty) {
                break;
            }
        }
        for sent in delayed {
            let _nobody_listens = database.commit(&sent);
        }
        // A producer's events stand in the log once, epoch by epoch, each from 0 on without a gap.
        let mut last: HashMap<&str, (u32, u64)> = HashMap::new();
        for (id, epoch, number) in database.log.iter().flatten() {
            match last.insert(id, (*epoch, *number)) {
                Some((before, at)) if before == *epoch => prop_assert_eq!(at + 1, *number),
                Some((before, _)) => prop_assert!(before < *epoch && *number == 0),
                None => prop_assert_eq!(*number, 0),
            }
        }
        // Every answer agrees with what is stored in the end.
        let (mut acknowledged, mut unknown) = (0, 0);
        for (request, outcome) in pods.iter().flat_map(|pod| &pod.answers) {
            let Some(claim) = request.claim() else {
                match outcome {
                    Ok(_) => acknowledged += request.event_count,
                    Err(CommitError::OutcomeUnknown) => unknown += request.event_count,
                    Err(error) => prop_assert_eq!(*error, CommitError::Unavailable),
                }
                continue;
            };
            let stored = database.stored.get(&claim.key);
            match outcome {
                Ok(receipt) => {
                    let stored = stored.unwrap();
                    prop_assert_eq!(claim.body, stored.body);
                    let places = |receipt: &Receipt| (receipt.first_index, receipt.count, receipt.first_id);
                    prop_assert_eq!(places(receipt), places(&stored.receipt));
                }
                Err(CommitError::KeyReused | CommitError::SequenceReused) => {
                    prop_assert_ne!(claim.body, stored.unwrap().body);
                }
                Err(CommitError::OutcomeUnknown | CommitError::Unavailable) => {}
                Err(refusal) => {
                    let producer = claim.producer.unwrap();
                    let state = database.producers.get(producer.id()).copied();
                    let first = producer.first();
                    match refusal {
                        CommitError::ProducerFenced { epoch } => prop_assert!(producer.epoch() < *epoch),
                        CommitError::SequenceGap { expected } => prop_assert!(first > *expected),
                        CommitError::SequenceOverlap { expected } => {
                            prop_assert!(first < *expected && *expected < first + request.event_count as u64);
                        }
                        CommitError::Duplicate => for offset in 0..request.event_count as u64 {
                            let event = Some((producer.id().to_owned(), producer.epoch(), first + offset));
                            prop_assert!(database.log.contains(&event), "{:?} {:?}", event, state);
                        },
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
            }
        }
        let keyed: usize = database.stored.values().map(|stored| stored.receipt.count).sum();
        let certain = keyed + acknowledged;
        prop_assert!((certain..=certain + unknown).contains(&database.log.len()));
    }
}
