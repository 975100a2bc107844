//! Why the process ended, left where Kubernetes looks for it: `kubectl describe pod` and the conditions of a `LedgerCluster` show it.
//!
//! Owns the container's termination log, an empty file that the kubelet makes. *Must not* make one where nobody asked for it, or keep the
//! process from ending.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::panic;

/// Where the kubelet makes it unless a pod's specification says otherwise.
const PATH: &str = "/dev/termination-log";
/// In place of [`PATH`], where nothing can be mounted.
const VARIABLE: &str = "CERTEUS_TERMINATION_LOG";
/// The kubelet reads no more.
const BYTES_MAX: usize = 4096;

/// Leaves what a panic says.
pub(crate) fn leave_panics() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        leave(&panic.to_string());
        report(panic);
    }));
}

/// Leaves these words in place of any before them.
pub(crate) fn leave(words: &str) {
    let path = std::env::var_os(VARIABLE).unwrap_or_else(|| OsString::from(PATH));
    if let Ok(mut file) = File::options().write(true).truncate(true).open(path) {
        // They are in the log as well.
        let _unread = file.write_all(&words.as_bytes()[..words.floor_char_boundary(BYTES_MAX)]);
    }
}
