//! Which members of an event are encrypted: JSON pointers (RFC 6901) and finding what they point to.
//!
//! Owns the bounds of pointers. A segment names an object's member, never an array's element: `/items/0` means the member
//! `0` of an object `items`. Whoever needs the elements encrypted names the array.

use std::borrow::Cow;
use std::ops::Range;

use crate::json::{self, Scanner, Text};

/// Pointers that can be configured.
pub const FIELDS_MAX: usize = 64;
/// Bytes of a pointer: 256 characters, however long in UTF-8.
pub const POINTER_BYTES_MAX: usize = 1024;
/// Segments of a pointer: the depth of the recursion below.
pub const SEGMENTS_MAX: usize = 16;

/// Why a pointer is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More of them than [`FIELDS_MAX`].
    #[error("there are {0} pointers, and at most {FIELDS_MAX} are taken")]
    TooMany(usize),
    /// Not a pointer to a member.
    #[error("{0:?} is not a JSON pointer to a member, such as /card/number")]
    NotAMember(String),
    /// A tilde that is no escape.
    #[error("{0:?} has a ~ that is neither ~0 (for ~) nor ~1 (for /)")]
    Escape(String),
    /// Longer than [`POINTER_BYTES_MAX`] or deeper than [`SEGMENTS_MAX`].
    #[error("{0:?} is too long: at most {POINTER_BYTES_MAX} bytes in {SEGMENTS_MAX} segments are taken")]
    TooLong(String),
    /// The ledger itself needs these in plain text.
    #[error(
        "{0:?} cannot be encrypted: `type`, `timestamp` and `case_id` are what the ledger finds events by"
    )]
    Reserved(String),
    /// Another pointer encrypts it already.
    #[error("{inner:?} is encrypted already, as a part of {outer:?}: leave one of them out")]
    Covered {
        /// The pointer within the other one.
        inner: String,
        /// The pointer that covers it; the same one if it is there twice.
        outer: String,
    },
}

/// The members to encrypt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    root: Node,
    count: usize,
}

/// What is known of one name on the way to a member.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// More names follow.
    Inner(Node),
    /// The member itself, with its pointer.
    Member(Box<str>),
}

/// The names that lead on from an object. Few, so a list is quicker than a map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Node(Vec<(Box<str>, Step)>);

impl Node {
    fn step(&self, name: &str) -> Option<&Step> {
        self.0.iter().find(|(known, _)| **known == *name).map(|(_, step)| step)
    }
}

/// A value that a pointer leads to.
pub(super) struct Found<'f> {
    pub(super) place: Range<usize>,
    pub(super) pointer: &'f str,
}

impl Fields {
    /// From pointers as configured.
    ///
    /// # Errors
    /// When one of them cannot be meant.
    pub fn new<S: AsRef<str>>(pointers: &[S]) -> Result<Self, Error> {
        if pointers.len() > FIELDS_MAX {
            return Err(Error::TooMany(pointers.len()));
        }
        let mut fields = Self { root: Node::default(), count: pointers.len() };
        for pointer in pointers {
            fields.root.insert(pointer.as_ref())?;
        }
        Ok(fields)
    }

    /// Whether nothing is to be encrypted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many pointers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Calls `found` for each value that a pointer leads to, in the order of the text; of a member that is there more
    /// than once, for each occurrence.
    ///
    /// # Errors
    /// When `payload` is not a JSON object in UTF-8, which an event always is.
    pub(super) fn find<'f>(
        &'f self,
        payload: &[u8],
        mut found: impl FnMut(Found<'f>),
    ) -> Result<(), json::Error> {
        visit(&mut Scanner::new(payload, 0, 0), payload, &self.root, &mut found)
    }
}

