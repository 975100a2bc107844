//! How errors are told: each in one line, without repetition within it, and not again and again.

use std::error::Error;
use std::process::Output;
use std::time::Duration;

use kube::client::AuthError;
use kube::core::Status;

/// While the same trouble goes on.
const REMINDER: Duration = Duration::from_secs(60);
/// Proxies answer with whole pages.
const MESSAGE_CHARS_MAX: usize = 500;

/// An error and its causes, on one line. What an error repeats of its cause is left out; of an answer of the API server its
/// message is enough.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(status) = answer(error) {
            parts.push(message(status));
            break;
        }
        if let Some(AuthError::AuthExecRun { cmd, out }) = error.downcast_ref() {
            parts.push(failed_program(cmd, out));
            break;
        }
        let cause = error.source();
        // That the client is made of services helps nobody.
        if cause.is_none() || !matches!(error.downcast_ref(), Some(kube::Error::Service(_))) {
            let text = error.to_string();
            let own = cause.and_then(|cause| text.strip_suffix(&cause.to_string()));
            let own = own.map_or(text.as_str(), |own| own.trim_end_matches([':', ' ']));
            if !own.is_empty() {
                parts.push(own.to_owned());
            }
        }
        next = cause;
    }
    parts.join(": ")
}

/// Of a program that was to give credentials. What it wrote to standard output may hold them.
fn failed_program(command: &str, output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let said: String = said.chars().take(MESSAGE_CHARS_MAX).collect();
    format!("{command} failed with {}: {said}", output.status)
}

fn answer<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Status> {
    match error.downcast_ref() {
        Some(kube::Error::Api(status)) => Some(status),
        _ => error.downcast_ref::<Box<Status>>().map(Box::as_ref),
    }
}

/// What the API server said.
pub(crate) fn message(status: &Status) -> String {
    let Status { message, reason, code, .. } = status;
    match (message.is_empty(), reason.is_empty()) {
        (false, _) => message.chars().take(MESSAGE_CHARS_MAX).collect(),
        (true, false) => reason.clone(),
        (true, true) => format!("status {code}"),
    }
}

/// What goes on for long is told when it begins or changes, and then once a minute.
#[derive(Debug, Default)]
pub(crate) struct Reminder {
    told: Option<(String, Duration)>,
}

impl Reminder {
    /// Whether to tell `trouble` now.
    pub(crate) fn is_due(&mut self, trouble: &str, now: Duration) -> bool {
        let due = self.told.as_ref().is_none_or(|(told, at)| told != trouble || now >= *at + REMINDER);
        if due {
            self.told = Some((trouble.to_owned(), now));
        }
        due
    }

    /// It passed: the next one is news, even if it is the same.
    pub(crate) fn clear(&mut self) {
        self.told = None;
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Told {
        #[error("cannot begin")]
        Plain(#[source] kube::Error),
        #[error("cannot begin: {0}")]
        Repeats(#[source] kube::Error),
        #[error("cannot watch: {0}")]
        Answer(#[source] Box<Status>),
    }

    fn refused() -> Box<Status> {
        Status::failure("namespaces \"x\" not found", "NotFound").with_code(404).boxed()
    }

    #[track_caller]
    fn check(error: &Told, expected: &str) {
        assert_eq!(chain(error), expected);
    }

    #[test]
    fn each_part_is_told_once_and_of_an_answer_its_message() {
        check(&Told::Plain(kube::Error::Api(refused())), "cannot begin: namespaces \"x\" not found");
        check(&Told::Repeats(kube::Error::Api(refused())), "cannot begin: namespaces \"x\" not found");
        check(&Told::Answer(refused()), "cannot watch: namespaces \"x\" not found");
        let broken = || kube::Error::Service(Box::new(io::Error::other("broken pipe")));
        check(&Told::Repeats(broken()), "cannot begin: broken pipe");
        check(
            &Told::Plain(kube::Error::ReadEvents(io::Error::other("x"))),
            "cannot begin: Error reading events stream: x",
        );
        check(
            &Told::Plain(kube::Error::Api(Status::default().with_code(502).boxed())),
            "cannot begin: status 502",
        );
    }

    #[test]
    fn what_a_program_printed_as_credentials_is_not_told() {
        let out = Output {
            status: ExitStatus::from_raw(256),
            stdout: b"hush".to_vec(),
            stderr: b"no\n login\n".to_vec(),
        };
        let failed = AuthError::AuthExecRun { cmd: "login".to_owned(), out: Box::new(out) };
        check(
            &Told::Plain(kube::Error::Auth(failed)),
            "cannot begin: auth error: login failed with exit status: 1: no login",
        );
    }

    #[test]
    fn what_goes_on_is_told_once_a_minute() {
        let mut reminder = Reminder::default();
        let mut told = |text: &str, seconds| reminder.is_due(text, Duration::from_secs(seconds));
        assert!(told("a", 0) && !told("a", 2) && !told("a", 59) && told("a", 60) && !told("a", 62));
        assert!(told("b", 63) && !told("b", 64));
        reminder.clear();
        assert!(reminder.is_due("b", Duration::from_secs(65)));
    }
}
