//! Checks the templates in labels and annotations of alerts: Go's `text/template` with Prometheus' functions and variables.
//!
//! One pass, no tree: a template is read to see that it can be expanded, never expanded. Stricter than Prometheus, which finds some of
//! these mistakes only when the alert fires: functions must get as many arguments as they take, and the fields of the data must
//! exist. `define`, `block` and `template` are refused, as each text stands for itself.
//! Sources: <https://pkg.go.dev/text/template>, <https://prometheus.io/docs/prometheus/latest/configuration/template_reference/>.

use std::fmt;

/// Blocks and parentheses may be nested this deep.
const NESTING_MAX: usize = 64;

/// Variables that Prometheus declares before each template.
const VARIABLES: [&str; 5] = ["", "labels", "externalLabels", "externalURL", "value"];

/// Fields of the data that `.` and `$` are at first.
const ROOT_FIELDS: [&str; 4] = ["Labels", "ExternalLabels", "ExternalURL", "Value"];

const KEYWORDS: [&str; 10] =
    ["if", "else", "end", "range", "with", "break", "continue", "define", "block", "template"];

/// Functions with the fewest and the most arguments they take.
const FUNCTIONS: [(&str, usize, usize); 47] = [
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

/// Where a template is wrong, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TemplateError {
    /// From 1.
    line: usize,
    /// In characters, from 1.
    column: usize,
    problem: String,
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.problem)
    }
}

/// Checks one template.
///
/// # Errors
/// The first thing that is wrong.
pub(super) fn check(text: &str) -> Result<(), TemplateError> {
    let variables = VARIABLES.to_vec();
    let mut checker = Checker { text, at: 0, variables, blocks: Vec::new(), parentheses: 0 };
    checker.template().map_err(|Mistake { at, problem }| {
        let before = &text[..at];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        TemplateError {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            problem,
        }
    })
}

/// A problem at a byte offset, which is a character boundary.
struct Mistake {
    at: usize,
    problem: String,
}

type Checked<T = ()> = Result<T, Mistake>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Keyword {
    If,
    With,
    Range,
}

impl Keyword {
    fn name(self) -> &'static str {
        match self {
            Self::If => "if",
            Self::With => "with",
            Self::Range => "range",
        }
    }
}

/// An open `if`, `with` or `range`.
struct Block {
    keyword: Keyword,
    opened_at: usize,
    /// Whether its last `else` was seen.
    is_last: bool,
    /// Whether `.` is something else than outside.
    moves_dot: bool,
    /// How many variables there were outside.
    variables_outside: usize,
    /// How many there are when a branch begins.
    variables_inside: usize,
}

/// What an operand is, as far as it matters for what may stand beside it.
enum Operand {
    /// A function, by its place in [`FUNCTIONS`].
    Function(usize),
    Value,
    Nil,
}

/// What may be declared at the beginning of a pipeline.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Declares {
    Nothing,
    One,
    /// Index and element.
    Two,
}

struct Checker<'a> {
    text: &'a str,
    at: usize,
    variables: Vec<&'a str>,
    blocks: Vec<Block>,
    parentheses: usize,
}

