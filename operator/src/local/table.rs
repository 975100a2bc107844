//! Tables as `kubectl get` prints them: the columns come from the CustomResourceDefinition itself.

use std::fmt::Write;

use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

/// Lines up cells under a head, three spaces apart.
pub(crate) fn render(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut lines = vec![head.iter().map(|name| name.to_uppercase()).collect::<Vec<_>>()];
    lines.extend_from_slice(rows);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut printed = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _written = write!(printed, "{cell:<width$}   ");
        }
        text.push_str(printed.trim_end());
        text.push('\n');
    }
    text
}

/// The table of objects of one kind, given as JSON.
pub(crate) fn objects(
    crd: &CustomResourceDefinition,
    objects: &[Value],
    wide: bool,
    now: Timestamp,
) -> String {
    let columns = crd.spec.versions.first().and_then(|version| version.additional_printer_columns.as_deref());
    let columns: Vec<_> = columns
        .unwrap_or_default()
        .iter()
        .filter(|column| wide || column.priority.unwrap_or(0) == 0)
        .collect();
    let mut head = vec!["name"];
    head.extend(columns.iter().map(|column| column.name.as_str()));
    let rows: Vec<Vec<String>> = objects
        .iter()
        .map(|object| {
            let name = text(lookup(object, ".metadata.name"));
            let cells = columns.iter().map(|column| {
                let value = lookup(object, &column.json_path);
                if column.type_ == "date" { age_of(value, now) } else { text(value) }
            });
            std::iter::once(name).chain(cells).collect()
        })
        .collect();
    render(&head, &rows)
}

/// The value at a path of the two forms that printer columns use: `.a.b` and `.a[?(@.b=="c")].d`.
fn lookup<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let (step, rest) = match path.strip_prefix("[?(@.") {
        Some(filter) => {
            let (filter, rest) = filter.split_once(")]")?;
            let (key, wanted) = filter.split_once("==")?;
            let wanted = wanted.trim_matches('"');
            let found = object.as_array()?.iter().find(|item| item[key] == wanted)?;
            (found, rest)
        }
        None => {
            let Some(path) = path.strip_prefix('.') else {
                return path.is_empty().then_some(object);
            };
            let end = path.find(['.', '[']).unwrap_or(path.len());
            let (key, rest) = path.split_at(end);
            (object.get(key)?, rest)
        }
    };
    lookup(step, rest)
}

fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) if number.is_f64() => {
            number.as_f64().map(|number| format!("{number:.2}")).unwrap_or_default()
        }
        Some(other) => other.to_string(),
    }
}

fn age_of(value: Option<&Value>, now: Timestamp) -> String {
    match value.and_then(Value::as_str).map(str::parse::<Timestamp>) {
        Some(Ok(then)) => age(then, now),
        Some(Err(_)) | None => "<unknown>".to_owned(),
    }
}

/// A time span as short as kubectl prints it.
pub(crate) fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_come_from_the_definition() {
        let crd: CustomResourceDefinition = serde_json::from_value(json!({
            "metadata": {},
            "spec": {
                "group": "certeus.io", "scope": "Namespaced", "names": {"kind": "X", "plural": "xs"},
                "versions": [{
                    "name": "v1alpha1", "served": true, "storage": true,
                    "additionalPrinterColumns": [
                        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
                        {"name": "CPU", "type": "number", "jsonPath": ".status.triggers[?(@.name==\"cpu\")].value"},
                        {"name": "Why", "type": "string", "jsonPath": ".status.why", "priority": 1},
                        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                    ],
                }],
            },
        }))
        .unwrap();
        let object = json!({
            "metadata": {"name": "demo", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {
                "conditions": [{"type": "Old", "status": "False"}, {"type": "Ready", "status": "True"}],
                "triggers": [{"name": "cpu", "value": 0.714_285}],
                "why": "load fell",
            },
        });
        let empty = json!({"metadata": {"name": "long-name"}});
        let now = "2026-01-01T00:05:07Z".parse().unwrap();
        let narrow = "\
NAME        READY   CPU    AGE
demo        True    0.71   5m
long-name                  <unknown>
";
        let rows = [object, empty];
        assert_eq!(objects(&crd, &rows, false, now), narrow);
        assert!(objects(&crd, &rows, true, now).contains("load fell   5m"));
    }

    #[test]
    fn ages_are_short() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let after = |seconds| age(start, start + jiff::SignedDuration::from_secs(seconds));
        assert_eq!([0, 119, 120, 7_200, 172_800].map(after), ["0s", "119s", "2m", "2h", "2d"]);
        assert_eq!(age(start + jiff::SignedDuration::from_secs(9), start), "0s", "a clock that was set back");
    }
}
