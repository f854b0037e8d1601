//! A comparison: the same loads for all peers, who take turns.

use anyhow::Result;

use crate::load::{Load, Sample};
use crate::peers::{self, Peer};

/// How much is measured.
pub(crate) struct Pace {
    pub(crate) connections: &'static [usize],
    /// Of one run.
    pub(crate) seconds: u64,
    /// Runs of each load against each peer.
    pub(crate) rounds: usize,
}

impl Pace {
    pub(crate) const FULL: Self = Self {
        connections: &[1, 16, 64, 256],
        seconds: 4,
        rounds: 5,
    };
    pub(crate) const QUICK: Self = Self {
        connections: &[16, 64, 256],
        seconds: 2,
        rounds: 3,
    };
}

/// What was compared, and what came out.
pub(crate) struct Scene {
    pub(crate) title: &'static str,
    pub(crate) peers: Vec<Peer>,
    pub(crate) lines: Vec<Line>,
}

/// One load: a sample for each peer, in their order.
pub(crate) struct Line {
    pub(crate) load: String,
    pub(crate) samples: Vec<Sample>,
}

impl Scene {
    pub(crate) fn run(
        title: &'static str,
        peers: Vec<Peer>,
        loads: Vec<(String, Load)>,
        pace: &Pace,
    ) -> Result<Self> {
        let scratch = peers::directory()?;
        let mut lines = Vec::new();
        for (name, mut load) in loads {
            eprintln!("bench: {title}, {name}");
            // Everybody gets to open its connections first.
            load.seconds = 1;
            for peer in &peers {
                load.run(peer, scratch.path())?;
            }
            load.seconds = pace.seconds;
            let mut runs = vec![Vec::new(); peers.len()];
            for round in 0..pace.rounds {
                for turn in 0..peers.len() {
                    let whose = (round + turn) % peers.len();
                    runs[whose].push(load.run(&peers[whose], scratch.path())?);
                }
            }
            lines.push(Line {
                load: name,
                samples: runs.iter().map(|runs| Sample::median(runs)).collect(),
            });
        }
        Ok(Self { title, peers, lines })
    }
}
