use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use certeus_localpg::{LocalPg, Options};
use tokio_postgres::NoTls;

use super::*;

#[test]
fn a_bad_url_is_refused_without_repeating_it() {
    let error = Database::from_url("postgres://u:secret@host:notaport/db").unwrap_err();
    assert!(!format!("{error} {error:?}").contains("secret"));
    let database = Database::from_url("postgres://u:secret@host/db").unwrap();
    assert!(!format!("{database:?}").contains("secret"));
}

fn openssl(folder: &Path, arguments: &str) {
    let output =
        Command::new("openssl").args(arguments.split_whitespace()).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Certificates of an authority, in PEM.
fn authority(folder: &Path, name: &str) -> String {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(folder, &format!("req -x509 {key} -days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt"));
    std::fs::read_to_string(folder.join(format!("{name}.crt"))).unwrap()
}

/// A server whose certificate `ours` signed for `localhost`, but not for 127.0.0.1.
async fn server_with_tls(folder: &Path) -> LocalPg {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let names = "-addext subjectAltName=DNS:localhost -addext basicConstraints=CA:FALSE";
    openssl(
        folder,
        &format!(
            "req -x509 {key} -days 2 -subj /CN=db {names} -CA ours.crt -CAkey ours.key -keyout server.key -out server.crt"
        ),
    );
    let dir = pg.log_file().parent().unwrap().to_owned();
    let owner = std::fs::metadata(&dir).unwrap();
    for name in ["server.key", "server.crt"] {
        // PostgreSQL insists on a key that nobody else can read.
        std::fs::copy(folder.join(name), dir.join(name)).unwrap();
        chown(dir.join(name), Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    let (client, connection) = tokio_postgres::connect(&pg.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    for (name, value) in [("ssl_key_file", "server.key"), ("ssl_cert_file", "server.crt")] {
        let path = dir.join(value);
        client.batch_execute(&format!("ALTER SYSTEM SET {name} = '{}'", path.display())).await.unwrap();
    }
    client.batch_execute("ALTER SYSTEM SET ssl = on").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let encrypted = Database::from_url(&pg.url()).unwrap();
    while !uses_tls(&encrypted).await.unwrap() {
        let log = std::fs::read_to_string(pg.log_file()).unwrap_or_default();
        assert!(Instant::now() < deadline, "no TLS: {log}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    pg
}

async fn uses_tls(database: &Database) -> Result<bool, Error> {
    let connection = database.connect().await?;
    let row = connection.client.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]);
    Ok(row.await?.get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_believed_by_the_certificates_given_and_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (authority(folder.path(), "ours"), authority(folder.path(), "theirs"));
    let pg = server_with_tls(folder.path()).await;
    // Of the name's addresses the one at which the server listens.
    let by_address = format!("{}?hostaddr=127.0.0.1", pg.url());
    let by_name = by_address.replacen("127.0.0.1", "localhost", 1);
    let check = async |url: &str, trusted: Option<&str>, refused: Option<&str>| {
        let database = Database::from_url(url).unwrap();
        let database = trusted.map_or(Ok(database.clone()), |pem| database.trusting(pem)).unwrap();
        let told = match uses_tls(&database).await {
            Ok(tls) => format!("TLS: {tls}"),
            Err(error) => describe(&error),
        };
        let expected = refused.unwrap_or("TLS: true");
        assert!(told.contains(expected), "{}: {told}", url.split_once('@').unwrap().1);
        // Reads take their connections from a pool, which must not be laxer.
        let read = database.pool(1).unwrap().get().await.err().map(|error| format!("{error:?}"));
        assert_eq!(read.is_some(), refused.is_some(), "{read:?}");
    };
    let both = format!("what others write\n{theirs}{ours}");
    for mode in ["", "&sslmode=prefer", "&sslmode=require", "&sslmode=verify-full"] {
        check(&format!("{by_name}{mode}"), Some(&ours), None).await;
        check(&format!("{by_name}{mode}"), Some(&both), None).await;
        check(&format!("{by_name}{mode}"), Some(&theirs), Some("UnknownIssuer")).await;
        check(&format!("{by_address}{mode}"), Some(&ours), Some("not valid for name")).await;
    }
    // Nothing signed by `ours` is in the system's store.
    check(&format!("{by_name}&sslmode=require"), None, Some("UnknownIssuer")).await;
    check(&by_address, None, None).await;
    pg.stop().unwrap();

    let plain = LocalPg::start(&Options::default()).unwrap();
    check(&plain.url(), Some(&ours), Some("does not support TLS")).await;
}

#[test]
fn certificates_that_cannot_be_read_are_refused_and_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let good = authority(folder.path(), "good");
    let key = std::fs::read_to_string(folder.path().join("good.key")).unwrap();
    let trusting = |url: &str, pem: &str| Database::from_url(url).unwrap().trusting(pem).unwrap_err();
    let check = |pem: &str, number: usize| {
        let error = trusting("postgres://u@h/d", pem);
        assert!(matches!(error, ConfigError::Certificates { number: found } if found == number), "{error}");
        assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
    };
    check("", 1);
    check("secret", 1);
    check(&key, 1);
    check("-----BEGIN CERTIFICATE-----\nc2VjcmV0\n-----END CERTIFICATE-----\n", 1);
    check("-----BEGIN secret\n", 1);
    check(&format!("{good}{}", &good[..good.len() / 2]), 2);
    let contradiction = trusting("postgres://u@h/d?sslmode=disable", &good);
    assert!(matches!(contradiction, ConfigError::NoTls), "{contradiction}");
}
