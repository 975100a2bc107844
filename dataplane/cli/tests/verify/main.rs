//! `certeus verify` and `certeus key` as their users run them: golden files, and every way of tampering with them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod log;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use certeus_tlog::checkpoint::Checkpoint;
use certeus_tlog::note::{Algorithm, SignedNote};
use certeus_tlog::{Hash, empty_root};
use log::{ORIGIN, SIZE, checkpoint, consistency, event_proof, key, log_key, payload, serve_tiles, tree};
use serde_json::Value;

struct Outcome {
    status: i32,
    stdout: String,
    stderr: String,
}

fn certeus(dir: &Path, arguments: &[&str], stdin: &[u8]) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_certeus"))
        .args(arguments)
        .current_dir(dir)
        .env_remove("CERTEUS_API_KEY")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have refused its options without reading.
    let _not_read = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    Outcome {
        status: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn verify(dir: &Path, arguments: &[&str]) -> Outcome {
    certeus(dir, &[&["verify"], arguments].concat(), b"")
}

/// Runs with `--json` and gives status and reason.
fn refusal(dir: &Path, arguments: &[&str]) -> (i32, String) {
    let outcome = verify(dir, &[arguments, &["--json"]].concat());
    let json: Value = serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|_| panic!("{arguments:?}: {} {}", outcome.stdout, outcome.stderr));
    assert_eq!(json["verified"], outcome.status == 0, "{json}");
    (outcome.status, json["reason"].as_str().unwrap_or_default().to_owned())
}

/// The files of an honest log.
fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    let signer = log_key();
    write("event", &payload(7));
    write("event.proof", event_proof(7, SIZE, checkpoint(SIZE, &[&signer])).to_string().as_bytes());
    write("log.vkey", format!("{}\n", signer.verifier()).as_bytes());
    write("old.checkpoint", checkpoint(SIZE - 30, &[&signer]).to_string().as_bytes());
    write("new.checkpoint", checkpoint(SIZE, &[&signer]).to_string().as_bytes());
    write("consistency", consistency(SIZE - 30, SIZE).as_bytes());
    dir
}

const EVENT: [&str; 6] = ["--event", "event", "--proof", "event.proof", "--key", "log.vkey"];
const CONSISTENCY: [&str; 7] =
    ["--consistency", "old.checkpoint", "new.checkpoint", "--key", "log.vkey", "--proof", "consistency"];

/// The files of the example and what is printed change only on purpose; `UPDATE_GOLDEN=1` rewrites them.
#[test]
fn golden_files_verify_and_print_what_they_should() {
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/verify/golden"));
    let dir = files();
    let mut made: Vec<(String, Vec<u8>)> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect();
    for (name, arguments) in [
        ("event.txt", &EVENT[..]),
        ("event.json", &[&EVENT[..], &["--json"]].concat()),
        ("consistency.txt", &CONSISTENCY),
        ("checkpoint.txt", &["--checkpoint", "new.checkpoint", "--key", "log.vkey"]),
    ] {
        let outcome = verify(dir.path(), arguments);
        assert_eq!((outcome.status, &outcome.stderr[..]), (0, ""), "{name}");
        made.push((name.to_owned(), outcome.stdout.into_bytes()));
    }
    for (name, bytes) in made {
        let path = golden.join(&name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &bytes).unwrap();
        }
        let wanted = fs::read(&path).unwrap_or_default();
        assert!(wanted == bytes, "{name} differs: run with UPDATE_GOLDEN=1 and read the diff");
    }
}

#[test]
fn no_changed_byte_of_an_event_or_its_proof_verifies() {
    let dir = files();
    for name in ["event", "event.proof"] {
        let path = dir.path().join(name);
        let good = fs::read(&path).unwrap();
        // Every byte of a small file, one in seven of a longer one.
        for at in (0..good.len()).step_by(if good.len() < 100 { 1 } else { 7 }) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let outcome = verify(dir.path(), &EVENT);
            assert!(matches!(outcome.status, 1 | 2), "byte {at} of {name}: {}", outcome.stdout);
            assert!(outcome.stdout.is_empty() && outcome.stderr.lines().count() == 1, "{}", outcome.stderr);
        }
        fs::write(&path, &good).unwrap();
    }
    assert_eq!(verify(dir.path(), &EVENT).status, 0);
}

