//! Where the programs under test are.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};

/// The pod's program.
///
/// # Errors
/// When it is not there, or older than its sources.
pub fn dataplane() -> Result<PathBuf> {
    find("certeus-dataplane")
}

/// The operator.
///
/// # Errors
/// When it is not there, or older than its sources.
pub fn operator() -> Result<PathBuf> {
    find("certeus-operator")
}

/// The operator as one of another version, which must be as long as its own: a copy in which only that differs.
///
/// # Errors
/// When it cannot be written, or does not say its version where one is looked for.
pub fn operator_of_version(version: &str, to: &Path) -> Result<PathBuf> {
    const OWN: &str = env!("CARGO_PKG_VERSION");
    ensure!(version.len() == OWN.len(), "{version} is not as long as {OWN}");
    let program = operator()?;
    let mut from = BufReader::new(File::open(&program)?);
    let mut copy = BufWriter::new(File::create(to)?);
    // In pieces that end with a slash, as what is looked for is `certeus-operator/VERSION`.
    let (mut piece, mut follows, mut changed) = (Vec::new(), false, 0);
    while from.read_until(b'/', &mut piece)? > 0 {
        if follows && piece.starts_with(OWN.as_bytes()) {
            piece[..OWN.len()].copy_from_slice(version.as_bytes());
            changed += 1;
        }
        follows = piece.ends_with(b"certeus-operator/");
        copy.write_all(&piece)?;
        piece.clear();
    }
    copy.flush()?;
    ensure!(changed > 0, "{} does not hold certeus-operator/{OWN}", program.display());
    std::fs::set_permissions(to, program.metadata()?.permissions())?;
    Ok(to.to_owned())
}

/// A program of the workspace, named as its package, built in the same profile as this one: `target/debug/deps/test-hash` and
/// `target/release/certeus-torture` both find it in `target/<profile>`.
/// Nothing must be concluded from yesterday's program.
fn find(name: &str) -> Result<PathBuf> {
    let build = format!("build it first: cargo build -p {name} (with --release for certeus-torture)");
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let folder = own.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    let program = folder.context("this program is in no folder")?.join(name);
    let built = modified(&program).with_context(|| format!("there is no {}: {build}", program.display()))?;
    // Cargo writes the names of all sources beside the program, in the form of a make rule.
    let rule = std::fs::read_to_string(program.with_extension("d")).unwrap_or_default();
    let sources = rule.split_once(": ").map_or("", |(_, sources)| sources);
    for source in sources.split_whitespace() {
        if modified(Path::new(source)).is_ok_and(|changed| changed > built) {
            bail!("{} is older than {source}: {build}", program.display());
        }
    }
    Ok(program)
}

fn modified(path: &Path) -> std::io::Result<SystemTime> {
    path.metadata()?.modified()
}
