use bytes::Bytes;
use object_store::PutPayload;
use object_store::memory::InMemory;
use proptest::prelude::*;

use super::*;
use crate::row::Content;

/// A row whose entry is right.
fn row(position: u128, payload: Option<&[u8]>) -> Row {
    let mut row = Row {
        index: u64::try_from(position).unwrap() + 7,
        id: Uuid::from_u128((0x019c_1126_6400_7abc << 64) + position),
        time_micros: 1_769_860_800_123_456,
        committed_micros: 1_769_860_801_000_000,
        kind: "payment.made".to_owned(),
        entry: [9; 32],
        content: None,
    };
    if let Some(payload) = payload {
        let content =
            Content { payload: Bytes::copy_from_slice(payload), head: vec![1, 2, 3], salt: [4; 32] };
        let mut hasher = Sha256::new();
        for part in [&b"certeus/entry/v1\0"[..], &content.salt, &content.head, payload] {
            hasher.update(part);
        }
        row.entry = hasher.finalize().into();
        row.content = Some(content);
    }
    row
}

fn memory() -> Archive {
    Archive::in_store(Arc::new(InMemory::new()))
}

async fn write(archive: &Archive, name: &str, rows: &[Row]) -> Written {
    let mut file = archive.create("default", name).await.unwrap();
    for row in rows {
        file.push(row.clone()).await.unwrap();
    }
    file.finish().await.unwrap()
}

async fn read(archive: &Archive, name: &str) -> Vec<Row> {
    let file = archive.open_file(name).await.unwrap();
    let mut rows = Vec::new();
    for group in 0..file.groups() {
        rows.extend(file.rows(group).await.unwrap());
    }
    rows
}

#[tokio::test]
async fn a_file_of_several_groups_is_read_one_event_at_a_time() {
    let archive = memory();
    let rows: Vec<Row> = (0..20_000_u128)
        .map(|n| row(n * 3, (n % 100 != 5).then_some(&format!("{{\"n\":{n}}}").into_bytes()[..])))
        .collect();
    let written = write(&archive, "default/20260131/a.parquet", &rows).await;
    assert_eq!((written.rows, written.name.as_str()), (20_000, "default/20260131/a.parquet"));
    archive.verify(&written).await.unwrap();
    let file = archive.open_file(&written.name).await.unwrap();
    assert_eq!(file.groups(), 3);
    for n in [0, 5, 8191, 8192, 19_999] {
        assert_eq!(file.find(rows[n].id).await.unwrap().as_ref(), Some(&rows[n]));
    }
    for absent in [Uuid::nil(), Uuid::from_u128(rows[8].id.as_u128() + 1), Uuid::max()] {
        assert_eq!(file.find(absent).await.unwrap(), None);
    }
    assert_eq!(archive.list("default/20260131").await.unwrap(), std::slice::from_ref(&written.name));
    archive.delete(&written.name).await.unwrap();
    archive.delete(&written.name).await.unwrap();
    assert!(archive.list("default").await.unwrap().is_empty());
    let gone = archive.verify(&written).await.unwrap_err();
    assert!(!gone.is_unavailable(), "{gone}");
}

#[tokio::test]
async fn a_folder_holds_the_same_bytes_as_any_store() {
    let dir = tempfile::tempdir().unwrap();
    let location = format!("file://{}", dir.path().join("not/there/yet").display());
    let (folder, memory) = (Archive::open(&location.parse().unwrap()).unwrap(), memory());
    let rows = [row(1, Some(b"{}")), row(2, None), row(3, Some(&[0xff; 1 << 20]))];
    let written = write(&folder, "default/1/a.parquet", &rows).await;
    assert_eq!(write(&memory, "default/1/a.parquet", &rows).await, written);
    folder.verify(&written).await.unwrap();
    assert_eq!(read(&folder, &written.name).await, rows);
    assert_eq!(folder.list("default/1").await.unwrap(), [written.name]);
}

