//! One request's events, found inside the bytes it came with.
//!
//! Owns what makes bytes an event: a JSON object with one `type` and one `timestamp`, within limits; and what puts it
//! into a case: a `case_id` that is a short text, the last one where it is repeated, as most JSON readers see it.
//! Copies no payload: a [`Submission`] is the request body and the places of the events in it. Never normalises anything.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use crate::field::Fields;
use crate::json::{self, Scanner, Text};
use crate::request::{BodyDigest, Identity, IdentityError, SEQUENCE_MAX};
use crate::timestamp::{self, Timestamp};

/// Bytes of the longest `type`.
pub const TYPE_BYTES_MAX: usize = 256;
/// Bytes of the longest `case_id`.
pub const CASE_ID_BYTES_MAX: usize = 256;

/// Types that begin so are the ledger's own: it writes events of them itself, and takes none from clients.
pub const RESERVED_TYPES: &str = "certeus.";

/// How events are laid out in a request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object, or an array of them.
    Json,
    /// One JSON object per line; blank lines are skipped.
    Ndjson,
}

/// What one request may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// Events in a request.
    pub request_events_max: usize,
    /// Bytes of one event, as received and as stored.
    pub event_bytes_max: usize,
    /// Members that will be encrypted, which makes what is stored longer.
    pub encrypted_fields: Option<&'a Fields>,
}

/// What happens to the other events of a request when one is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnBadEvent {
    /// Nothing of the request is accepted, and the event is named.
    RefuseAll,
    /// The others are accepted, and the refused are listed.
    RefuseOne,
}

