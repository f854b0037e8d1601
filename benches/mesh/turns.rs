//! Figures of everybody who took turns, where no request is sent by wrk.

use anyhow::Result;

use crate::load::median;
use crate::shared::targets::{self, Target};

/// What came out, as Markdown, and what was aimed at.
pub(crate) struct Page {
    pub(crate) text: String,
    pub(crate) targets: Vec<Target>,
}

impl Page {
    pub(crate) fn new(title: &str, about: &str, heads: &[&str]) -> Self {
        Self {
            text: format!("## {title}\n\n{about}\n\n{}", targets::heads(heads)),
            targets: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        targets::row(&mut self.text, cells);
    }
}

/// A figure of each peer in each round.
pub(crate) struct Turns<F>(Vec<Vec<F>>);

impl<F> Turns<F> {
    /// Lets each of `peers` have its turn in each round, never in the same order.
    pub(crate) fn take<P>(rounds: usize, peers: &[P], once: impl Fn(&P) -> Result<F>) -> Result<Self> {
        let mut all = Vec::new();
        for round in 0..rounds {
            let mut figures = Vec::new();
            for turn in 0..peers.len() {
                let whose = (round + turn) % peers.len();
                figures.push((whose, once(&peers[whose])?));
            }
            figures.sort_by_key(|(whose, _)| *whose);
            all.push(figures.into_iter().map(|(_, figure)| figure).collect());
        }
        Ok(Self(all))
    }

    /// The median of all rounds.
    pub(crate) fn of(&self, peer: usize, figure: impl Fn(&F) -> f64) -> f64 {
        median(self.0.iter().map(|round| figure(&round[peer])))
    }

    /// The median of the ratios within each round, for what else the computer did then is in both.
    pub(crate) fn ratio(&self, peer: usize, against: usize, figure: impl Fn(&F) -> f64) -> f64 {
        median(
            self.0
                .iter()
                .map(|round| figure(&round[peer]) / figure(&round[against])),
        )
    }
}
