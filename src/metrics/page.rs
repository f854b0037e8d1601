//! The exposition: families and their series, in one of two formats.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::registry::Registry;

use super::catalog::{Metric, is_counter};
use super::cells::Times;

/// What is being written.
pub(super) struct Page<'a>(pub(super) DescriptorEncoder<'a>);

/// The value of a series.
#[derive(Clone, Copy)]
pub(super) enum Value {
    Count(u64),
    /// A counter that is no whole number.
    Sum(f64),
    Level(f64),
    Times(Times),
}

impl Page<'_> {
    /// A family with the values of its labels, in their order, and its value for each.
    pub(super) fn family<L: AsRef<[S]>, S: AsRef<str>>(
        &mut self,
        metric: &Metric,
        series: impl IntoIterator<Item = (L, Value)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(metric.name, metric.help, None, metric.kind.into())?;
        for (values, value) in series {
            let values = values.as_ref().iter().map(AsRef::as_ref);
            let labels: Vec<(&str, &str)> =
                metric.labels.iter().map(|label| label.name).zip(values).collect();
            match labels.is_empty() {
                true => write(&mut family, value)?,
                false => write(&mut family.encode_family(&labels)?, value)?,
            }
        }
        Ok(())
    }

    /// A family of one series.
    pub(super) fn one(&mut self, metric: &Metric, value: Value) -> fmt::Result {
        self.family(metric, [([""; 0], value)])
    }
}

fn write(series: &mut MetricEncoder<'_>, value: Value) -> fmt::Result {
    match value {
        Value::Count(count) => series.encode_counter::<NoLabelSet, _, u64>(&count, None),
        Value::Sum(sum) => series.encode_counter::<NoLabelSet, _, u64>(&sum, None),
        Value::Level(level) => series.encode_gauge(&level),
        Value::Times(times) => {
            series.encode_histogram::<NoLabelSet>(times.sum(), times.count(), &times.buckets(), None)
        }
    }
}

/// How the page is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>
    Prometheus,
    /// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
    OpenMetrics,
}

impl Format {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Everything `source` has.
    pub(super) fn page(self, source: impl Collector) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(source));
        let mut page = String::new();
        text::encode(&mut page, &registry)?;
        Ok(match self {
            Self::OpenMetrics => page,
            Self::Prometheus => older(&page),
        })
    }
}

/// The older format has no end, and there a counter's `_total` belongs to its name.
fn older(page: &str) -> String {
    let mut out = String::with_capacity(page.len());
    for line in page.lines().filter(|line| *line != "# EOF") {
        let about = ["# HELP ", "# TYPE "]
            .into_iter()
            .find(|about| line.starts_with(about));
        let counter = about.and_then(|about| {
            let (name, rest) = line[about.len()..].split_once(' ')?;
            is_counter(name).then_some((about, name, rest))
        });
        match counter {
            Some((about, name, rest)) => out.extend([about, name, "_total ", rest, "\n"]),
            None => out.extend([line, "\n"]),
        }
    }
    out
}
