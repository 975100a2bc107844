use super::*;

fn run_id() -> RunId {
    "test-run".parse().unwrap()
}

fn resolve(yaml: &str) -> Result<Settings, String> {
    let options: Options = serde_saphyr::from_str(yaml).map_err(|error| error.to_string())?;
    options.resolve(run_id()).map_err(|error| error.to_string())
}

/// The settings a file leads to, as the JSON of the result file.
fn settings(yaml: &str) -> serde_json::Value {
    serde_json::to_value(resolve(yaml).unwrap()).unwrap()
}

fn refused(yaml: &str, expected: &str) {
    let error = resolve(yaml).unwrap_err();
    assert!(error.contains(expected), "'{error}' does not say '{expected}'");
}

#[test]
fn nothing_said_gives_the_documented_defaults() {
    let expected = serde_json::json!({
        "url": "http://127.0.0.1:8000", "target-throughput": "max", "duration": "30s", "ramp-up": "0ns",
        "workers": 16, "batch": 100, "event-size": 300, "events": null, "encoding": "none",
        "idempotency-keys": true, "file": null,
        "output": null, "acks": null, "publish": false, "run-id": "test-run",
    });
    assert_eq!(settings("{}"), expected);
}

#[test]
fn a_file_may_set_everything_and_a_flag_wins() {
    let file = "
        url: http://[::1]:9000/certeus/
        target-throughput: 50_000
        duration: 1m30s
        ramp-up: 500ms
        workers: 4
        batch: 10
        event-size: 512
        events: 1000
        encoding: zstd
        output: result.json
        acks: acks.tsv
        run-id: 42
    ";
    let file: Options = serde_saphyr::from_str(file).unwrap();
    let flags = Options { workers: Some(8), target_throughput: Some(Throughput::Max), ..Options::default() };
    let settings = flags.or(file).resolve(run_id()).unwrap();
    assert_eq!(settings.workers, 8);
    assert_eq!(settings.target_throughput, Throughput::Max);
    assert_eq!(settings.duration, Some(Span(Duration::from_secs(90))));
    assert_eq!(settings.ramp_up, Span(Duration::from_millis(500)));
    assert_eq!(settings.run_id.as_str(), "42");
    let Endpoint { host, port, authority, base_path, text: _ } = settings.url;
    assert_eq!((&*host, port, &*authority, &*base_path), ("::1", 9000, "[::1]:9000", "/certeus"));
}

#[test]
fn a_bounded_run_has_no_default_duration_and_a_file_one_worker() {
    assert_eq!(resolve("events: 5").unwrap().duration, None);
    let replay = resolve("file: events.ndjson").unwrap();
    assert_eq!((replay.duration, replay.workers), (None, 1));
}

#[test]
fn throughput_is_a_number_or_max() {
    for (text, expected) in [
        ("0", Throughput::Max),
        ("max", Throughput::Max),
        ("50_000", Throughput::EventsPerSecond(50_000.0)),
        ("0.5", Throughput::EventsPerSecond(0.5)),
    ] {
        assert_eq!(text.parse(), Ok(expected));
        assert_eq!(resolve(&format!("target-throughput: {text}")).unwrap().target_throughput, expected);
    }
    for text in ["-1", "fast", "NaN", "inf", ""] {
        assert!(text.parse::<Throughput>().is_err(), "{text}");
    }
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    refused("worker: 3", "worker");
    refused("workers: three", "workers");
    refused("workers: 0", "workers: 0 is not between 1 and 10000");
    refused("batch: 100001", "batch: 100001 is not between");
    refused("event-size: 20", "event-size: 20 is not between");
    refused("duration: 30", "'30' is not a time such as");
    refused("duration: 0s", "duration: must be above zero");
    refused("{duration: 5s, ramp-up: 6s}", "ramp-up: 6s is longer than the duration, 5s");
    refused("events: 0", "events: must be above zero");
    refused("run-id: 'a b'", "'a b' is not 1 to 64");
    refused("{file: x, workers: 2}", "workers cannot be used with file");
    refused("{file: x, event-size: 300}", "event-size cannot be used with file");
    refused("{workers: 10000, batch: 100000}", "request bodies");
    refused("url: https://ledger.example", "TLS is not supported");
    refused("url: http://key@ledger.example", "CERTEUS_API_KEY");
    refused("url: ledger.example", "http://HOST:PORT");
}
