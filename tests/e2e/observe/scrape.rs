//! What Prometheus' own parsers read of the metrics.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::common::http::{self, Reply, With, get};

pub(super) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0";

/// The reference implementations of both formats, which are strict.
const PARSE: &str = r#"
import json, sys
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics
parse = {"text": parser, "open": openmetrics}[sys.argv[1]].text_string_to_metric_families
print(json.dumps({
    sample.name + "{" + ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items())) + "}": sample.value
    for family in parse(sys.stdin.read()) for sample in family.samples
}))
"#;

/// Samples by `name{label="value",…}`.
#[derive(Debug)]
pub(super) struct Samples(pub(super) BTreeMap<String, f64>);

impl Samples {
    /// As the parser for `format` (`text`, `open`) reads it.
    pub(super) fn parse(page: &str, format: &str) -> Self {
        let mut python = Command::new("/usr/bin/python3")
            .args(["-c", PARSE, format])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3; run `make setup`");
        let mut input = python.stdin.take().expect("a pipe");
        input.write_all(page.as_bytes()).expect("python3 reads");
        drop(input);
        let output = python.wait_with_output().expect("python3 ends");
        assert!(
            output.status.success(),
            "the page cannot be parsed, or python3-prometheus-client is missing (`make setup`)\n{page}"
        );
        Self(serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// Of a series that is not there: 0, as queries take it.
    pub(super) fn of(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }

    /// The sum over all series whose name begins so.
    pub(super) fn sum(&self, begin: &str) -> f64 {
        let matching = self.0.iter().filter(|(series, _)| series.starts_with(begin));
        matching.map(|(_, value)| value).sum()
    }
}

pub(super) async fn page(addr: SocketAddr, accept: &str) -> Reply {
    let reply = http::send(addr, get("/metrics").with("accept", accept)).await;
    let reply = reply.expect("the metrics are served");
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply
}

pub(super) async fn scrape(addr: SocketAddr) -> Samples {
    Samples::parse(&page(addr, OPEN_METRICS).await.text(), "open")
}
