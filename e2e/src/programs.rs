//! Where the programs under test are.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

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