/// Why one event is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Not well-formed JSON.
    #[error(transparent)]
    Syntax(#[from] json::Error),
    /// JSON, but not an object.
    #[error("an event is a JSON object")]
    NotAnObject,
    /// A required member is missing.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A member that must be unique is there twice, so that readers could disagree on which one counts.
    #[error("`{0}` is there more than once")]
    Repeated(&'static str),
    /// `type` is not a usable text.
    #[error("`type` must be a string of 1 to {TYPE_BYTES_MAX} bytes without control characters")]
    Type,
    /// `type` is one of the ledger's own.
    #[error("`type` begins with `{RESERVED_TYPES}`, which is reserved for the ledger's own events")]
    ReservedType,
    /// `timestamp` is neither text nor a number.
    #[error("`timestamp` must be an RFC 3339 string or a Unix number in s, ms, us or ns")]
    TimestampKind,
    /// `timestamp` cannot be read.
    #[error("`timestamp` {0}")]
    Timestamp(#[from] timestamp::Error),
    /// The event is too long.
    #[error("the event has {bytes} bytes, and at most {max} are taken")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The event becomes too long when it is encrypted.
    #[error("the event has {bytes} bytes once its fields are encrypted, and at most {max} are taken")]
    TooLargeEncrypted {
        /// Its length as stored.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

/// An event that was refused, and where it stands in the request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event {position}: {error}")]
pub struct Refused {
    /// Position among the events of the request, from 0.
    pub position: usize,
    /// Byte offset of the event in the (uncompressed) body.
    pub offset: usize,
    /// Why.
    #[source]
    pub error: EventError,
}

/// Why a request is refused whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The body is not UTF-8.
    #[error("the body is not UTF-8: invalid byte at offset {0}")]
    NotUtf8(usize),
    /// There is no event in it.
    #[error("there is no event in the body")]
    Empty,
    /// The array around the events is malformed.
    #[error(transparent)]
    Syntax(#[from] json::Error),
    /// More events than one request may hold.
    #[error("more than {0} events in one request")]
    TooManyEvents(usize),
    /// One event is bad, and the request did not ask for the others to be taken.
    #[error(transparent)]
    Event(#[from] Refused),
}

/// A valid event: where it lies in the body, and what the store needs from it.
#[derive(Debug, Clone)]
struct Event {
    place: Place,
    time: Timestamp,
    kind: Label,
}

/// What reading an event gives.
struct Found {
    event: Event,
    case: Option<Label>,
    /// Bytes by which encryption makes it longer.
    growth: usize,
}

/// A range of the body. 32 bits each: bodies are bounded far below 4 GiB.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: u32,
    end: u32,
}

impl Place {
    fn new(range: Range<usize>) -> Self {
        let narrow = |offset| u32::try_from(offset).expect("a request body is bounded below 4 GiB");
        Self { start: narrow(range.start), end: narrow(range.end) }
    }

    fn of(self, body: &[u8]) -> &[u8] {
        &body[self.start as usize..self.end as usize]
    }
}

/// A short text of an event.
#[derive(Debug, Clone)]
enum Label {
    /// The text between the quotes, free of escapes.
    Plain(Place),
    Unescaped(Box<str>),
}

impl Label {
    fn of<'a>(&'a self, body: &'a [u8]) -> &'a str {
        match self {
            Self::Plain(place) => text(place.of(body)),
            Self::Unescaped(text) => text,
        }
    }
}

/// The valid events of one request, in order. Never empty.
#[derive(Debug, Clone)]
pub struct Submission {
    body: Bytes,
    events: Vec<Event>,
    /// The cases of the events that have one, by position.
    cases: Vec<(u32, Label)>,
    /// Bytes by which encryption makes the events longer.
    growth: usize,
    identity: Option<(Identity, BodyDigest)>,
}

/// One event as the store takes it.
#[derive(Debug, Clone, Copy)]
pub struct EventRef<'a> {
    /// The event's `type`, unescaped.
    pub kind: &'a str,
    /// The event's `timestamp`.
    pub time: Timestamp,
    /// The event as received.
    pub payload: &'a [u8],
}

/// What parsing a request gives.
#[derive(Debug)]
pub struct Parsed {
    /// The valid events; `None` when each was refused.
    pub submission: Option<Submission>,
    /// The refused ones; always empty with [`OnBadEvent::RefuseAll`].
    pub refused: Vec<Refused>,
}

impl Submission {
    /// Finds and checks the events in a request body.
    ///
    /// # Errors
    /// When the request is refused whole.
    pub fn parse(
        body: Bytes,
        format: Format,
        limits: &Limits<'_>,
        on_bad: OnBadEvent,
    ) -> Result<Parsed, Error> {
        Self::parse_from(Source::Client, body, format, limits, on_bad)
    }

    /// An event that the ledger writes itself.
    ///
    /// # Errors
    /// When it is no event after all.
    pub(crate) fn own(event: Bytes) -> Result<Option<Self>, Error> {
        let limits = Limits { request_events_max: 1, event_bytes_max: event.len(), encrypted_fields: None };
        let parsed = Self::parse_from(Source::Ledger, event, Format::Json, &limits, OnBadEvent::RefuseAll)?;
        Ok(parsed.submission)
    }

    fn parse_from(
        source: Source,
        body: Bytes,
        format: Format,
        limits: &Limits<'_>,
        on_bad: OnBadEvent,
    ) -> Result<Parsed, Error> {
        let text = std::str::from_utf8(&body).map_err(|error| Error::NotUtf8(error.valid_up_to()))?;
        let mut parser = Parser::new(source, text, limits, on_bad);
        match format {
            Format::Json => parser.json()?,
            Format::Ndjson => parser.ndjson()?,
        }
        let Parser { position, mut events, cases, growth, refused, .. } = parser;
        if position == 0 {
            return Err(Error::Empty);
        }
        events.shrink_to_fit();
        let submission =
            (!events.is_empty()).then_some(Submission { body, events, cases, growth, identity: None });
        Ok(Parsed { submission, refused })
    }

    /// Puts a request together again from its events, which stand in `body` one after the other with these lengths, and its
    /// identity. They were checked when they came: limits that have changed since do not matter.
    pub(crate) fn restore(
        body: Bytes,
        lengths: impl Iterator<Item = usize>,
        identity: (Identity, BodyDigest),
    ) -> Result<Self, Error> {
        let text = std::str::from_utf8(&body).map_err(|error| Error::NotUtf8(error.valid_up_to()))?;
        let limits =
            Limits { request_events_max: usize::MAX, event_bytes_max: usize::MAX, encrypted_fields: None };
        let mut parser = Parser::new(Source::Client, text, &limits, OnBadEvent::RefuseAll);
        let mut start = 0_usize;
        for length in lengths {
            let end = start.saturating_add(length).min(body.len());
            let event = parser.event(&mut Scanner::new(&body[..end], start, 0), 0);
            parser.take(start, event)?;
            start = end;
        }
        let Parser { events, cases, growth, .. } = parser;
        let complete = start == body.len() && !events.is_empty();
        let restored = Self { body, events, cases, growth, identity: Some(identity) };
        if complete { Ok(restored) } else { Err(Error::Empty) }
    }

    /// How many events there are; never 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a submission is never empty")]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Bytes of memory that the submission holds on to, and those by which it grows when it is encrypted.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.body.len()
            + self.events.len() * size_of::<Event>()
            + self.cases.len() * size_of::<(u32, Label)>()
            + self.growth
    }

    /// Gives the request an identity: sent again, it is stored once. `options` is whatever changes its outcome beside the body;
    /// a request of the same identity with another body or other options is refused.
    ///
    /// # Errors
    /// When a producer's sequence numbers do not suffice for the events.
    pub fn identified(mut self, identity: Identity, options: &[u8]) -> Result<Self, IdentityError> {
        if let Identity::Producer(producer) = &identity
            && producer.first().checked_add(self.len() as u64).is_none_or(|next| next > SEQUENCE_MAX)
        {
            return Err(IdentityError::Sequence);
        }
        let body = BodyDigest::of(&identity, options, &self.body);
        self.identity = Some((identity, body));
        Ok(self)
    }

    /// The request's identity, and the digest of what it asks for.
    pub(crate) fn identity(&self) -> Option<&(Identity, BodyDigest)> {
        self.identity.as_ref()
    }

    /// The events that belong to a case: position and case.
    pub(crate) fn cases(&self) -> impl Iterator<Item = (usize, &str)> {
        self.cases.iter().map(|(position, case)| (*position as usize, case.of(&self.body)))
    }

    /// The events in order.
    pub fn events(&self) -> impl Iterator<Item = EventRef<'_>> {
        self.events.iter().map(|event| EventRef {
            kind: event.kind.of(&self.body),
            time: event.time,
            payload: event.place.of(&self.body),
        })
    }
}

/// The body was checked as a whole, and every place begins and ends at an ASCII byte.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("a part of a body that was checked to be UTF-8")
}

