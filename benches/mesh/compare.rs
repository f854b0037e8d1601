//! A comparison: the same loads for all peers, who take turns.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::load::{Load, Sample, median};
use crate::peers::{self, Answers, Peer};

/// How much is measured.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) full: bool,
    /// Connections at once.
    pub(crate) connections: &'static [usize],
    /// Before the first run, for opening connections.
    pub(crate) warm_up: Duration,
    /// Of one run.
    pub(crate) run: Duration,
    /// Runs of each load against each peer.
    pub(crate) rounds: usize,
}

impl Pace {
    pub(crate) const FULL: Self = Self {
        full: true,
        connections: &[1, 16, 64, 256],
        warm_up: Duration::from_secs(1),
        run: Duration::from_secs(4),
        rounds: 5,
    };
    pub(crate) const QUICK: Self = Self {
        full: false,
        connections: &[16, 64, 256],
        warm_up: Duration::from_secs(1),
        run: Duration::from_secs(2),
        rounds: 3,
    };

    /// Not the headline: fewer connections, and fewer runs where there are many.
    pub(crate) fn aside(self) -> Self {
        Self {
            connections: if self.full { &[16, 64, 256] } else { &[64] },
            rounds: 3,
            ..self
        }
    }
}

/// What is to be compared.
pub(crate) struct Scene<'a> {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    /// In a sentence or two.
    pub(crate) about: &'static str,
    pub(crate) peers: Vec<Peer>,
    pub(crate) loads: Vec<(String, Load)>,
    /// Who counts the connections that are made.
    pub(crate) counter: Option<&'a Answers>,
}

/// What came out.
pub(crate) struct Comparison {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    /// In a sentence or two.
    pub(crate) about: &'static str,
    pub(crate) peers: Vec<Peer>,
    pub(crate) lines: Vec<Line>,
    pub(crate) notes: Vec<String>,
}

/// One load.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) load: Load,
    /// For each peer, in their order, a sample for each round.
    runs: Vec<Vec<Sample>>,
}

impl Scene<'_> {
    pub(crate) fn run(self, pace: Pace) -> Result<Comparison> {
        let scratch = peers::directory()?;
        let mut lines = Vec::new();
        for (name, load) in self.loads {
            eprintln!("bench: {}, {name}", self.title);
            let once = |peer: &Peer, long| load.run(peer, long, self.counter, scratch.path());
            for peer in &self.peers {
                once(peer, pace.warm_up)?;
            }
            let mut runs = vec![Vec::new(); self.peers.len()];
            for round in 0..pace.rounds {
                for turn in 0..self.peers.len() {
                    let whose = (round + turn) % self.peers.len();
                    let peer = &self.peers[whose];
                    let sample = once(peer, pace.run)?;
                    sample.check().with_context(|| format!("{name}: {}", peer.name))?;
                    runs[whose].push(sample);
                }
            }
            lines.push(Line { name, load, runs });
        }
        Ok(Comparison {
            id: self.id,
            title: self.title,
            about: self.about,
            peers: self.peers,
            lines,
            notes: Vec::new(),
        })
    }
}

impl Comparison {
    /// The peer of that name.
    pub(crate) fn place(&self, name: &str) -> Option<usize> {
        self.peers.iter().position(|peer| peer.name == name)
    }

    /// Whom everybody is compared with.
    pub(crate) fn reference(&self) -> usize {
        self.place("nginx").unwrap_or(self.peers.len() - 1)
    }
}

impl Line {
    /// The median of all rounds.
    pub(crate) fn of(&self, peer: usize, figure: impl Fn(&Sample) -> f64) -> f64 {
        median(self.runs[peer].iter().map(figure))
    }

    /// What one peer has of another's figure.
    pub(crate) fn ratio(&self, peer: usize, against: usize, figure: impl Fn(&Sample) -> f64) -> f64 {
        self.in_rounds(|of| figure(of(peer)) / figure(of(against)))
    }

    /// The median of what follows from the samples of one round. They were taken after each other, so that what else
    /// the computer did then is in all of them: hence the median of quotients, not the quotient of medians.
    pub(crate) fn in_rounds<'s>(&'s self, figure: impl Fn(&dyn Fn(usize) -> &'s Sample) -> f64) -> f64 {
        let rounds = 0..self.runs[0].len();
        median(rounds.map(|round| figure(&|peer| &self.runs[peer][round])))
    }

    /// A failure is not for a median to hide.
    pub(crate) fn errors(&self, peer: usize) -> u64 {
        self.runs[peer].iter().map(|sample| sample.errors).sum()
    }
}
