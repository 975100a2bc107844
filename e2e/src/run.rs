//! One run of one scenario: its seed, its folder, how long it is, and how it ended.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::dice::Dice;
use crate::scenario::Scenario;

/// Rounds after which a run goes on with a fresh database, so that what is checked fits into memory.
const SEGMENT_ROUNDS: u32 = 25;
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// How a run ended.
#[derive(Debug)]
pub enum Verdict {
    /// Everything held; the text says what was seen.
    Held(String),
    /// It could not be run here, for this reason.
    Skipped(String),
    /// Something did not hold, or the run could not go on.
    Broke(String),
}

/// What a scenario has to work with.
#[derive(Debug)]
pub struct Run {
    name: &'static str,
    seed: u64,
    rounds: u32,
    dir: PathBuf,
    /// Chance for the scenario.
    pub dice: Dice,
    reported: Instant,
}

impl Run {
    /// Where its files go; kept when something did not hold.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The rounds, in stretches of which each has a database of its own.
    #[must_use]
    pub fn segments(&self) -> Vec<Range<u32>> {
        let step = usize::try_from(SEGMENT_ROUNDS).unwrap_or(1);
        (0..self.rounds).step_by(step).map(|first| first..self.rounds.min(first + SEGMENT_ROUNDS)).collect()
    }

    /// A folder of its own for a part of the run.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }

    /// Says from time to time how far it is.
    pub fn progress(&mut self, round: u32) {
        if self.reported.elapsed() >= PROGRESS_EVERY {
            self.reported = Instant::now();
            eprintln!("{}: round {} of {}", self.name, round + 1, self.rounds);
        }
    }
}

/// Runs a scenario with a seed for so many rounds, in a folder of its own below `parent`.
#[must_use]
pub fn run(scenario: &Scenario, seed: u64, rounds: u32, parent: &Path) -> Verdict {
    let dir = parent.join(format!("{}-{seed}-{}", scenario.name, std::process::id()));
    let mut run = Run {
        name: scenario.name,
        seed,
        rounds,
        dir: dir.clone(),
        dice: Dice::new(seed),
        reported: Instant::now(),
    };
    eprintln!("{}: seed {seed}, {rounds} rounds", scenario.name);
    let prepared = fs::create_dir_all(&dir).and_then(|()| {
        // PostgreSQL runs as another user when we run as root, and must get at its folder.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))
    });
    let outcome =
        prepared.context("cannot make a folder for the run").and_then(|()| (scenario.run)(&mut run));
    let verdict = match outcome {
        Ok(verdict) => verdict,
        Err(error) => Verdict::Broke(format!("{error:#}")),
    };
    if let Verdict::Broke(text) = &verdict {
        let text = format!(
            "{text}\nrepeat with: certeus-torture run {} --seed {seed} --rounds {rounds}\n",
            scenario.name
        );
        // The text is also returned; the file is for those who find the folder later.
        let _written = fs::write(dir.join("verdict.txt"), &text);
        return Verdict::Broke(format!("{text}logs and journal: {}", dir.display()));
    }
    if let Err(error) = fs::remove_dir_all(&dir) {
        eprintln!("cannot remove {}: {error}", dir.display());
    }
    verdict
}

impl Run {
    /// The seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }
}