/// Who wrote an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Client,
    Ledger,
}

struct Parser<'a> {
    source: Source,
    /// The body, as text and as bytes.
    text: &'a str,
    body: &'a [u8],
    limits: &'a Limits<'a>,
    on_bad: OnBadEvent,
    position: usize,
    events: Vec<Event>,
    cases: Vec<(u32, Label)>,
    growth: usize,
    refused: Vec<Refused>,
}

impl<'a> Parser<'a> {
    fn new(source: Source, text: &'a str, limits: &'a Limits, on_bad: OnBadEvent) -> Self {
        Self {
            source,
            text,
            body: text.as_bytes(),
            limits,
            on_bad,
            position: 0,
            events: Vec::new(),
            cases: Vec::new(),
            growth: 0,
            refused: Vec::new(),
        }
    }

    fn json(&mut self) -> Result<(), Error> {
        let mut scanner = Scanner::new(self.body, 0, 0);
        match scanner.peek() {
            None => return Ok(()),
            Some(b'[') => self.array(&mut scanner)?,
            Some(_) => {
                self.element(&mut scanner, 0)?;
            }
        }
        match scanner.peek() {
            None => Ok(()),
            Some(_) => Err(scanner.unexpected().into()),
        }
    }

    fn array(&mut self, scanner: &mut Scanner<'a>) -> Result<(), Error> {
        scanner.expect(b'[')?;
        if scanner.peek() == Some(b']') {
            return Ok(scanner.expect(b']')?);
        }
        loop {
            self.element(scanner, 1)?;
            if scanner.peek() == Some(b']') {
                return Ok(scanner.expect(b']')?);
            }
            scanner.expect(b',')?;
        }
    }

    /// Takes or refuses the event that comes next, and moves behind it in either case.
    fn element(&mut self, scanner: &mut Scanner<'a>, outer_depth: u32) -> Result<(), Error> {
        // Skips white space, so that the offset is that of the event.
        scanner.peek();
        let offset = scanner.offset();
        let parsed = self.event(scanner, outer_depth);
        match &parsed {
            Ok(_) => {}
            // Where an event ends cannot be told any more: no event after it can be found either.
            Err(EventError::Syntax(_)) => self.on_bad = OnBadEvent::RefuseAll,
            Err(_) => {
                *scanner = Scanner::new(self.body, offset, outer_depth);
                scanner.value()?;
            }
        }
        self.take(offset, parsed)
    }

    fn ndjson(&mut self) -> Result<(), Error> {
        let mut start = 0;
        while start < self.body.len() {
            let end =
                memchr::memchr(b'\n', &self.body[start..]).map_or(self.body.len(), |length| start + length);
            let mut scanner = Scanner::new(&self.body[..end], start, 0);
            if scanner.peek().is_some() {
                let offset = scanner.offset();
                let parsed = self.event(&mut scanner, 0).and_then(|event| match scanner.peek() {
                    None => Ok(event),
                    Some(_) => Err(scanner.unexpected().into()),
                });
                self.take(offset, parsed)?;
            }
            start = end + 1;
        }
        Ok(())
    }

    fn take(&mut self, offset: usize, parsed: Result<Found, EventError>) -> Result<(), Error> {
        if self.position == self.limits.request_events_max {
            return Err(Error::TooManyEvents(self.limits.request_events_max));
        }
        match parsed {
            Ok(Found { event, case, growth }) => {
                // As with places: a body is bounded far below 4 GiB, and so is the number of its events.
                let position = u32::try_from(self.events.len()).expect("fewer events than bytes in a body");
                self.cases.extend(case.map(|case| (position, case)));
                self.events.push(event);
                self.growth += growth;
            }
            Err(error) => {
                let refused = Refused { position: self.position, offset, error };
                match self.on_bad {
                    OnBadEvent::RefuseAll => return Err(refused.into()),
                    OnBadEvent::RefuseOne => self.refused.push(refused),
                }
            }
        }
        self.position += 1;
        Ok(())
    }

