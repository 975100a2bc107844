use proptest::prelude::*;

use super::*;

const LIMITS: Limits<'_> = Limits { request_events_max: 4, event_bytes_max: 200, encrypted_fields: None };

fn parse(body: &str, format: Format, on_bad: OnBadEvent) -> Result<Parsed, Error> {
    Submission::parse(Bytes::copy_from_slice(body.as_bytes()), format, &LIMITS, on_bad)
}

/// The payloads taken from a request, or its refusal.
fn payloads(body: &str, format: Format) -> Result<Vec<String>, Error> {
    let parsed = parse(body, format, OnBadEvent::RefuseAll)?;
    let submission = parsed.submission.expect("at least one event");
    Ok(submission.events().map(|event| String::from_utf8(event.payload.to_vec()).unwrap()).collect())
}

/// The reason why a single event is refused.
fn refusal(event: &str) -> EventError {
    match payloads(event, Format::Json) {
        Err(Error::Event(refused)) => refused.error,
        other => panic!("{event}: {other:?}"),
    }
}

#[test]
fn payload_bytes_are_those_received_without_the_space_around() {
    let a = r#"{"type":"a", "timestamp" : 1,"x":[1, {"type":2}]}"#;
    let b = r#"{ "timestamp":"2026-01-31T12:00:00Z","type":"b\/é" }"#;
    assert_eq!(payloads(&format!(" {a}\n"), Format::Json), Ok(vec![a.to_owned()]));
    let both = Ok(vec![a.to_owned(), b.to_owned()]);
    assert_eq!(payloads(&format!("[{a} ,\n {b}]"), Format::Json), both);
    assert_eq!(payloads(&format!("{a}\r\n\n  {b}"), Format::Ndjson), both);
}

#[test]
fn type_and_time_are_read() {
    let body = r#"{"t\u0079pe":"a\/\u00e9","timestamp":1769860800.25}"#;
    let parsed = parse(body, Format::Json, OnBadEvent::RefuseAll).unwrap();
    let submission = parsed.submission.unwrap();
    let event = submission.events().next().unwrap();
    assert_eq!((event.kind, event.time.micros()), ("a/é", 1_769_860_800_250_000));
}