#[test]
fn each_way_to_be_wrong_has_its_own_reason() {
    let signer = log_key();
    let other = key(ORIGIN, Algorithm::Ed25519, 2);
    let honest = || checkpoint(SIZE, &[&signer]);
    let signed = |size: u64, root: Hash| {
        let text = Checkpoint::new(ORIGIN, size, root).unwrap().to_text();
        SignedNote::sign(text, [&signer], 0).unwrap()
    };
    let proof = |change: &dyn Fn(&mut certeus_tlog::tlog_proof::TlogProof)| {
        let mut proof = event_proof(7, SIZE, honest());
        change(&mut proof);
        proof.to_string().into_bytes()
    };
    let with_line_feed = [&payload(7)[..], b"\n"].concat();
    let cases: Vec<(&str, Vec<u8>, i32, &str)> = vec![
        ("event", payload(8), 1, "not-included"),
        ("event", with_line_feed, 1, "payload-length"),
        ("event", Vec::new(), 1, "payload-length"),
        ("event.proof", proof(&|proof| proof.index = 6), 1, "not-included"),
        ("event.proof", proof(&|proof| proof.index = SIZE), 1, "index-beyond-checkpoint"),
        ("event.proof", proof(&|proof| proof.index = u64::MAX), 1, "index-beyond-checkpoint"),
        ("event.proof", proof(&|proof| proof.hashes.truncate(3)), 1, "not-included"),
        ("event.proof", proof(&|proof| proof.hashes.swap(0, 1)), 1, "not-included"),
        ("event.proof", proof(&|proof| proof.hashes.clear()), 1, "not-included"),
        ("event.proof", proof(&|proof| proof.extra[5] ^= 1), 1, "not-included"),
        ("event.proof", proof(&|proof| proof.extra[0] = 2), 2, "malformed"),
        ("event.proof", proof(&|proof| proof.extra.clear()), 2, "malformed"),
        ("event.proof", proof(&|proof| proof.extra.truncate(40)), 2, "malformed"),
        ("event.proof", proof(&|proof| proof.checkpoint = signed(0, empty_root())), 1, "empty-log"),
        ("event.proof", proof(&|proof| proof.checkpoint = signed(SIZE, tree(9).1)), 1, "not-included"),
        ("event.proof", proof(&|proof| proof.checkpoint = checkpoint(SIZE, &[&other])), 1, "wrong-key"),
        ("event.proof", b"c2sp.org/tlog-proof@v1\nindex 07\n\n".to_vec(), 2, "malformed"),
        ("event.proof", vec![0xFF; 100], 2, "malformed"),
        ("event.proof", Vec::new(), 2, "malformed"),
        ("log.vkey", format!("{}\n", other.verifier()).into_bytes(), 1, "wrong-key"),
        ("log.vkey", b"log.example/default+00000000+AQID\n".to_vec(), 2, "unreadable"),
        ("log.vkey", signer.to_secret_text().as_bytes().to_vec(), 2, "unreadable"),
        ("log.vkey", Vec::new(), 2, "unreadable"),
    ];
    let dir = files();
    for (number, (name, bytes, status, reason)) in cases.into_iter().enumerate() {
        let path = dir.path().join(name);
        let good = fs::read(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        assert_eq!(refusal(dir.path(), &EVENT), (status, reason.to_owned()), "case {number}: {name}");
        fs::write(&path, good).unwrap();
    }
    let text = verify(dir.path(), &["--event", "event", "--proof", "event.proof", "--key", "log+1+x"]).stderr;
    assert!(text.contains("neither a public key") && text.contains("nor a file"), "{text}");
    fs::write(dir.path().join("event"), [&payload(7)[..], b"\n"].concat()).unwrap();
    let text = verify(dir.path(), &EVENT).stderr;
    let n = payload(7).len();
    let wanted = format!(
        "not verified: the event has {} bytes, and the proof is of one with {n}: there is a line feed at its end \
         which does not belong to it\n",
        n + 1
    );
    assert_eq!(text, wanted);
}

#[test]
fn a_wrong_key_length_a_forged_signature_and_another_origin_are_told_apart() {
    let dir = files();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let short = log_key().verifier().to_string();
    // 31 bytes instead of 32, with an id that nothing could match.
    write(
        "short.vkey",
        &format!("{}+AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHw==\n", &short[..short.len() - 45]),
    );
    let outcome = verify(dir.path(), &["--checkpoint", "new.checkpoint", "--key", "short.vkey"]);
    assert_eq!(outcome.status, 2);
    assert!(outcome.stderr.contains("the key has 30 bytes, and must have 32"), "{}", outcome.stderr);

    let note = fs::read_to_string(dir.path().join("new.checkpoint")).unwrap();
    write("forged", &note.replace("\n300\n", "\n301\n"));
    let check = |file: &str, more: &[&str]| {
        refusal(dir.path(), &[&["--checkpoint", file, "--key", "log.vkey"], more].concat())
    };
    assert_eq!(check("forged", &[]), (1, "invalid-signature".to_owned()));
    assert_eq!(check("new.checkpoint", &["--origin", "other"]), (1, "wrong-origin".to_owned()));
    assert_eq!(check("new.checkpoint", &["--max-age", "1h"]), (1, "no-time".to_owned()));
    assert_eq!(check("new.checkpoint", &["--newer-than", "old.checkpoint"]).0, 0);
    assert_eq!(check("old.checkpoint", &["--newer-than", "new.checkpoint"]), (1, "stale".to_owned()));
    assert_eq!(check("missing", &[]), (2, "unreadable".to_owned()));
    write("forked", &{
        let text = Checkpoint::new(ORIGIN, SIZE, tree(3).1).unwrap().to_text();
        SignedNote::sign(text, [&log_key()], 0).unwrap().to_string()
    });
    assert_eq!(check("forked", &["--newer-than", "new.checkpoint"]), (1, "forked".to_owned()));
    assert_eq!(check("new.checkpoint", &["--newer-than", "forged"]), (1, "invalid-signature".to_owned()));
}

#[test]
fn witnesses_and_timed_keys_are_counted_and_dated() {
    let dir = files();
    let witnesses =
        [key("w1.example", Algorithm::CosignatureV1, 11), key("w2.example", Algorithm::CosignatureV1, 12)];
    let second = key(ORIGIN, Algorithm::MlDsa44, 3);
    let write = |name: &str, text: String| fs::write(dir.path().join(name), text).unwrap();
    write("witnesses", witnesses.iter().map(|key| format!("# a witness\n{}\n", key.verifier())).collect());
    write("ml-dsa.vkey", format!("{}\n", second.verifier()));
    write("one", checkpoint(SIZE, &[&log_key(), &witnesses[0]]).to_string());
    write("both", checkpoint(SIZE, &[&log_key(), &second, &witnesses[0], &witnesses[1]]).to_string());
    let check = |file: &str, more: &[&str]| {
        refusal(dir.path(), &[&["--checkpoint", file, "--key", "log.vkey"], more].concat())
    };
    let few = (1, "too-few-witnesses".to_owned());
    assert_eq!(check("one", &["--witness", "witnesses"]), few);
    assert_eq!(check("one", &["--witness", "witnesses", "--witness-threshold", "1"]).0, 0);
    assert_eq!(check("both", &["--witness", "witnesses"]).0, 0);
    assert_eq!(check("new.checkpoint", &["--witness", "witnesses", "--witness-threshold", "1"]), few);
    assert_eq!(
        check("both", &["--witness", "witnesses", "--witness-threshold", "3"]),
        (2, "usage".to_owned())
    );
    // The signed time lies far back or ahead, whenever this runs.
    let old = "1s";
    let outcome = check("both", &["--witness", "witnesses", "--max-age", old]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let wanted = if now > log::TIME + 1 { (1, "stale".to_owned()) } else { (0, String::new()) };
    assert_eq!(outcome, wanted);
    assert_eq!(check("both", &["--key", "ml-dsa.vkey", "--max-age", "876000h"]).0, 0);
    // A post-quantum key alone will do, as will either of two.
    let alone = ["--checkpoint", "both", "--key", "ml-dsa.vkey"];
    assert_eq!(refusal(dir.path(), &alone).0, 0);

    let forged = fs::read_to_string(dir.path().join("one")).unwrap();
    let line = forged.lines().find(|line| line.contains("w1.example")).unwrap();
    let at = line.len() - 20;
    let changed = if &line[at..=at] == "A" { "B" } else { "A" };
    write("forged", forged.replace(line, &format!("{}{changed}{}", &line[..at], &line[at + 1..])));
    let threshold = ["--witness", "witnesses", "--witness-threshold", "1"];
    assert_eq!(check("forged", &threshold), (1, "invalid-cosignature".to_owned()));
}

#[test]
fn consistency_is_proven_from_a_file_or_from_the_log_itself() {
    let dir = files();
    assert_eq!(verify(dir.path(), &CONSISTENCY).status, 0);
    let url = serve_tiles(SIZE);
    let from_log = |old: &str, new: &str, url: &str| {
        refusal(dir.path(), &["--consistency", old, new, "--key", "log.vkey", "--log", url])
    };
    assert_eq!(from_log("old.checkpoint", "new.checkpoint", &url), (0, String::new()));
    // A log that has grown since serves only the full tile.
    let grown = serve_tiles(2 * SIZE);
    assert_eq!(from_log("old.checkpoint", "new.checkpoint", &grown), (0, String::new()));
    assert_eq!(from_log("new.checkpoint", "old.checkpoint", &url), (1, "inconsistent".to_owned()));
    let nothing = serve_tiles(0);
    assert_eq!(from_log("old.checkpoint", "new.checkpoint", &nothing), (2, "unreadable".to_owned()));
    assert_eq!(
        from_log("old.checkpoint", "new.checkpoint", "http://127.0.0.1:1"),
        (2, "unreadable".to_owned())
    );

    let same = ["--consistency", "new.checkpoint", "new.checkpoint", "--key", "log.vkey"];
    assert_eq!(refusal(dir.path(), &same).0, 0);
    assert_eq!(refusal(dir.path(), &CONSISTENCY[..5]), (2, "usage".to_owned()));

    let path = dir.path().join("consistency");
    let good = fs::read_to_string(&path).unwrap();
    let hashes: Vec<&str> = good.lines().collect();
    let json =
        format!(r#"{{"old_size":270,"new_size":300,"hashes":{}}}"#, serde_json::to_string(&hashes).unwrap());
    for (text, wanted) in [
        (json, (0, "")),
        (good.lines().skip(1).map(|line| format!("{line}\n")).collect(), (1, "inconsistent")),
        (good.lines().rev().map(|line| format!("{line}\n")).collect(), (1, "inconsistent")),
        ("not a hash\n".to_owned(), (2, "malformed")),
        ("{}".to_owned(), (2, "malformed")),
        (good.repeat(50), (2, "malformed")),
        (String::new(), (1, "inconsistent")),
    ] {
        fs::write(&path, &text).unwrap();
        assert_eq!(refusal(dir.path(), &CONSISTENCY), (wanted.0, wanted.1.to_owned()), "{text}");
    }
    // The other side of a fork: the same log up to 270, signed, but grown otherwise.
    fs::write(&path, &good).unwrap();
    let text = Checkpoint::new(ORIGIN, SIZE, tree(SIZE - 1).1).unwrap().to_text();
    let forked = SignedNote::sign(text, [&log_key()], 0).unwrap().to_string();
    fs::write(dir.path().join("new.checkpoint"), forked).unwrap();
    assert_eq!(refusal(dir.path(), &CONSISTENCY), (1, "inconsistent".to_owned()));
}

#[test]
fn inputs_come_from_standard_input_and_keys_as_text() {
    let dir = files();
    let vkey = log_key().verifier().to_string();
    let arguments = ["verify", "--event", "-", "--proof", "event.proof", "--key", &vkey];
    assert_eq!(certeus(dir.path(), &arguments, &payload(7)).status, 0);
    assert_eq!(certeus(dir.path(), &arguments, &payload(6)).status, 1);
    let arguments = ["verify", "--event", "-", "--proof", "-", "--key", &vkey];
    assert_eq!(certeus(dir.path(), &arguments, b"").status, 2);
    for wrong in [&["verify"][..], &["verify", "--key", "x"], &["verify", "--event", "event", "--key", "x"]] {
        assert_eq!(certeus(dir.path(), wrong, b"").status, 2, "{wrong:?}");
    }
}

#[test]
fn a_made_key_signs_what_its_public_half_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let made = certeus(dir.path(), &["key", "new", "--name", ORIGIN, "--out", "a.key"], b"");
    assert_eq!((made.status, &made.stderr[..]), (0, ""));
    let shown = certeus(dir.path(), &["key", "public", "a.key"], b"");
    assert_eq!(shown.stdout, made.stdout);
    let secret = fs::read_to_string(dir.path().join("a.key")).unwrap();
    let signer = certeus_tlog::note::SignerKey::parse(secret.trim_end()).unwrap();
    let note = checkpoint(SIZE, &[&signer]).to_string();
    let vkey = made.stdout.trim_end();
    let arguments = ["verify", "--checkpoint", "-", "--key", vkey];
    assert_eq!(certeus(dir.path(), &arguments, note.as_bytes()).status, 0);

    let again = certeus(dir.path(), &["key", "new", "--name", ORIGIN, "--out", "a.key"], b"");
    assert_eq!((again.status, &again.stdout[..]), (2, ""));
    assert!(again.stderr.contains("never overwritten"), "{}", again.stderr);
    let other = certeus(dir.path(), &["key", "new", "--name", ORIGIN, "--out", "b.key"], b"");
    assert_ne!(other.stdout, made.stdout);
    assert_eq!(certeus(dir.path(), &["key", "new", "--name", "a b", "--out", "c.key"], b"").status, 2);
    assert!(!dir.path().join("c.key").exists());
}
