//! A log without its sealer.

use certeus_tlog::checkpoint::Checkpoint;
use certeus_tlog::note::{Algorithm, SignedNote, SignerKey};
use certeus_tlog::tile::TileId;
use certeus_tlog::tree::Frontier;
use certeus_tlog::{Hash, leaf_hash};
use tokio_postgres::Client;

pub(crate) const ORIGIN: &str = "log.example/default";

pub(crate) fn signer() -> SignerKey {
    SignerKey::from_seed(ORIGIN, Algorithm::Ed25519, [1; 32]).unwrap()
}

fn sign(size: u64, root: Hash) -> String {
    let text = Checkpoint::new(ORIGIN, size, root).unwrap().to_text();
    SignedNote::sign(text, [&signer()], 0).unwrap().to_string()
}

pub(crate) async fn entries(client: &Client) -> Vec<[u8; 32]> {
    let rows = client
        .query("SELECT entries FROM certeus.batches WHERE ledger = 'default' ORDER BY first_index", &[])
        .await
        .unwrap();
    rows.iter().flat_map(|row| row.get::<_, &[u8]>(0).as_chunks().0.to_vec()).collect()
}

/// What the sealer does: tiles above level 0, and signed checkpoints.
pub(crate) async fn seal(client: &mut Client, sizes: &[u64]) {
    let entries = entries(client).await;
    let mut frontier = Frontier::new();
    let mut tiles: Vec<(TileId, Vec<u8>)> = Vec::new();
    let bytes = |hashes: &[Hash]| hashes.iter().flat_map(|hash| hash.0).collect::<Vec<u8>>();
    let transaction = client.transaction().await.unwrap();
    for (size, entry) in (1..).zip(&entries) {
        frontier.append(leaf_hash(entry), |tile, hashes| tiles.push((tile, bytes(hashes))));
        if !sizes.contains(&size) {
            continue;
        }
        let (root, note) = (frontier.root(), sign(size, frontier.root()));
        let number = i64::try_from(size).unwrap();
        let insert = "INSERT INTO certeus.checkpoints VALUES ('default', $1, $2, $3, now())";
        transaction.execute(insert, &[&number, &&root.0[..], &note]).await.unwrap();
        let head = "INSERT INTO certeus.log_heads (ledger, epoch, tree_size, root, checkpoint, signed_at) \
             VALUES ('default', 1, $1, $2, $3, now()) ON CONFLICT (ledger) DO UPDATE SET tree_size = $1, root = $2, \
             checkpoint = $3";
        transaction.execute(head, &[&number, &&root.0[..], &note]).await.unwrap();
    }
    tiles.extend(frontier.partial_tiles().map(|(tile, hashes)| (tile, bytes(hashes))));
    for (tile, hashes) in tiles.iter().filter(|(tile, _)| tile.level() > 0) {
        let (level, index) = (i16::from(tile.level()), i64::try_from(tile.index()).unwrap());
        let insert = "INSERT INTO certeus.log_tiles VALUES ('default', $1, $2, $3)";
        transaction.execute(insert, &[&level, &index, hashes]).await.unwrap();
    }
    transaction.commit().await.unwrap();
}