#[test]
fn bad_events_are_refused_for_their_own_reason() {
    use EventError as E;
    assert_eq!(refusal(r#"{"timestamp":1}"#), E::Missing("type"));
    assert_eq!(refusal(r#"{"type":"a"}"#), E::Missing("timestamp"));
    assert_eq!(refusal("{}"), E::Missing("type"));
    assert_eq!(refusal(r#"{"type":"a","timestamp":1,"\u0074ype":"b"}"#), E::Repeated("type"));
    assert_eq!(refusal(r#"{"type":"a","timestamp":1,"timestamp":2}"#), E::Repeated("timestamp"));
    for kind in [r#""""#, "7", "null", r#""\u0000""#, r#""\ud800""#, &format!("{:?}", "x".repeat(257))] {
        assert_eq!(refusal(&format!(r#"{{"type":{kind},"timestamp":1}}"#)), E::Type, "{kind}");
    }
    assert_eq!(refusal(r#"{"type":"a","timestamp":null}"#), E::TimestampKind);
    assert_eq!(refusal(r#"{"type":"a","timestamp":"soon"}"#), E::Timestamp(timestamp::Error::NotRfc3339));
    assert_eq!(refusal(r#"{"type":"a","timestamp":-5}"#), E::Timestamp(timestamp::Error::OutOfRange));
    assert_eq!(refusal("7"), E::NotAnObject);
    let long = format!(r#"{{"type":"a","timestamp":1,"x":"{}"}}"#, "y".repeat(200));
    assert_eq!(refusal(&long), E::TooLarge { bytes: long.len(), max: 200 });
    let deep = format!(r#"{{"type":"a","timestamp":1,"x":{}}}"#, "[".repeat(1000));
    assert!(matches!(refusal(&deep), E::Syntax(json::Error { fault: json::Fault::TooDeep, .. })));
}

#[test]
fn bodies_that_hold_no_list_of_events_are_refused_whole() {
    assert_eq!(payloads("", Format::Json), Err(Error::Empty));
    assert_eq!(payloads(" [ ] ", Format::Json), Err(Error::Empty));
    assert_eq!(payloads("\n\n", Format::Ndjson), Err(Error::Empty));
    let event = r#"{"type":"a","timestamp":1}"#;
    for (body, offset) in
        [(format!("{event} {event}"), 27), (format!("[{event}"), 27), (format!("[{event},]"), 28)]
    {
        match payloads(&body, Format::Json) {
            Err(Error::Syntax(error)) => assert_eq!(error.offset, offset, "{body}"),
            Err(Error::Event(refused)) => assert_eq!(refused.offset, offset, "{body}"),
            other => panic!("{body}: {other:?}"),
        }
    }
    let five = [event; 5].join(",");
    assert_eq!(payloads(&format!("[{five}]"), Format::Json), Err(Error::TooManyEvents(4)));
    let bytes = Bytes::from_static(b"{\"type\":\"\xff\"}");
    let error = Submission::parse(bytes, Format::Json, &LIMITS, OnBadEvent::RefuseAll).unwrap_err();
    assert_eq!(error, Error::NotUtf8(9));
}

#[test]
fn one_bad_event_refuses_the_batch_and_is_named_unless_the_rest_is_wanted() {
    let good = r#"{"type":"a","timestamp":1}"#;
    let bad = r#"{"type":{"x":1},"timestamp":1}"#;
    for (body, format) in
        [(format!("[{good},{bad},{good}]"), Format::Json), (format!("{good}\n{bad}\n{good}"), Format::Ndjson)]
    {
        let Err(Error::Event(refused)) = parse(&body, format, OnBadEvent::RefuseAll) else {
            panic!("{body}")
        };
        assert_eq!((refused.position, &body[refused.offset..][..bad.len()]), (1, bad));
        let parsed = parse(&body, format, OnBadEvent::RefuseOne).unwrap();
        assert_eq!(parsed.submission.unwrap().len(), 2);
        assert_eq!(parsed.refused, [refused]);
    }
    // Each line stands alone, but within a broken array nothing after the fault can be found.
    let broken = r#"{"type":"a""#;
    let parsed = parse(&format!("{broken}\n{good}"), Format::Ndjson, OnBadEvent::RefuseOne).unwrap();
    assert_eq!((parsed.submission.unwrap().len(), parsed.refused.len()), (1, 1));
    assert!(parse(&format!("[{broken},{good}]"), Format::Json, OnBadEvent::RefuseOne).is_err());
    let parsed = parse(bad, Format::Json, OnBadEvent::RefuseOne).unwrap();
    assert!(parsed.submission.is_none() && parsed.refused.len() == 1);
}

proptest! {
    #[test]
    fn any_object_with_type_and_time_comes_back_unchanged(
        kind in "\\PC{1,20}", micros in 0..Timestamp::MAX.micros(), more in prop::collection::hash_map("[a-s]{1,5}", any::<String>(), 0..4)
    ) {
        let mut object: serde_json::Map<String, serde_json::Value> =
            more.into_iter().map(|(key, text)| (key, text.into())).collect();
        let time = Timestamp::from_micros(micros).unwrap();
        object.insert("type".to_owned(), kind.clone().into());
        object.insert("timestamp".to_owned(), time.to_string().into());
        let event = serde_json::Value::Object(object).to_string();
        let limits = Limits { event_bytes_max: 1 << 20, ..LIMITS };
        let body = Bytes::from(format!("[{event}, {event}]"));
        let parsed = Submission::parse(body, Format::Json, &limits, OnBadEvent::RefuseAll).unwrap();
        for found in parsed.submission.unwrap().events() {
            prop_assert_eq!((found.kind, found.time, found.payload), (&kind[..], time, event.as_bytes()));
        }
    }

    #[test]
    fn no_bytes_at_all_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..64), ndjson: bool) {
        let format = if ndjson { Format::Ndjson } else { Format::Json };
        let _either = Submission::parse(body.into(), format, &LIMITS, OnBadEvent::RefuseOne);
    }
}

/// The cases of a request's events.
fn cases(body: &str) -> Vec<(usize, String)> {
    let submission = parse(body, Format::Ndjson, OnBadEvent::RefuseOne).unwrap().submission.unwrap();
    submission.cases().map(|(position, case)| (position, case.to_owned())).collect()
}

#[test]
fn cases_are_found_and_what_names_none_is_no_fault() {
    let event = |member: &str| format!("{{\"type\":\"a\",{member}\"timestamp\":1}}\n");
    let body = event("") + &event(r#""case_id":"k 1","#) + &event(r#""cas\u0065_id":"\u00e9","#);
    assert_eq!(cases(&body), [(1, "k 1".to_owned()), (2, "é".to_owned())]);
    // A refused event takes no position.
    let body = "{}\n".to_owned() + &event(r#""case_id":"b","#);
    assert_eq!(cases(&body), [(0, "b".to_owned())]);
    for member in [r#""case_id":"","#, r#""case_id":7,"#, r#""case_id":["x"],"#, r#""x":{"case_id":"x"},"#] {
        assert_eq!(cases(&event(member)), [], "{member}");
    }
    for member in [r#""case_id":"a\u0000","#, r#""case_id":"\ud800","#, r#""case_id":"a","case_id":null,"#] {
        assert_eq!(cases(&event(member)), [], "{member}");
    }
    assert_eq!(cases(&event(r#""case_id":null,"case_id":"b","#)), [(0, "b".to_owned())]);
    let limits = Limits { request_events_max: 1, event_bytes_max: 1000, encrypted_fields: None };
    for (bytes, found) in [(CASE_ID_BYTES_MAX, 1), (CASE_ID_BYTES_MAX + 1, 0)] {
        let body = Bytes::from(event(&format!("\"case_id\":\"{}\",", "c".repeat(bytes))));
        let parsed = Submission::parse(body, Format::Ndjson, &limits, OnBadEvent::RefuseAll).unwrap();
        assert_eq!(parsed.submission.unwrap().cases().count(), found);
    }
}

#[test]
fn sequence_numbers_must_suffice_for_the_events() {
    use crate::request::ProducerSequence;
    let body = "{\"type\":\"a\",\"timestamp\":1}\n".repeat(2);
    let parse = || parse(&body, Format::Ndjson, OnBadEvent::RefuseAll).unwrap().submission.unwrap();
    let producer = |first| Identity::Producer(ProducerSequence::new("p", 0, first).unwrap());
    assert!(parse().identified(producer(SEQUENCE_MAX - 2), b"").is_ok());
    assert_eq!(parse().identified(producer(SEQUENCE_MAX - 1), b"").unwrap_err(), IdentityError::Sequence);
}

#[test]
fn events_that_encryption_makes_too_long_are_refused_and_growth_counts() {
    let fields = Fields::new(&["/a", "/b"]).unwrap();
    let limits = Limits { encrypted_fields: Some(&fields), ..LIMITS };
    let parse =
        |body: &str, on_bad| Submission::parse(Bytes::from(body.to_owned()), Format::Ndjson, &limits, on_bad);
    let one = r#"{"type":"t","timestamp":1,"a":1,"c":2}"#;
    let three = r#"{"type":"t","timestamp":1,"a":1,"b":2,"a":3}"#;
    let parsed = parse(&format!("{one}\n{three}\n{one}"), OnBadEvent::RefuseOne).unwrap();
    // Each value of one byte becomes a string of 65.
    let bytes = three.len() + 3 * 64;
    let error = EventError::TooLargeEncrypted { bytes, max: 200 };
    assert_eq!(parsed.refused, [Refused { position: 1, offset: one.len() + 1, error: error.clone() }]);
    assert_eq!(parse(three, OnBadEvent::RefuseAll).unwrap_err().to_string(), format!("event 0: {error}"));
    let submission = parsed.submission.unwrap();
    let plain =
        Submission::parse(submission.body.clone(), Format::Ndjson, &LIMITS, OnBadEvent::RefuseAll).unwrap();
    let fewer = size_of::<Event>();
    assert_eq!(submission.bytes(), plain.submission.unwrap().bytes() - fewer + 2 * 64);
}
