//! The files in `deploy/`: the configuration file, Prometheus' rules and Grafana's dashboard. No container is started.

use std::path::{Path, PathBuf};

use fanfare_tests::cluster::binary;
use fanfare_tests::process::{Launch, Output};
use fanfare_tests::prometheus::promtool;
use fanfare_tests::scratch::Scratch;
use serde_json::{Value, json};

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(shipped(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

async fn check(file: &Path) -> Output {
    Launch::new("fanfare", binary()).arg("check").arg(file).run().await
}

#[tokio::test]
async fn the_mounted_configuration_is_valid_as_shipped_and_with_each_example() {
    let text = read("fanfare.toml");
    let scratch = Scratch::new();
    // A setting has no blank after its "#", an explanation has one.
    let settings: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix('#')).filter(|rest| rest.starts_with(|c| c != ' ')).collect();
    assert!(settings.len() > 15, "{settings:?}");
    for section in ["[auth]", "[[rooms]]", "[limits]"] {
        assert!(settings.contains(&section), "{section} has no example");
    }
    assert!(text.lines().all(|line| line.is_empty() || line.starts_with('#')), "as shipped it sets nothing");
    let all = scratch.file("all.toml", &settings.join("\n"));
    for file in [shipped("fanfare.toml"), all] {
        let output = check(&file).await;
        assert_eq!(output.code, Some(0), "{}", output.stderr);
    }
}

#[tokio::test]
async fn prometheus_accepts_its_configuration_and_the_alerts_fire_when_they_should() {
    for (command, file) in [
        (["check", "config"], "prometheus/prometheus.yml"),
        (["check", "rules"], "prometheus/alerts.yml"),
        (["test", "rules"], "prometheus/alerts_test.yml"),
    ] {
        let output = promtool().args(command).arg(shipped(file)).run().await;
        assert_eq!(output.code, Some(0), "{file}: {}{}", output.stdout, output.stderr);
    }
}

/// The dashboard's queries, and those that docs/operations.md gives to operators.
#[tokio::test]
async fn prometheus_accepts_the_queries_of_the_dashboard_and_of_the_documentation() {
    let dashboard: Value = serde_json::from_str(&read("grafana/dashboards/fanfare.json")).expect("it is JSON");
    let panels = dashboard["panels"].as_array().expect("a dashboard has panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let drawn: Vec<&str> = targets.filter_map(|target| target["expr"].as_str()).collect();
    let page = read("../docs/operations.md");
    let (_, table) = page.split_once("| question | query |\n|---|---|\n").expect("the table is there");
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    let documented: Vec<&str> = rows.filter_map(|row| row.split('`').nth(1)).collect();
    assert!(drawn.len() > 20 && documented.len() > 10, "{drawn:?}, {documented:?}");
    let rules: Vec<Value> = drawn
        .iter()
        .chain(&documented)
        .map(|query| query.replace("$__rate_interval", "1m").replace("$node", ".*"))
        .map(|query| json!({"record": "query", "expr": query}))
        .collect();
    // JSON is YAML.
    let file = json!({"groups": [{"name": "queries", "rules": rules}]}).to_string();
    let scratch = Scratch::new();
    let output = promtool().args(["check", "rules", "--lint=none"]).arg(scratch.file("rules.yml", &file)).run().await;
    assert_eq!(output.code, Some(0), "{}{}", output.stdout, output.stderr);
}
