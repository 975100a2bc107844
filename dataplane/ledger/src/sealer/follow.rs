//! Compares the database's head with everything that this pod knows from elsewhere, and tells the others what it does not find.
//!
//! Never signs and never takes the lock. Promises: a head is shown only if it continues what was shown before and the anchor.

use std::sync::Arc;
use std::time::{Duration, Instant};

use certeus_tlog::checkpoint::Checkpoint;
use certeus_tlog::proof::verify_consistency;

use super::core::verified_head;
use super::session::{Head, Refused};
use super::{Failed, Pod, bounded};
use crate::error::Class;
use crate::log::{Latest, LogState, Refusal, Signed, Swap};
use crate::postgres::describe;

/// One look of a follower takes no longer, so that it is connected again and looks before a new sealer signs.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// An anchor that has been ahead of the database for so long is none of a publication that is under way.
const BEHIND_MIN: Duration = Duration::from_millis(900);

/// Whether a follower could compare everything it knows.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    Agreed,
    /// The anchor is ahead of the database's head, which the sealer is about to catch up with.
    Behind,
}

/// Why a follower could not compare, or what it found.
enum LookError {
    Refusal(Refusal),
    Failed(Failed),
}

impl<E: Into<Failed>> From<E> for LookError {
    fn from(error: E) -> Self {
        match error.into() {
            // What is stored has no proof: that is a finding, not a failure.
            Failed::Log(error) if error.class() == Class::Corrupt => Self::Refusal(Refusal::Unproven),
            failed => Self::Failed(failed),
        }
    }
}

