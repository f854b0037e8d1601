//! Times, and how they grow.

use std::time::Duration;

use crate::shared::targets;

/// How long one thing took, each time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Times(Vec<f64>);

impl Times {
    pub(crate) fn add(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1e3);
        self.0.sort_by(f64::total_cmp);
    }

    /// In milliseconds, as are the others; not a number when nothing was measured.
    pub(crate) fn median(&self) -> f64 {
        self.at(self.0.len() / 2)
    }

    pub(crate) fn p95(&self) -> f64 {
        self.at(self.0.len() * 95 / 100)
    }

    pub(crate) fn most(&self) -> f64 {
        self.at(self.0.len().saturating_sub(1))
    }

    fn at(&self, place: usize) -> f64 {
        self.0.get(place).copied().unwrap_or(f64::NAN)
    }

    /// Median, 95th percentile, most, and how many.
    pub(crate) fn cells(&self) -> [String; 4] {
        [
            ms(self.median()),
            ms(self.p95()),
            ms(self.most()),
            self.0.len().to_string(),
        ]
    }
}

/// Milliseconds for people.
pub(crate) fn ms(value: f64) -> String {
    match value {
        value if value.is_nan() => "–".to_owned(),
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// The exponent of growth between two points: 1 is linear, 2 quadratic.
pub(crate) fn exponent((few, fast): (usize, f64), (many, slow): (usize, f64)) -> f64 {
    (slow / fast).ln() / (many as f64 / few as f64).ln()
}

/// As Markdown.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = targets::heads(heads);
    for cells in rows {
        targets::row(&mut text, cells);
    }
    text
}