/// Whatever the store changes is noticed on reading back; nothing of it panics.
#[tokio::test]
async fn any_changed_byte_is_noticed() {
    let archive = memory();
    let rows: Vec<Row> = (0..40).map(|n| row(n, Some(b"{\"amount\":12.50}"))).collect();
    let written = write(&archive, "f", &rows).await;
    let path = Path::from("f");
    let good = archive.store.get(&path).await.unwrap().bytes().await.unwrap();
    for place in 0..good.len() {
        let mut bad = good.to_vec();
        bad[place] ^= 0x10;
        archive.store.put(&path, PutPayload::from(bad)).await.unwrap();
        assert!(matches!(archive.verify(&written).await, Err(Error::Digest)), "byte {place}");
        // Without the digest the entries still protect what is read.
        if let Ok(file) = archive.open_file("f").await
            && let Ok(Some(found)) = file.find(rows[7].id).await
        {
            assert_eq!(found.content, rows[7].content, "byte {place}");
        }
    }
    let cut = PutPayload::from(good.slice(..good.len() - 1));
    archive.store.put(&path, cut).await.unwrap();
    assert!(matches!(archive.verify(&written).await, Err(Error::Digest)));
    archive.store.put(&path, PutPayload::from(good)).await.unwrap();
    archive.verify(&written).await.unwrap();
}

#[tokio::test]
async fn rows_that_were_wrong_when_written_are_refused_on_reading_back() {
    let archive = memory();
    let mut altered = row(2, Some(b"{}"));
    altered.content.as_mut().unwrap().payload = Bytes::from_static(b"{ }");
    let written = write(&archive, "a", &[row(1, Some(b"{}")), altered]).await;
    assert!(matches!(archive.verify(&written).await, Err(Error::Altered(_))));
    let written = write(&archive, "b", &[row(2, None), row(1, None)]).await;
    assert!(matches!(archive.verify(&written).await, Err(Error::Malformed(_))));
}

#[tokio::test]
async fn an_abandoned_file_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::open(&format!("file://{}", dir.path().display()).parse().unwrap()).unwrap();
    let mut file = archive.create("default", "x/a").await.unwrap();
    file.push(row(1, Some(&[7; 9 << 20]))).await.unwrap();
    file.abort().await.unwrap();
    assert!(archive.list("x").await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(dir.path().join("x")).unwrap().count(), 0);
}

/// A file that was written once must be readable for ever. `UPDATE_GOLDEN=1` writes it anew.
#[tokio::test]
async fn the_published_example_is_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/formats/archive.parquet");
    let rows = [row(0, Some(b"{\"type\":\"payment.made\"}")), row(1, None), row(2, Some(&[0, 0xff]))];
    let archive = memory();
    let written = write(&archive, "a", &rows).await;
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let bytes = archive.store.get(&Path::from("a")).await.unwrap().bytes().await.unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let published = std::fs::read(path).unwrap();
    archive.store.put(&Path::from("golden"), PutPayload::from(published)).await.unwrap();
    assert_eq!(read(&archive, "golden").await, rows);
    // Equal rows give equal bytes.
    assert_eq!(write(&archive, "b", &rows).await.sha256, written.sha256);
}

prop_compose! {
    fn any_row()(
        kind in "\\PC{1,20}",
        time_micros: i64,
        index in 0..=u64::MAX >> 1,
        payload in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
        head in proptest::collection::vec(any::<u8>(), 0..40),
        salt: [u8; 32],
        entry: [u8; 32],
    ) -> Row {
        let content = payload.map(|payload| Content { payload: payload.into(), head, salt });
        Row { index, id: Uuid::nil(), time_micros, committed_micros: !time_micros, kind, entry, content }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_written_is_read(mut rows in proptest::collection::vec(any_row(), 0..50)) {
        for (n, row) in rows.iter_mut().enumerate() {
            row.id = Uuid::from_u128(n as u128 * 0x1_0000_0001);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let found = runtime.block_on(async {
            let archive = memory();
            write(&archive, "a", &rows).await;
            read(&archive, "a").await
        });
        prop_assert_eq!(found, rows);
    }

    /// A file of arbitrary bytes with a footer's magic is an error at most.
    #[test]
    fn no_bytes_at_all_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), footer in 0_u32..400) {
        bytes.extend(footer.to_le_bytes());
        bytes.extend(b"PAR1");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let archive = memory();
            archive.store.put(&Path::from("a"), PutPayload::from(bytes)).await.unwrap();
            if let Ok(file) = archive.open_file("a").await {
                let _any_error_will_do = file.find(Uuid::nil()).await;
            }
        });
    }
}
