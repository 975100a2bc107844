//! The chart's alerts and dashboard speak of metrics that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use certeus_e2e::cluster::space::repository;

use super::{chart, objects};

/// All names of metrics in a text.
fn metrics(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("certeus_")).collect()
}

/// All Rust below a folder, as one text.
fn sources(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *into += &fs::read_to_string(&path).unwrap();
        }
    }
}

#[test]
fn alerts_and_dashboard_use_metrics_that_exist() {
    let mut source = String::new();
    for folder in ["dataplane", "operator/src"] {
        sources(&repository().join(folder), &mut source);
    }
    // The operator's metrics get their prefix where they are registered.
    let exists = |name: &str| {
        let plain = name.strip_prefix("certeus_operator_").unwrap_or(name);
        let of_histogram = ["", "_bucket", "_sum", "_count"].map(|suffix| plain.strip_suffix(suffix));
        of_histogram.into_iter().flatten().any(|base| source.contains(&format!("\"{base}\"")))
    };
    let files = ["files/rules/dataplane.yaml", "files/rules/operator.yaml", "files/dashboards/certeus.json"];
    for file in files {
        let text = fs::read_to_string(chart().join(file)).unwrap();
        let used = metrics(&text);
        assert!(used.len() > 3, "{file} uses {used:?}");
        let missing: Vec<_> = used.into_iter().filter(|name| !exists(name)).collect();
        assert!(missing.is_empty(), "{file} uses metrics that nobody has: {missing:?}");
    }
}

#[test]
fn every_alert_says_what_it_means_and_how_bad_it_is() {
    for file in ["dataplane", "operator"] {
        let text = fs::read_to_string(chart().join(format!("files/rules/{file}.yaml"))).unwrap();
        for group in objects(&text)[0]["groups"].as_array().unwrap() {
            for rule in group["rules"].as_array().unwrap() {
                assert!(rule["annotations"]["summary"].is_string(), "{rule}");
                assert!(
                    ["warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap()),
                    "{rule}"
                );
            }
        }
    }
}
