//! A strict JSON scanner (RFC 8259) that finds where values end without building anything.
//!
//! Owns the grammar and the nesting limit. Never allocates, never recurses, never decides what an event needs
//! (`submission.rs` does). The caller has checked that the bytes are UTF-8. The bytes are kept and hashed as they
//! came, so the scanner only has to say "well formed" and where the parts are.

use std::borrow::Cow;

/// Objects and arrays may be nested this deep; one bit of [`Nesting`] each.
pub const DEPTH_MAX: u32 = 128;

/// Why a text is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The text ends within a value.
    #[error("the text ends inside a value")]
    Truncated,
    /// A byte that cannot stand here.
    #[error("unexpected {:?}", char::from(*.0))]
    Unexpected(u8),
    /// A control character inside a string must be escaped.
    #[error("control character 0x{0:02x} inside a string must be escaped")]
    Control(u8),
    /// An unknown or incomplete escape sequence.
    #[error("invalid escape sequence in a string")]
    Escape,
    /// A number that JSON does not allow, such as `01` or `1.`.
    #[error("invalid number")]
    Number,
    /// Nested deeper than [`DEPTH_MAX`].
    #[error("nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
}

/// A fault and the byte offset where it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid JSON at byte {offset}: {fault}")]
pub struct Error {
    /// Offset from the start of the scanned bytes.
    pub offset: usize,
    /// What is wrong there.
    pub fault: Fault,
}

/// A scanned string: the bytes between the quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text {
    /// Offset of the first byte after the opening quote.
    pub start: usize,
    /// Offset of the closing quote.
    pub end: usize,
    /// Whether there is a backslash, so that the bytes are not the text itself.
    pub escaped: bool,
}

impl Text {
    /// What the string means, of the text it was scanned in; `None` when an escape is half of a surrogate pair.
    #[must_use]
    pub fn unescape(self, text: &str) -> Option<Cow<'_, str>> {
        if self.escaped {
            // The quotes stand right before and after.
            serde_json::from_str(&text[self.start - 1..=self.end]).ok().map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(&text[self.start..self.end]))
        }
    }
}

/// Which kind of container each open level is: a stack of bits.
#[derive(Default)]
struct Nesting {
    objects: u128,
    depth: u32,
}

impl Nesting {
    fn push(&mut self, object: bool) -> bool {
        if self.depth == DEPTH_MAX {
            return false;
        }
        self.objects = self.objects << 1 | u128::from(object);
        self.depth += 1;
        true
    }

    fn pop(&mut self) {
        self.objects >>= 1;
        self.depth -= 1;
    }

    fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }
}

/// Reads JSON from a byte slice, moving forward only.
pub struct Scanner<'a> {
    bytes: &'a [u8],
    offset: usize,
    /// Levels already open around what this scanner sees; they count towards [`DEPTH_MAX`].
    outer_depth: u32,
}

impl<'a> Scanner<'a> {
    /// Starts at `offset`. The bytes must be UTF-8.
    #[must_use]
    pub fn new(bytes: &'a [u8], offset: usize, outer_depth: u32) -> Self {
        Self { bytes, offset, outer_depth }
    }

    /// Says how many levels are open around the next value.
    pub fn set_outer_depth(&mut self, depth: u32) {
        self.outer_depth = depth;
    }

