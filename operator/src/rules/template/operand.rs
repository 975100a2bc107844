//! What commands consist of: functions, variables, fields, numbers and texts.

use super::{Checked, Checker, Declares, KEYWORDS, NESTING_MAX};

/// Fields of the data that `.` and `$` are at first.
const ROOT_FIELDS: [&str; 4] = ["Labels", "ExternalLabels", "ExternalURL", "Value"];

/// Functions with the fewest and the most arguments they take.
pub(super) const FUNCTIONS: [(&str, usize, usize); 47] = [
    ("and", 1, usize::MAX),
    ("args", 0, usize::MAX),
    ("call", 1, usize::MAX),
    ("eq", 2, usize::MAX),
    ("externalURL", 0, 0),
    ("first", 1, 1),
    ("ge", 2, 2),
    ("graphLink", 1, 1),
    ("gt", 2, 2),
    ("html", 0, usize::MAX),
    ("humanize", 1, 1),
    ("humanize1024", 1, 1),
    ("humanizeDuration", 1, 1),
    ("humanizePercentage", 1, 1),
    ("humanizeTimestamp", 1, 1),
    ("index", 1, usize::MAX),
    ("js", 0, usize::MAX),
    ("label", 2, 2),
    ("le", 2, 2),
    ("len", 1, 1),
    ("lt", 2, 2),
    ("match", 2, 2),
    ("ne", 2, 2),
    ("not", 1, 1),
    ("now", 0, 0),
    ("or", 1, usize::MAX),
    ("parseDuration", 1, 1),
    ("pathPrefix", 0, 0),
    ("print", 0, usize::MAX),
    ("printf", 1, usize::MAX),
    ("println", 0, usize::MAX),
    ("query", 1, 1),
    ("reReplaceAll", 3, 3),
    ("safeHtml", 1, 1),
    ("slice", 1, 4),
    ("sortByLabel", 2, 2),
    ("stripDomain", 1, 1),
    ("stripPort", 1, 1),
    ("strvalue", 1, 1),
    ("tableLink", 1, 1),
    ("title", 1, 1),
    ("toDuration", 1, 1),
    ("toLower", 1, 1),
    ("toTime", 1, 1),
    ("toUpper", 1, 1),
    ("urlquery", 0, usize::MAX),
    ("value", 1, 1),
];

/// What an operand is, as far as it matters for what may stand beside it.
pub(super) enum Operand {
    /// A function, by its place in [`FUNCTIONS`].
    Function(usize),
    Value,
    Nil,
}

