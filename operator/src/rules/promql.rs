//! Whether an expression is PromQL that a rule can be made of.
//! The parser is `promql-parser`; a bound on nesting comes first, as recursion over its trees must not exhaust a thread's stack.

use promql_parser::parser::{self, value::ValueType};

/// Parentheses, brackets and braces may be nested this deep.
const NESTING_MAX: usize = 64;
/// Operators that an expression may have: a chain of them is a tree as deep as it is long.
const OPERATORS_MAX: usize = 1024;

/// Checks the expression of a rule.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn check(expr: &str) -> Result<(), String> {
    check_size(expr)?;
    let parsed = parser::parse(expr).map_err(|reason| format!("is not PromQL: {}", said(expr, reason)))?;
    match parsed.value_type() {
        ValueType::Vector | ValueType::Scalar => Ok(()),
        kind @ (ValueType::Matrix | ValueType::String) => {
            Err(format!("gives a {kind}; a rule needs an instant vector or a scalar"))
        }
    }
}

/// The parser keeps to itself where it stopped. Whether it was at the end is found by going on there.
fn said(expr: &str, reason: String) -> String {
    let goes_on = |more: &str| parser::parse(&format!("{expr}\n{more}")).is_ok();
    if goes_on("x") {
        format!("{reason}: it ends where a metric, a number or a parenthesis should follow")
    } else if [")", "]", "}"].into_iter().any(goes_on) {
        format!("{reason}: it ends inside parentheses, brackets or braces")
    } else {
        reason
    }
}

/// Counts what makes trees deep. Texts in quotes are no exception: an expression that needs more than this is none to keep.
fn check_size(expr: &str) -> Result<(), String> {
    let mut depth = 0_usize;
    let mut operators = 0;
    for byte in expr.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'+' | b'-' | b'*' | b'/' | b'%' | b'^' | b'=' | b'<' | b'>' | b'!' => operators += 1,
            _ => {}
        }
        if depth > NESTING_MAX {
            return Err(format!("is nested deeper than {NESTING_MAX}"));
        }
    }
    let words = expr.split(|c: char| c != '_' && c != ':' && !c.is_alphanumeric());
    operators +=
        words.filter(|word| OPERATOR_WORDS.iter().any(|known| known.eq_ignore_ascii_case(word))).count();
    if operators > OPERATORS_MAX {
        return Err(format!("has more than {OPERATORS_MAX} operators"));
    }
    Ok(())
}

const OPERATOR_WORDS: [&str; 4] = ["and", "or", "unless", "atan2"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_of_rule_files_are_accepted() {
        for expr in [
            "up == 0",
            "1",
            "vector(1)",
            "sum by (job) (rate(http_requests_total{code=~\"5..\"}[5m])) / ignoring(code) group_left sum by (job) (rate(http_requests_total[5m])) > 0.05",
            "histogram_quantile(0.99, sum(rate(latency_seconds_bucket[5m])) by (le)) > 0.1 and on() up == 1",
            "max_over_time(rate(x_total[1m] offset 5m)[1h:30s])",
            "certeus_ledger_queue_events / certeus_ledger_queue_events_max > 0.8",
            "absent(up{job=\"x\"}) or (x unless y)",
            "foo @ end()",
            "# a comment\n  foo\n    > bool 1",
            "{\"a name.with dots\", x=\"1\"}",
        ] {
            assert_eq!(check(expr), Ok(()), "{expr}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (expr, words) in [
            ("sum(", "is not PromQL"),
            ("up ==", "is not PromQL: invalid promql query: it ends where a metric"),
            ("up > 1 and # why", "it ends where a metric"),
            ("sum(rate(x[5m])", "it ends inside parentheses"),
            ("up{job=\"x\"", "it ends inside parentheses"),
            ("sum by (x) rate(y[5m])", "is not PromQL"),
            ("foo bar", "is not PromQL"),
            ("rate(foo)", "expected type"),
            ("nosuch(foo)", "nosuch"),
            ("1 > 2", "BOOL"),
            ("foo{x=~\"(\"}", "is not PromQL"),
            ("", "is not PromQL"),
            ("foo[5m]", "gives a matrix; a rule needs"),
            ("\"text\"", "gives a string; a rule needs"),
        ] {
            let problem = check(expr).expect_err(expr);
            assert!(problem.contains(words), "{expr}: {problem}");
        }
    }

    /// As much as is allowed, in trees that lean to either side, on a stack of the size that worker threads have.
    #[test]
    fn the_deepest_trees_fit_the_stack_of_a_worker() {
        let n = NESTING_MAX;
        let expressions = [
            format!("{}1{}", "(".repeat(n), ")".repeat(n)),
            format!("{}x{}", "abs(".repeat(n), ")".repeat(n)),
            format!("x{}", " + x".repeat(OPERATORS_MAX)),
            format!("x{}", " or x".repeat(OPERATORS_MAX)),
            format!("x{}", "^x".repeat(OPERATORS_MAX)),
            format!("{}x", "-".repeat(OPERATORS_MAX)),
        ];
        let worker = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
            for expr in expressions {
                assert_eq!(check(&expr), Ok(()), "{}", &expr[..20]);
            }
        });
        worker.unwrap().join().unwrap();
        assert!(check(&"(".repeat(n + 1)).unwrap_err().contains("nested deeper"));
        assert!(check(&format!("x{}", "+x".repeat(OPERATORS_MAX + 1))).unwrap_err().contains("more than"));
    }
}