    /// Offset of the next byte to read.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The next byte after white space, not consumed; `None` at the end.
    pub fn peek(&mut self) -> Option<u8> {
        while let Some(&byte) = self.bytes.get(self.offset) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
            self.offset += 1;
        }
        None
    }

    /// Consumes `byte`, which must come next after white space.
    ///
    /// # Errors
    /// When another byte or the end comes.
    pub fn expect(&mut self, byte: u8) -> Result<(), Error> {
        match self.peek() {
            Some(found) if found == byte => {
                self.offset += 1;
                Ok(())
            }
            _ => Err(self.unexpected()),
        }
    }

    /// The error for the next byte, or for the end of the text.
    #[must_use]
    pub fn unexpected(&self) -> Error {
        let fault = self.bytes.get(self.offset).map_or(Fault::Truncated, |byte| Fault::Unexpected(*byte));
        self.error(fault)
    }

    fn error(&self, fault: Fault) -> Error {
        Error { offset: self.offset, fault }
    }

    /// Consumes a string, which must come next.
    ///
    /// # Errors
    /// When it is not a well-formed string.
    pub fn string(&mut self) -> Result<Text, Error> {
        self.expect(b'"')?;
        let start = self.offset;
        let mut escaped = false;
        loop {
            self.skip_plain();
            match self.bytes.get(self.offset) {
                Some(b'"') => {
                    let end = self.offset;
                    self.offset += 1;
                    return Ok(Text { start, end, escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(control) => return Err(self.error(Fault::Control(*control))),
                None => return Err(self.error(Fault::Truncated)),
            }
        }
    }

    /// Moves to the next quote, backslash or control character, eight bytes at a time.
    fn skip_plain(&mut self) {
        const ONES: u64 = u64::from_le_bytes([0x01; 8]);
        const HIGHS: u64 = u64::from_le_bytes([0x80; 8]);
        // Sets the high bit of each zero byte; bits above the first one set may be wrong, the first never is.
        let zeros = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
        while let Some(chunk) = self.bytes.get(self.offset..).and_then(<[u8]>::first_chunk::<8>) {
            let word = u64::from_le_bytes(*chunk);
            let control = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
            let found =
                control | zeros(word ^ (ONES * u64::from(b'"'))) | zeros(word ^ (ONES * u64::from(b'\\')));
            if found != 0 {
                self.offset += found.trailing_zeros() as usize / 8;
                return;
            }
            self.offset += 8;
        }
        while self.bytes.get(self.offset).is_some_and(|byte| *byte >= 0x20 && !matches!(byte, b'"' | b'\\')) {
            self.offset += 1;
        }
    }

    /// Consumes one escape sequence, at its backslash.
    fn escape(&mut self) -> Result<(), Error> {
        let rest = &self.bytes[self.offset + 1..];
        let length = match rest.first() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') if rest.get(1..5).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) => 6,
            Some(_) => return Err(self.error(Fault::Escape)),
            None => return Err(self.error(Fault::Truncated)),
        };
        self.offset += length;
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Error> {
        let start = self.offset;
        while self.bytes.get(self.offset).is_some_and(u8::is_ascii_digit) {
            self.offset += 1;
        }
        if self.offset == start { Err(self.error(Fault::Number)) } else { Ok(()) }
    }

    fn number(&mut self) -> Result<(), Error> {
        if self.bytes.get(self.offset) == Some(&b'-') {
            self.offset += 1;
        }
        if self.bytes.get(self.offset) == Some(&b'0') {
            self.offset += 1;
            if self.bytes.get(self.offset).is_some_and(u8::is_ascii_digit) {
                return Err(self.error(Fault::Number));
            }
        } else {
            self.digits()?;
        }
        if self.bytes.get(self.offset) == Some(&b'.') {
            self.offset += 1;
            self.digits()?;
        }
        if matches!(self.bytes.get(self.offset), Some(b'e' | b'E')) {
            self.offset += 1;
            if matches!(self.bytes.get(self.offset), Some(b'+' | b'-')) {
                self.offset += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn literal(&mut self, literal: &[u8]) -> Result<(), Error> {
        for byte in literal {
            if self.bytes.get(self.offset) != Some(byte) {
                return Err(self.unexpected());
            }
            self.offset += 1;
        }
        Ok(())
    }

    /// Consumes a string, number or literal whose first byte is `first`.
    fn scalar(&mut self, first: u8) -> Result<(), Error> {
        match first {
            b'"' => self.string().map(|_| ()),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.literal(b"true"),
            b'f' => self.literal(b"false"),
            b'n' => self.literal(b"null"),
            _ => Err(self.unexpected()),
        }
    }

    /// Consumes one value of any kind.
    ///
    /// # Errors
    /// When it is malformed or nested too deeply.
    pub fn value(&mut self) -> Result<(), Error> {
        let mut open = Nesting { objects: 0, depth: self.outer_depth };
        loop {
            // Here a value begins.
            let first = self.peek().ok_or_else(|| self.unexpected())?;
            if matches!(first, b'{' | b'[') {
                let object = first == b'{';
                if !open.push(object) {
                    return Err(self.error(Fault::TooDeep));
                }
                self.offset += 1;
                let close = if object { b'}' } else { b']' };
                if self.peek() == Some(close) {
                    self.offset += 1;
                    open.pop();
                } else {
                    if object {
                        self.key()?;
                    }
                    continue;
                }
            } else {
                self.scalar(first)?;
            }
            // Here a value has ended: go on in what contains it.
            loop {
                if open.depth == self.outer_depth {
                    return Ok(());
                }
                let close = if open.in_object() { b'}' } else { b']' };
                match self.peek() {
                    Some(b',') => {
                        self.offset += 1;
                        if open.in_object() {
                            self.key()?;
                        }
                        break;
                    }
                    Some(byte) if byte == close => {
                        self.offset += 1;
                        open.pop();
                    }
                    _ => return Err(self.unexpected()),
                }
            }
        }
    }

    /// Consumes an object's key and the colon after it.
    ///
    /// # Errors
    /// When there is none.
    pub fn key(&mut self) -> Result<Text, Error> {
        let key = self.string()?;
        self.expect(b':')?;
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accepts(text: &str) -> Result<(), Error> {
        let mut scanner = Scanner::new(text.as_bytes(), 0, 0);
        scanner.value()?;
        match scanner.peek() {
            None => Ok(()),
            Some(_) => Err(scanner.unexpected()),
        }
    }

    #[test]
    fn faults_are_named_and_placed() {
        for (text, offset, fault) in [
            ("", 0, Fault::Truncated),
            ("{\"a\":1", 6, Fault::Truncated),
            ("[1,]", 3, Fault::Unexpected(b']')),
            ("{\"a\" 1}", 5, Fault::Unexpected(b'1')),
            ("{a:1}", 1, Fault::Unexpected(b'a')),
            ("\"a\nb\"", 2, Fault::Control(b'\n')),
            ("\"\\x\"", 1, Fault::Escape),
            ("\"\\u12g4\"", 1, Fault::Escape),
            ("01", 1, Fault::Number),
            ("1.", 2, Fault::Number),
            ("-", 1, Fault::Number),
            ("nul", 3, Fault::Truncated),
            ("1 2", 2, Fault::Unexpected(b'2')),
            ("{\"a\":1]", 6, Fault::Unexpected(b']')),
        ] {
            assert_eq!(accepts(text), Err(Error { offset, fault }), "{text}");
        }
    }

    #[test]
    fn nesting_is_bounded_exactly() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        let max = DEPTH_MAX as usize;
        assert_eq!(accepts(&nested(max)), Ok(()));
        assert_eq!(accepts(&nested(max + 1)).unwrap_err().fault, Fault::TooDeep);
        assert_eq!(accepts(&"[".repeat(100_000)).unwrap_err().fault, Fault::TooDeep);
        assert_eq!(accepts(&"{\"a\":".repeat(100_000)).unwrap_err().fault, Fault::TooDeep);
    }

    /// What `serde_json` says, which is the referee here. Its recursion limit is lower than ours.
    fn referee(text: &str) -> bool {
        serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn agrees_with_serde_json_on_almost_json(text in r#"[\[\]{}:, \\"a-ce1-2u0.+\-\n\té\u{1}tfnrl]{0,24}"#) {
            prop_assert_eq!(accepts(&text).is_ok(), referee(&text), "{}", text);
        }

        #[test]
        fn every_value_is_accepted_and_every_cut_refused(value in json_value(), cut in any::<prop::sample::Index>()) {
            let text = value.to_string();
            prop_assert_eq!(accepts(&text), Ok(()));
            let at = cut.index(text.len());
            if text.is_char_boundary(at) {
                prop_assert_eq!(accepts(&text[..at]).is_ok(), referee(&text[..at]));
            }
        }

        #[test]
        fn one_changed_byte_is_judged_as_the_referee_does(
            value in json_value(), place in any::<prop::sample::Index>(), byte in 0_u8..128
        ) {
            let mut bytes = value.to_string().into_bytes();
            let at = place.index(bytes.len());
            bytes[at] = byte;
            if let Ok(text) = String::from_utf8(bytes) {
                prop_assert_eq!(accepts(&text).is_ok(), referee(&text), "{}", text);
            }
        }
    }

    fn json_value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 48, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::hash_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }
}