    /// Reads the event that comes next.
    fn event(&self, scanner: &mut Scanner<'_>, outer_depth: u32) -> Result<Found, EventError> {
        if scanner.peek().is_some_and(|byte| byte != b'{') {
            return Err(EventError::NotAnObject);
        }
        let start = scanner.offset();
        scanner.expect(b'{')?;
        scanner.set_outer_depth(outer_depth + 1);
        let (mut kind, mut time, mut case) = (None, None, None);
        let mut first = true;
        while scanner.peek() != Some(b'}') || !first {
            let key = scanner.key()?;
            match self.member(key).as_ref() {
                "type" => {
                    let read = self.kind(scanner)?;
                    if kind.replace(read).is_some() {
                        return Err(EventError::Repeated("type"));
                    }
                }
                "timestamp" => {
                    let read = self.time(scanner)?;
                    if time.replace(read).is_some() {
                        return Err(EventError::Repeated("timestamp"));
                    }
                }
                "case_id" => case = self.case(scanner)?,
                _ => scanner.value()?,
            }
            if scanner.peek() == Some(b'}') {
                break;
            }
            scanner.expect(b',')?;
            first = false;
        }
        scanner.expect(b'}')?;
        let place = start..scanner.offset();
        if place.len() > self.limits.event_bytes_max {
            return Err(EventError::TooLarge { bytes: place.len(), max: self.limits.event_bytes_max });
        }
        let kind = kind.ok_or(EventError::Missing("type"))?;
        let time = time.ok_or(EventError::Missing("timestamp"))?;
        let growth = self.growth_of(place.clone())?;
        Ok(Found { event: Event { place: Place::new(place), time, kind }, case, growth })
    }

    /// The bytes by which encryption makes an event longer, within the limit.
    fn growth_of(&self, place: Range<usize>) -> Result<usize, EventError> {
        let Some(fields) = self.limits.encrypted_fields else { return Ok(0) };
        let (bytes, max) = (fields.encrypted_len(&self.text[place.clone()]), self.limits.event_bytes_max);
        if bytes > max { Err(EventError::TooLargeEncrypted { bytes, max }) } else { Ok(bytes - place.len()) }
    }

    fn member(&self, key: Text) -> Cow<'_, str> {
        // A key that cannot be unescaped (half of a surrogate pair) is none of ours.
        key.unescape(self.text).unwrap_or_default()
    }

    fn kind(&self, scanner: &mut Scanner<'_>) -> Result<Label, EventError> {
        if scanner.peek() != Some(b'"') {
            return Err(EventError::Type);
        }
        let raw = scanner.string()?;
        let kind = self.label(raw, TYPE_BYTES_MAX).ok_or(EventError::Type)?;
        if self.source == Source::Client && kind.of(self.text.as_bytes()).starts_with(RESERVED_TYPES) {
            return Err(EventError::ReservedType);
        }
        Ok(kind)
    }

    /// The case that a value names. Anything but a short text names none, and is no fault.
    fn case(&self, scanner: &mut Scanner<'_>) -> Result<Option<Label>, EventError> {
        if scanner.peek() != Some(b'"') {
            scanner.value()?;
            return Ok(None);
        }
        let raw = scanner.string()?;
        Ok(self.label(raw, CASE_ID_BYTES_MAX))
    }

    /// A text of 1 to `max` bytes without control characters.
    fn label(&self, raw: Text, max: usize) -> Option<Label> {
        let text = raw.unescape(self.text)?;
        if text.is_empty() || text.len() > max || text.chars().any(char::is_control) {
            return None;
        }
        Some(match text {
            Cow::Borrowed(_) => Label::Plain(Place::new(raw.start..raw.end)),
            Cow::Owned(text) => Label::Unescaped(text.into_boxed_str()),
        })
    }

    fn time(&self, scanner: &mut Scanner<'_>) -> Result<Timestamp, EventError> {
        match scanner.peek() {
            Some(b'"') => {
                let raw = scanner.string()?;
                let text = raw.unescape(self.text).ok_or(timestamp::Error::NotRfc3339)?;
                Ok(Timestamp::from_rfc3339(&text)?)
            }
            Some(b'-' | b'0'..=b'9') => {
                let start = scanner.offset();
                scanner.value()?;
                Ok(Timestamp::from_number(&self.text[start..scanner.offset()])?)
            }
            _ => Err(EventError::TimestampKind),
        }
    }
}

#[cfg(test)]
mod tests;
