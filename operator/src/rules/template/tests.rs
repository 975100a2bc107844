use super::operand::FUNCTIONS;
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
