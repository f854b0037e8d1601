//! All comparisons on one page.

use anyhow::Result;

use crate::compare::{Comparison, Pace};
use crate::shared::{host, parts};
use crate::stage::OURS;
use crate::turns::Page;
use crate::{chart, table, targets};

/// What was compared so far.
#[derive(Default)]
pub(crate) struct Report {
    comparisons: Vec<Comparison>,
    /// Bytes of each peer of the crowd before it came.
    idle: Vec<u64>,
    pages: Vec<Page>,
}

impl Report {
    /// Prints it, too, so that a long run can be watched.
    pub(crate) fn add(&mut self, comparison: Comparison) {
        println!("{}", table::of(&comparison));
        self.comparisons.push(comparison);
    }

    pub(crate) fn add_crowd(&mut self, mut comparison: Comparison, idle: Vec<u64>) {
        let each = comparison.peers.iter().zip(&idle);
        let each = each.map(|(peer, idle)| format!("{} {} MiB", peer.name, table::mib(*idle as f64)));
        let note = format!("Resident before: {}.", each.collect::<Vec<_>>().join(", "));
        comparison.notes.push(note);
        self.idle = idle;
        self.add(comparison);
    }

    pub(crate) fn add_page(&mut self, page: Page) {
        println!("{}", page.text);
        self.pages.push(page);
    }

    /// Prints which targets were met.
    pub(crate) fn judge(&self) {
        println!("{}", self.targets());
    }

    fn targets(&self) -> String {
        let crowd = self
            .comparisons
            .iter()
            .find(|comparison| comparison.id == "crowd");
        let ours = crowd.and_then(|crowd| crowd.place(OURS));
        let idle = ours.and_then(|ours| self.idle.get(ours).copied());
        let pages = self.pages.iter().flat_map(|page| &page.targets);
        let compared = targets::of(&self.comparisons, idle);
        crate::shared::targets::table(compared.iter().chain(pages))
    }

    /// Writes the page and its picture.
    pub(crate) fn write(&self, pace: Pace, whole: bool) -> Result<()> {
        let pages = self.pages.iter().map(|page| page.text.clone());
        let tables: Vec<_> = self.comparisons.iter().map(table::of).chain(pages).collect();
        let page = format!(
            "{}\n## Targets\n\n{}\n![CPU time, throughput and latency beside nginx and haproxy](benchmarks.svg)\n\n{}",
            introduction(pace),
            self.targets(),
            tables.join("\n")
        );
        let picture = chart::of(&self.comparisons);
        parts::publish("benchmarks", whole, &page, Some(&picture))
    }
}

fn introduction(pace: Pace) -> String {
    format!(
        "# Benchmarks

Written by `make bench`; edits are lost with the next run. {}, nginx {}, haproxy {}. The load (wrk), \
the peer and the server behind it share them.

* *dstack-vpc* is what ships: the `dist` profile (fat LTO), started with `dstack-vpc up` and its default settings.
* *nginx* and *haproxy* do the same outbound hop: plain HTTP/1.1 in, TLS 1.3 with client certificates out, the server's \
chain verified, connections kept on both sides. Their configurations are in `benches/mesh/conf`.
* All use the same certificates, shaped as a KMS makes them, and the same server: an nginx that answers with 512 bytes.
* Everybody takes turns, {} runs of {} s each; a figure is the median of its runs, a ratio the median of the ratios within \
each round. CPU time is user and system time of all processes of the peer, from `/proc`, over the requests of that run; of \
all figures it depends least on what else the computer does.
",
        host::computer(),
        host::version("nginx", "-v"),
        host::version("haproxy", "-v"),
        pace.rounds,
        pace.run.as_secs(),
    )
}