impl Checker<'_> {
    pub(super) fn check_arguments(&self, at: usize, function: usize, given: usize) -> Checked {
        let (name, fewest, most) = FUNCTIONS[function];
        if (fewest..=most).contains(&given) {
            return Ok(());
        }
        let takes = match (fewest, most) {
            (fewest, usize::MAX) => format!("at least {fewest}"),
            (fewest, most) if fewest == most => fewest.to_string(),
            (fewest, most) => format!("{fewest} to {most}"),
        };
        self.wrong(at, format!("{name} takes {takes} arguments, not {given}"))
    }

    pub(super) fn operand(&mut self) -> Checked<Operand> {
        let begin = self.at;
        let operand = match self.peek() {
            Some('"') => return self.quoted('"').map(|()| Operand::Value),
            Some('\'') => return self.quoted('\'').map(|()| Operand::Value),
            Some('`') => return self.raw(),
            Some('(') => self.parenthesis()?,
            Some('$') => self.variable()?,
            Some('.') if !self.rest()[1..].starts_with(|c: char| c.is_ascii_digit()) => {
                let is_root = !self.blocks.iter().any(|block| block.moves_dot);
                // A dot alone is the data itself.
                if self.field_follows() {
                    self.fields(is_root)?;
                } else {
                    self.at += 1;
                }
                return Ok(Operand::Value);
            }
            Some('0'..='9' | '+' | '-' | '.') => return self.number(),
            Some(c) if c == '_' || c.is_alphabetic() => match self.name()? {
                operand @ (Operand::Value | Operand::Nil) => return Ok(operand),
                function @ Operand::Function(_) => function,
            },
            Some(_) | None => return self.wrong(begin, format!("unexpected {}", self.found())),
        };
        if self.field_follows() {
            if let Operand::Function(function) = operand {
                self.check_arguments(begin, function, 0)?;
            }
            self.fields(false)?;
            return Ok(Operand::Value);
        }
        Ok(operand)
    }

    fn field_follows(&self) -> bool {
        let rest = self.rest();
        rest.starts_with('.') && rest[1..].starts_with(|c: char| c == '_' || c.is_alphabetic())
    }

    /// `.Name` once or more often.
    fn fields(&mut self, of_root: bool) -> Checked {
        let mut of_root = of_root;
        while self.field_follows() {
            let begin = self.at;
            self.at += 1;
            let name = self.word();
            self.at += name.len();
            if of_root && !ROOT_FIELDS.contains(&name) {
                let known = ROOT_FIELDS.map(|field| format!(".{field}")).join(", ");
                return self.wrong(begin, format!("there is no .{name}; there are {known}"));
            }
            of_root = false;
        }
        Ok(())
    }

    fn parenthesis(&mut self) -> Checked<Operand> {
        let begin = self.at;
        if self.parentheses == NESTING_MAX {
            return self.wrong(begin, format!("parentheses are nested deeper than {NESTING_MAX}"));
        }
        self.parentheses += 1;
        self.at += 1;
        self.pipeline(Declares::Nothing)?;
        self.skip_space();
        if !self.skip(")") {
            return self.wrong(begin, "( is not closed by )");
        }
        self.parentheses -= 1;
        Ok(Operand::Value)
    }

    fn variable(&mut self) -> Checked<Operand> {
        let begin = self.at;
        self.at += 1;
        let name = self.word();
        self.at += name.len();
        if !self.variables.contains(&name) {
            return self.wrong(begin, format!("there is no variable ${name}"));
        }
        if name.is_empty() && self.field_follows() {
            self.fields(true)?;
        }
        Ok(Operand::Value)
    }

    /// A function, `true`, `false` or `nil`.
    fn name(&mut self) -> Checked<Operand> {
        let begin = self.at;
        let name = self.word();
        self.at += name.len();
        match name {
            "true" | "false" => return Ok(Operand::Value),
            "nil" => return Ok(Operand::Nil),
            _ if KEYWORDS.contains(&name) => {
                return self.wrong(begin, format!("{name} must be the first word after {{{{"));
            }
            _ => {}
        }
        match FUNCTIONS.binary_search_by_key(&name, |(known, ..)| known) {
            Ok(function) => Ok(Operand::Function(function)),
            Err(_) => self.wrong(begin, format!("there is no function {name}")),
        }
    }

    fn number(&mut self) -> Checked<Operand> {
        let begin = self.at;
        let rest = self.rest();
        let signed = rest.starts_with(['+', '-']);
        let mut end = usize::from(signed);
        let mut before = ' ';
        for c in rest[end..].chars() {
            let exponent_sign = "+-".contains(c) && "eE".contains(before);
            if !(c.is_ascii_alphanumeric() || c == '_' || c == '.' || exponent_sign) {
                break;
            }
            before = c;
            end += 1;
        }
        let digits = rest[usize::from(signed)..end].replace('_', "").to_ascii_lowercase();
        let radix = [("0x", 16), ("0o", 8), ("0b", 2)];
        let prefixed = radix.iter().find_map(|&(prefix, radix)| Some((digits.strip_prefix(prefix)?, radix)));
        let is_number = match prefixed {
            Some((digits, radix)) => u64::from_str_radix(digits, radix).is_ok(),
            // Rust also reads "inf" and "nan", which Go does not.
            None => {
                digits.starts_with(|c: char| c == '.' || c.is_ascii_digit()) && digits.parse::<f64>().is_ok()
            }
        };
        if !is_number {
            let text = if end == 0 { self.found() } else { rest[..end].to_owned() };
            return self.wrong(begin, format!("{text} is not a number"));
        }
        self.at += end;
        Ok(Operand::Value)
    }

    fn raw(&mut self) -> Checked<Operand> {
        let begin = self.at;
        match self.rest()[1..].find('`') {
            Some(length) => {
                self.at += length + 2;
                Ok(Operand::Value)
            }
            None => self.wrong(begin, "the text in ` has no end"),
        }
    }

    /// A text in double quotes or a character in single ones, with Go's escapes.
    fn quoted(&mut self, quote: char) -> Checked {
        let begin = self.at;
        self.at += 1;
        let mut characters = 0;
        loop {
            let Some(c) = self.peek().filter(|&c| c != '\n') else {
                return self.wrong(begin, format!("the text in {quote} has no end on its line"));
            };
            if c == '\\' {
                self.escape(quote)?;
            } else {
                self.at += c.len_utf8();
                if c == quote {
                    break;
                }
            }
            characters += 1;
        }
        if quote == '\'' && characters != 1 {
            return self.wrong(begin, "between ' there must be one character; texts stand in \"");
        }
        Ok(())
    }

    fn escape(&mut self, quote: char) -> Checked {
        let begin = self.at;
        self.at += 1;
        let (digits, radix) = match self.peek() {
            Some('a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '\\') => (0, 10),
            Some('0'..='7') => (3, 8),
            Some('x') => (2, 16),
            Some('u') => (4, 16),
            Some('U') => (8, 16),
            Some(c) if c == quote => (0, 10),
            Some(_) | None => return self.wrong(begin, "unknown escape after \\"),
        };
        if radix != 8 {
            self.at += 1;
        }
        let number = self.rest().get(..digits).filter(|text| text.chars().all(|c| c.is_digit(radix)));
        let number = number.map(|text| u32::from_str_radix(text, radix).unwrap_or(0));
        let is_valid = match (digits, number) {
            (_, None) => false,
            (3, Some(byte)) => byte <= 0xff,
            (4 | 8, Some(code)) => char::from_u32(code).is_some(),
            (_, Some(_)) => true,
        };
        if !is_valid {
            return self.wrong(begin, "the escape after \\ is incomplete or out of range");
        }
        self.at += digits;
        Ok(())
    }
}