impl Pod<'_> {
    /// Looks at the head as a follower, verifies it and shows it.
    pub(super) async fn look(&mut self) -> Result<(), Failed> {
        let Some(mut head) = self.head().await? else { return Ok(()) };
        let (mut anchored, mut unread) = (None, None);
        if self.is_news(&head) {
            // The anchor before the database: what it names was committed before, so the database, read after it, must have it.
            match self.read_anchor().await {
                Ok(text) => anchored = text,
                // What was shown is known all the same.
                Err(error) => unread = Some(error),
            }
            let Some(read) = self.head().await? else { return Ok(()) };
            head = read;
        }
        let found = self.compare(&head, anchored.as_deref()).await;
        self.object(&found, anchored.as_deref()).await?;
        if let (Some(error), Ok(_)) = (unread, &found) {
            return Err(error.into());
        }
        match found {
            Ok((Look::Agreed, stored)) if head.refused.is_none() => {
                self.accept(stored, head.signed_at, anchored).await;
                self.log.agree();
            }
            Ok(_) => {
                if let Some(reason) = head.refused {
                    self.log.refuse(&Refusal::Told(reason));
                }
            }
            Err(LookError::Refusal(refusal)) => self.log.refuse(&refusal),
            Err(LookError::Failed(failed)) => return Err(failed),
        }
        self.log.observe(head.committed);
        self.log.metrics.epoch.set(head.epoch);
        Ok(())
    }

    /// The head, or soon an end of this connection: whoever cannot look cannot object in time.
    async fn head(&self) -> Result<Option<Head>, Failed> {
        match tokio::time::timeout(LOOK_MAX, self.session.head()).await {
            Ok(head) => Ok(head?),
            Err(_elapsed) => Err(Failed::Timeout),
        }
    }

    /// Tells whoever seals what it may not know: what this pod has seen signed and does not find.
    async fn object(
        &mut self,
        found: &Result<(Look, Option<Signed>), LookError>,
        anchored: Option<&str>,
    ) -> Result<(), Failed> {
        let reason = match found {
            // The sealer reads the same anchor. Otherwise a publication may be under way, which takes no second.
            Ok((Look::Behind, _)) if !self.config.anchor_shared => {
                let text = anchored.unwrap_or_default();
                match &self.behind {
                    Some((seen, since)) if seen == text && since.elapsed() >= BEHIND_MIN => None,
                    Some((seen, _)) if seen == text => return Ok(()),
                    Some(_) | None => {
                        self.behind = Some((text.to_owned(), Instant::now()));
                        return Ok(());
                    }
                }
            }
            Err(LookError::Refusal(refusal)) if refusal.contradicts() => Some(describe(refusal)),
            Ok(_) | Err(_) => return Ok(()),
        };
        let known = self.known(anchored);
        if known.is_empty() {
            return Ok(());
        }
        let refused = reason.as_deref().map_or(Refused::Unsaid, Refused::ByFollower);
        bounded(self.session.witness(&known, refused)).await
    }

    /// Everything this pod knows to have been signed.
    pub(super) fn known(&self, anchored: Option<&str>) -> Vec<Signed> {
        let anchored = anchored.and_then(|note| {
            Some(Signed { checkpoint: self.config.keys.verify(note).ok()?, note: note.to_owned() })
        });
        let shown = self.log.latest().map(|latest| Signed::clone(&latest.signed));
        anchored.into_iter().chain(shown).collect()
    }

    /// Whether there is anything that was not compared already. The anchor may cost money to read.
    fn is_news(&self, head: &Head) -> bool {
        let shown = self.log.latest();
        let known = shown.as_ref().map(|latest| &latest.signed.note);
        self.log.state() != LogState::Agreed
            || head.stored.as_ref().map(|stored| &stored.note) != known
            || self.config.anchor.is_some() && self.checked_anchor.as_ref() != known
    }

    /// Compares the database's head with everything known from elsewhere; gives the head, verified.
    async fn compare(
        &mut self,
        head: &Head,
        anchored: Option<&str>,
    ) -> Result<(Look, Option<Signed>), LookError> {
        let refused = |refusal| Err(LookError::Refusal(refusal));
        let stored = match &head.stored {
            Some(stored) => {
                let checkpoint = verified_head(&self.config.keys, stored).map_err(LookError::Refusal)?;
                Some(Signed { checkpoint, note: stored.note.clone() })
            }
            None => None,
        };
        let size = stored.as_ref().map_or(0, |stored| stored.checkpoint.size());
        let shown = self.log.latest().map(|latest| latest.signed);
        let shown_size = shown.as_ref().map_or(0, |shown| shown.checkpoint.size());
        let signed = size.max(shown_size);
        if head.committed < signed {
            return refused(Refusal::Behind { committed: head.committed, signed });
        }
        if let Some(shown) = &shown
            && stored.as_ref() != Some(&**shown)
        {
            let Some(stored) = stored.as_ref().filter(|_| size >= shown_size) else {
                return refused(Refusal::Forked { size: shown_size });
            };
            self.continues(&shown.checkpoint, &stored.checkpoint).await?;
        }
        let Some(text) = anchored.filter(|text| self.checked_anchor.as_deref() != Some(*text)) else {
            return Ok((Look::Agreed, stored));
        };
        let found = self.config.keys.verify(text);
        let found = found.map_err(|error| LookError::Refusal(Refusal::Anchor(error)))?;
        if found.size() > head.committed {
            return refused(Refusal::Behind { committed: head.committed, signed: found.size() });
        }
        match &stored {
            Some(stored) if found.size() <= size => {
                self.continues(&found, &stored.checkpoint).await?;
                self.checked_anchor = Some(text.to_owned());
                Ok((Look::Agreed, Some(stored.clone())))
            }
            // Of an anchor that all pods share this is so for moments; what was agreed stays so.
            Some(_) | None if self.config.anchor_shared && self.log.state() == LogState::Agreed => {
                Ok((Look::Agreed, stored))
            }
            Some(_) | None => Ok((Look::Behind, stored)),
        }
    }

    /// Shows a head that continues everything known, and brings the anchor up to date.
    async fn accept(&mut self, stored: Option<Signed>, signed_at: Instant, anchored: Option<String>) {
        let Some(stored) = stored else { return };
        if let Some(anchor) = &self.config.anchor
            && self.checked_anchor.as_ref() != Some(&stored.note)
            && self.anchored_size(anchored.as_deref()) <= stored.checkpoint.size()
        {
            // Should it fail, or another pod be first, the next look does it.
            match anchor.compare_and_set(anchored, stored.note.clone()).await {
                Ok(Swap::Done) => self.checked_anchor = Some(stored.note.clone()),
                Ok(Swap::Conflict(_)) => {}
                Err(error) => {
                    self.log.anchor_failed(&error);
                    tracing::warn!(reason = describe(&error), "cannot bring the anchor up to date");
                }
            }
        }
        self.log.show(Latest { signed: Arc::new(stored), signed_at });
    }

    fn anchored_size(&self, text: Option<&str>) -> u64 {
        text.and_then(|text| self.config.keys.verify(text).ok()).map_or(0, |found| found.size())
    }

    /// Whether the tree of one checkpoint begins with that of an earlier one.
    async fn continues(&self, old: &Checkpoint, new: &Checkpoint) -> Result<(), LookError> {
        let proof = if old.size() < new.size() {
            bounded(self.ledger.prove(old.size(), new.size())).await?
        } else {
            Vec::new()
        };
        verify_consistency(old.size(), new.size(), &old.root(), &new.root(), &proof)
            .map_err(|_| LookError::Refusal(Refusal::Forked { size: old.size() }))
    }
}