impl Node {
    fn insert(&mut self, pointer: &str) -> Result<(), Error> {
        let owned = || pointer.to_owned();
        let path = pointer.strip_prefix('/').ok_or_else(|| Error::NotAMember(owned()))?;
        if pointer.len() > POINTER_BYTES_MAX || path.split('/').count() > SEGMENTS_MAX {
            return Err(Error::TooLong(owned()));
        }
        let mut names = Vec::new();
        for segment in path.split('/') {
            names.push(unescape(segment).ok_or_else(|| Error::Escape(owned()))?);
        }
        if matches!(names.first().map(AsRef::as_ref), Some("type" | "timestamp" | "case_id")) {
            return Err(Error::Reserved(owned()));
        }
        let Some((last, inner)) = names.split_last() else { return Err(Error::NotAMember(owned())) };
        let mut node = self;
        for name in inner {
            node = match node.step_or_new(name) {
                Step::Inner(next) => next,
                Step::Member(outer) => {
                    return Err(Error::Covered { inner: owned(), outer: outer.clone().into() });
                }
            };
        }
        let covered = match node.step(last) {
            None => {
                node.0.push((last.as_ref().into(), Step::Member(pointer.into())));
                return Ok(());
            }
            Some(Step::Member(same)) => same.as_ref(),
            Some(Step::Inner(below)) => below.any_member(),
        };
        Err(Error::Covered { inner: covered.to_owned(), outer: owned() })
    }

    fn step_or_new(&mut self, name: &str) -> &mut Step {
        let known = self.0.iter().position(|(known, _)| **known == *name);
        let at = known.unwrap_or_else(|| {
            self.0.push((name.into(), Step::Inner(Self::default())));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }

    /// A pointer that leads through this node.
    fn any_member(&self) -> &str {
        match self.0.first() {
            Some((_, Step::Inner(below))) => below.any_member(),
            Some((_, Step::Member(pointer))) => pointer,
            None => "",
        }
    }
}

/// A segment as the name it means; `None` when a tilde is no escape.
fn unescape(segment: &str) -> Option<Cow<'_, str>> {
    if !segment.contains('~') {
        return Some(Cow::Borrowed(segment));
    }
    let mut name = String::with_capacity(segment.len());
    let mut characters = segment.chars();
    while let Some(character) = characters.next() {
        name.push(match character {
            '~' => match characters.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            },
            other => other,
        });
    }
    Some(Cow::Owned(name))
}

/// Appends a name as a segment, in the one form that RFC 6901 has for it.
pub(super) fn push_segment(pointer: &mut String, name: &str) {
    pointer.push('/');
    for character in name.chars() {
        match character {
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            other => pointer.push(other),
        }
    }
}

/// Goes through the members of the object that comes next. As deep as the pointers are, so at most [`SEGMENTS_MAX`].
fn visit<'f>(
    scanner: &mut Scanner<'_>,
    payload: &[u8],
    node: &'f Node,
    found: &mut impl FnMut(Found<'f>),
) -> Result<(), json::Error> {
    members(scanner, |scanner, key| match key.decode(payload).and_then(|name| node.step(&name)) {
        Some(Step::Member(pointer)) => {
            scanner.peek();
            let start = scanner.offset();
            scanner.value()?;
            found(Found { place: start..scanner.offset(), pointer });
            Ok(())
        }
        Some(Step::Inner(below)) if scanner.peek() == Some(b'{') => visit(scanner, payload, below, found),
        Some(Step::Inner(_)) | None => scanner.value(),
    })
}

/// Consumes an object; `member` consumes each member's value.
pub(super) fn members<'a>(
    scanner: &mut Scanner<'a>,
    mut member: impl FnMut(&mut Scanner<'a>, Text) -> Result<(), json::Error>,
) -> Result<(), json::Error> {
    scanner.expect(b'{')?;
    if scanner.peek() == Some(b'}') {
        return scanner.expect(b'}');
    }
    loop {
        let key = scanner.key()?;
        member(scanner, key)?;
        if scanner.peek() == Some(b'}') {
            return scanner.expect(b'}');
        }
        scanner.expect(b',')?;
    }
}
