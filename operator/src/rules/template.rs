//! Checks the templates in labels and annotations of alerts: Go's `text/template` with Prometheus' functions and variables.
//!
//! One pass, no tree: a template is read to see that it can be expanded, never expanded. Stricter than Prometheus, which finds some of
//! these mistakes only when the alert fires: functions must get as many arguments as they take, and the fields of the data must
//! exist. `define`, `block` and `template` are refused, as each text stands for itself.
//! Sources: <https://pkg.go.dev/text/template>, <https://prometheus.io/docs/prometheus/latest/configuration/template_reference/>.

mod operand;

use std::fmt;

use operand::Operand;

/// Blocks and parentheses may be nested this deep.
const NESTING_MAX: usize = 64;

/// Variables that Prometheus declares before each template.
const VARIABLES: [&str; 5] = ["", "labels", "externalLabels", "externalURL", "value"];

const KEYWORDS: [&str; 10] =
    ["if", "else", "end", "range", "with", "break", "continue", "define", "block", "template"];

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
        let end = if self.skip_space() { "-}}" } else { "}}" };
        if self.skip(end) {
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
}

#[cfg(test)]
mod tests;