impl<'a> Checker<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn wrong<T>(&self, at: usize, problem: impl Into<String>) -> Checked<T> {
        Err(Mistake { at, problem: problem.into() })
    }

    /// What stands here, for an error.
    fn found(&self) -> String {
        self.peek().map_or_else(|| "the end of the text".to_owned(), |c| format!("{c:?}"))
    }

    fn skip(&mut self, prefix: &str) -> bool {
        let found = self.rest().starts_with(prefix);
        if found {
            self.at += prefix.len();
        }
        found
    }

    /// Skips white space inside an action; whether there was any.
    fn skip_space(&mut self) -> bool {
        let length = self.rest().bytes().take_while(|byte| b" \t\r\n".contains(byte)).count();
        self.at += length;
        length > 0
    }

    /// A name that begins here, or nothing.
    fn word(&self) -> &'a str {
        let rest = self.rest();
        let is_part = |c: char| c == '_' || c.is_alphanumeric();
        &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())]
    }

    fn template(&mut self) -> Checked {
        while let Some(offset) = self.rest().find("{{") {
            let opened_at = self.at + offset;
            self.at = opened_at + 2;
            let rest = self.rest();
            if rest.starts_with('-') && rest[1..].starts_with([' ', '\t', '\r', '\n']) {
                self.at += 1;
                self.skip_space();
            }
            if self.rest().starts_with("/*") {
                self.comment(opened_at)?;
            } else {
                self.action(opened_at)?;
            }
        }
        match self.blocks.last() {
            Some(block) => {
                self.wrong(block.opened_at, format!("{{{{{}}}}} has no {{{{end}}}}", block.keyword.name()))
            }
            None => Ok(()),
        }
    }

    fn comment(&mut self, opened_at: usize) -> Checked {
        let Some(length) = self.rest().find("*/") else {
            return self.wrong(opened_at, "the comment has no */");
        };
        self.at += length + 2;
        let spaced = self.skip_space();
        if self.skip("}}") && !spaced || spaced && self.skip("-}}") {
            return Ok(());
        }
        self.wrong(opened_at, "a comment must be all that is between {{ and }}")
    }

    fn action(&mut self, opened_at: usize) -> Checked {
        self.skip_space();
        let word_at = self.at;
        let word = self.word();
        if KEYWORDS.contains(&word) {
            self.at += word.len();
        }
        match word {
            "if" => self.open(Keyword::If, opened_at)?,
            "with" => self.open(Keyword::With, opened_at)?,
            "range" => self.open(Keyword::Range, opened_at)?,
            "else" => self.branch(word_at)?,
            "end" => match self.blocks.pop() {
                Some(block) => self.variables.truncate(block.variables_outside),
                None => return self.wrong(word_at, "{{end}} ends nothing"),
            },
            "break" | "continue" => {
                if !self.blocks.iter().any(|block| block.keyword == Keyword::Range) {
                    return self.wrong(word_at, format!("{{{{{word}}}}} is not inside {{{{range}}}}"));
                }
            }
            "define" | "block" | "template" => {
                return self.wrong(word_at, format!("{word} is not supported: each text stands for itself"));
            }
            _ => self.pipeline(Declares::One)?,
        }
        self.close(opened_at)
    }

    /// The end of an action.
    fn close(&mut self, opened_at: usize) -> Checked {
        self.skip_space();
        let spaced = self.text[..self.at].ends_with([' ', '\t', '\r', '\n']);
        if self.skip("}}") || spaced && self.skip("-}}") {
            return Ok(());
        }
        if self.rest().is_empty() {
            return self.wrong(opened_at, "{{ is not closed by }}");
        }
        let hint = if self.rest().starts_with('-') {
            "; a label with a dash in its name is read by {{ index $labels \"the-name\" }}"
        } else {
            ""
        };
        self.wrong(self.at, format!("unexpected {}{hint}", self.found()))
    }

    fn open(&mut self, keyword: Keyword, opened_at: usize) -> Checked {
        if self.blocks.len() == NESTING_MAX {
            return self.wrong(opened_at, format!("blocks are nested deeper than {NESTING_MAX}"));
        }
        let variables_outside = self.variables.len();
        self.pipeline(if keyword == Keyword::Range { Declares::Two } else { Declares::One })?;
        self.blocks.push(Block {
            keyword,
            opened_at,
            is_last: false,
            moves_dot: keyword != Keyword::If,
            variables_outside,
            variables_inside: self.variables.len(),
        });
        Ok(())
    }

    /// `else`, `else if` or `else with`; the word itself has been read.
    fn branch(&mut self, word_at: usize) -> Checked {
        let Some(block) = self.blocks.last_mut() else {
            return self.wrong(word_at, "{{else}} belongs to nothing");
        };
        if block.is_last {
            return self.wrong(word_at, "there is a second {{else}}");
        }
        // In this branch there is nothing that `.` could have been moved to.
        block.moves_dot = false;
        let (keyword, inside) = (block.keyword, block.variables_inside);
        self.variables.truncate(inside);
        self.skip_space();
        let word = self.word();
        let continues = match (keyword, word) {
            (Keyword::If, "if") => Some(false),
            (Keyword::With, "with") => Some(true),
            _ => None,
        };
        if continues.is_some() {
            self.at += word.len();
            self.pipeline(Declares::One)?;
        }
        let variables_inside = self.variables.len();
        if let Some(block) = self.blocks.last_mut() {
            block.is_last = continues.is_none();
            block.moves_dot = continues == Some(true);
            block.variables_inside = variables_inside;
        }
        Ok(())
    }

    fn pipeline(&mut self, declares: Declares) -> Checked {
        self.skip_space();
        let mut declared = Vec::new();
        if self.peek() == Some('$') {
            declared = self.declaration(declares)?;
        }
        let mut stage = 0;
        loop {
            self.command(stage > 0)?;
            self.skip_space();
            if !self.skip("|") {
                break;
            }
            stage += 1;
        }
        // A variable is not known in its own value.
        self.variables.extend(declared);
        Ok(())
    }

    /// `$x :=`, `$x =` or, in `range`, `$i, $x :=`; leaves everything as it was where it is none of these.
    fn declaration(&mut self, declares: Declares) -> Checked<Vec<&'a str>> {
        let begin = self.at;
        let mut names = Vec::new();
        loop {
            let name_at = self.at;
            if !self.skip("$") {
                return self
                    .wrong(self.at, format!("a variable such as $x is missing before {}", self.found()));
            }
            let name = self.word();
            self.at += name.len();
            names.push((name_at, name));
            self.skip_space();
            if !(declares == Declares::Two && names.len() == 1 && self.skip(",")) {
                break;
            }
            self.skip_space();
        }
        let is_new = self.skip(":=");
        let is_assigned = !is_new && !self.rest().starts_with("==") && self.skip("=");
        if !is_new && !is_assigned {
            if names.len() > 1 {
                return self.wrong(self.at, format!(":= is missing before {}", self.found()));
            }
            self.at = begin;
            return Ok(Vec::new());
        }
        if declares == Declares::Nothing {
            return self.wrong(begin, "a variable cannot be declared in parentheses");
        }
        for &(at, name) in &names {
            if name.is_empty() {
                return self.wrong(at, "$ itself cannot be set");
            }
            if is_assigned && !self.variables.contains(&name) {
                return self.wrong(at, format!("there is no variable ${name}"));
            }
        }
        Ok(if is_new { names.into_iter().map(|(_, name)| name).collect() } else { Vec::new() })
    }

    /// Whether a command ends here; `spaced` says whether white space came before.
    fn command_ends(&self, spaced: bool) -> bool {
        let rest = self.rest();
        rest.is_empty()
            || rest.starts_with("}}")
            || rest.starts_with(['|', ')'])
            || spaced && rest.starts_with("-}}")
    }

    /// A function with its arguments, or a value.
    fn command(&mut self, is_piped: bool) -> Checked {
        let spaced = self.skip_space();
        let begin = self.at;
        if self.command_ends(spaced) {
            let after = if is_piped { " after |" } else { "" };
            return self.wrong(begin, format!("a value or a function is missing{after}"));
        }
        let first = self.operand()?;
        let mut arguments = usize::from(is_piped);
        loop {
            let spaced = self.skip_space();
            if self.command_ends(spaced) {
                break;
            }
            if !spaced || self.rest().starts_with([',', ':', '=']) {
                return self.close(begin);
            }
            if let Operand::Function(argument) = self.operand()? {
                self.check_arguments(begin, argument, 0)?;
            }
            arguments += 1;
        }
        match first {
            Operand::Function(function) => self.check_arguments(begin, function, arguments),
            Operand::Nil => self.wrong(begin, "nil is not a value by itself"),
            Operand::Value if is_piped => self.wrong(begin, "after | there must be a function"),
            Operand::Value if arguments > 0 => self.wrong(begin, "only functions take arguments"),
            Operand::Value => Ok(()),
        }
    }

    fn check_arguments(&self, at: usize, function: usize, given: usize) -> Checked {
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

    fn operand(&mut self) -> Checked<Operand> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn valid(text: &str) {
        if let Err(error) = check(text) {
            panic!("{text}: {error}");
        }
    }

    #[track_caller]
    fn invalid(text: &str, line: usize, column: usize, problem: &str) {
        let error = check(text).expect_err(text);
        assert_eq!((error.line, error.column), (line, column), "{text}: {error}");
        assert!(error.problem.contains(problem), "{text}: {error}");
    }

    #[test]
    fn functions_are_sorted_for_the_search() {
        assert!(FUNCTIONS.is_sorted_by_key(|(name, ..)| *name));
    }

    #[test]
    fn what_rule_files_contain_is_accepted() {
        for text in [
            "",
            "plain text, } and { and }}",
            "{{ $labels.instance }} of job {{ $labels.job }} is down",
            "{{$labels.instance}}{{- \" x \" -}} y",
            "{{ $value | humanize }}",
            "{{ $value | humanizePercentage }} of {{ .Value }}, {{ .Labels.pod }}, {{ $.ExternalLabels.cluster }}",
            "{{ printf \"%.2f\" $value }}",
            "{{ printf \"%.2f\" (index $labels \"a-b\" | len) }}",
            "{{ with query \"up == 0\" }}{{ . | first | value | humanize }}{{ end }}",
            "{{ with printf \"up{job='%s'}\" .Labels.job | query }}{{ . | first | label \"x\" }}{{ else }}none{{ end }}",
            "{{ range query \"up\" }}{{ .Labels.instance }} {{ .Value }}{{ end }}",
            "{{ range $i, $r := query \"up\" | sortByLabel \"instance\" }}{{ $i }}: {{ $r.Value }}\n{{ end }}",
            "{{ if eq $labels.severity \"critical\" }}a{{ else if gt $value 0.5 }}b{{ else }}c{{ end }}",
            "{{ with $x := $labels.a }}{{ $x }}{{ else with $labels.b }}{{ . }}{{ end }}",
            "{{ $x := 1 }}{{ $x = 2 }}{{ $x }}",
            "{{/* a comment */}}{{- /* another */ -}}",
            "{{ `raw \"text\"` }} {{ 'a' }} {{ '\\n' }} {{ \"\\u00e9\\x41\\101\" }}",
            "{{ -1 }} {{ 1e3 }} {{ 0x1F }} {{ .5 }} {{ 1_000 }}",
            "{{ (query \"up\" | first).Value }}",
            "{{ range query \"a\" }}{{ if .Value }}{{ break }}{{ end }}{{ continue }}{{ end }}",
            "{{ reReplaceAll \"(.*):\\\\d+\" \"$1\" $labels.instance | toUpper }}",
            "{{ externalURL }}{{ pathPrefix }}/graph?x={{ \"a b\" | urlquery }}",
            "{{\n$value\n}}",
            "{{ args 1 2 }}{{ and true (not false) }}",
        ] {
            valid(text);
        }
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        invalid("a {{ $labels.x", 1, 3, "{{ is not closed by }}");
        invalid("a\nbé {{ $label.x }}", 2, 7, "there is no variable $label");
        invalid("{{ $value | humanise }}", 1, 13, "there is no function humanise");
        invalid("{{ humanize }}", 1, 4, "humanize takes 1 arguments, not 0");
        invalid("{{ $value | humanize 2 }}", 1, 13, "humanize takes 1 arguments, not 2");
        invalid("{{ printf \"%s\" value }}", 1, 4, "value takes 1 arguments, not 0");
        invalid("{{ }}", 1, 4, "a value or a function is missing");
        invalid("{{ $value | }}", 1, 13, "is missing after |");
        invalid("{{ $value | $value }}", 1, 13, "there must be a function");
        invalid("{{ $value 1 }}", 1, 4, "only functions take arguments");
        invalid("{{ nil }}", 1, 4, "nil");
        invalid("{{ .labels.x }}", 1, 4, "there is no .labels; there are .Labels");
        invalid("{{ $.Job }}", 1, 5, "there is no .Job");
        invalid("{{ with 1 }}{{ else }}{{ .Job }}{{ end }}", 1, 26, "there is no .Job");
        invalid("{{ $labels.a-b }}", 1, 13, "index $labels");
        invalid("{{ if true }}a", 1, 1, "{{if}} has no {{end}}");
        invalid("a{{ end }}", 1, 5, "{{end}} ends nothing");
        invalid("{{ else }}", 1, 4, "{{else}} belongs to nothing");
        invalid("{{ if true }}{{ else }}{{ else }}{{ end }}", 1, 27, "a second {{else}}");
        invalid("{{ break }}", 1, 4, "is not inside {{range}}");
        invalid("{{ template \"x\" }}", 1, 4, "template is not supported");
        invalid("{{ print if }}", 1, 10, "if must be the first word");
        invalid("{{ \"abc }}", 1, 4, "has no end");
        invalid("{{ `abc }}", 1, 4, "has no end");
        invalid("{{ 'ab' }}", 1, 4, "one character");
        invalid("{{ \"\\q\" }}", 1, 5, "unknown escape");
        invalid("{{ \"\\ud800\" }}", 1, 5, "out of range");
        invalid("{{ 1x }}", 1, 4, "1x is not a number");
        invalid("{{ - }}", 1, 4, "is not a number");
        invalid("{{ \"a\"\"b\" }}", 1, 7, "unexpected '\"'");
        invalid("{{ ($value }}", 1, 4, "( is not closed");
        invalid("{{ $value) }}", 1, 10, "unexpected ')'");
        invalid("{{ ($x := 1) }}", 1, 5, "in parentheses");
        invalid("{{ $x = 1 }}", 1, 4, "there is no variable $x");
        invalid("{{ if $x := 1 }}{{ end }}{{ $x }}", 1, 29, "there is no variable $x");
        invalid("{{ range $a $b := 1 }}{{ end }}", 1, 10, "there is no variable $a");
        invalid("{{/* x }}", 1, 1, "the comment has no */");
        invalid("{{/* x */ 1 }}", 1, 1, "all that is between");
        invalid("{{ # }}", 1, 4, "unexpected '#'");
        let deep = format!("{{{{ {}1{} }}}}", "(".repeat(100), ")".repeat(100));
        invalid(&deep, 1, 4 + NESTING_MAX, "nested deeper than 64");
        invalid(&"{{ if 1 }}".repeat(100), 1, 1 + 10 * NESTING_MAX, "nested deeper than 64");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let _either = check(&text);
        }

        /// Texts made of what templates are made of go deeper than random ones.
        #[test]
        fn no_mixture_of_parts_makes_it_panic(parts in prop::collection::vec(prop::sample::select(vec![
            "{{", "}}", "{{-", "-}}", " ", "\n", "if", "else", "end", "range", "with", "$", "$x", "$value", ":=", "=", ",", "|", "(",
            ")", ".", ".Labels", ".5", "1", "-", "0x", "\"", "`", "'", "\\", "é", "/*", "*/", "printf", "humanize", "nil", "e+",
        ]), 0..60)) {
            let text = parts.concat();
            if let Err(error) = check(&text) {
                prop_assert!(error.line >= 1 && error.column >= 1 && !error.problem.is_empty());
                prop_assert!(error.line <= text.lines().count().max(1) + 1);
            }
        }

        /// What follows a valid template cannot make what came before invalid.
        #[test]
        fn text_without_actions_is_always_valid(before in "[^{]{0,40}", after in "[^{]{0,40}") {
            let text = format!("{before}{{{{ $value }}}}{after}");
            prop_assert!(check(&text).is_ok());
        }
    }
}
