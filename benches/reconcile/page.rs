//! What came out, as a page with a picture.

use anyhow::Result;

use crate::measure::table;
use crate::shared::chart::{self, Panel};
use crate::shared::targets::{self, Target};
use crate::shared::{host, parts};

/// Whose bars the picture has, in this order.
pub(crate) const SERIES: [&str; 4] = ["dstack-vpc", "nginx alone", "consul-template", "confd"];

/// Filled by one part after the other.
#[derive(Default)]
pub(crate) struct Page {
    sections: Vec<String>,
    targets: Vec<Target>,
    pub(crate) panels: Vec<Panel>,
}

impl Page {
    /// Prints it, too, so that a long run can be watched.
    pub(crate) fn section(&mut self, title: &str, about: &str, heads: &[&str], rows: &[Vec<String>]) {
        let text = format!("## {title}\n\n{about}\n\n{}", table(heads, rows));
        println!("{text}");
        self.sections.push(text);
    }

    pub(crate) fn target(&mut self, target: Target) {
        self.targets.push(target);
    }

    /// Prints which targets were met.
    pub(crate) fn judge(&self) {
        println!("{}", targets::table(&self.targets));
    }

    /// Writes the page, and its picture where there is something to be seen.
    pub(crate) fn write(&self, whole: bool) -> Result<()> {
        let picture =
            (!self.panels.is_empty()).then(|| chart::of("What an edit costs", &SERIES, &self.panels));
        let shown = "\n![Edit to live beside consul-template and confd](benchmarks-reconcile.svg)\n";
        let page = format!(
            "{}\n## Targets\n\n{}{}\n{}",
            introduction(),
            targets::table(&self.targets),
            picture.as_ref().map_or("", |_| shown),
            self.sections.join("\n")
        );
        parts::publish("benchmarks-reconcile", whole, &page, picture.as_deref())
    }
}

fn introduction() -> String {
    format!(
        "# What a reconcile costs

Written by `make bench-reconcile`; edits are lost with the next run. {}, nginx {}, supervisord {}, consul-template {}, confd {}. \
The harness, which asks again and again whether an edit is live, shares the processors.

* *dstack-vpc* is what ships: the `dist` profile (fat LTO), started with `dstack-vpc up` in a temporary directory: real supervisord, \
real nginx, the `dev-agent`. Its settings are the defaults, but for the debounce where that is said.
* An edit is measured from just before the new file is written to the first call that the new settings decide, made through nginx with mTLS.
* *nginx alone* is the very nginx.conf that dstack-vpc rendered, on other ports, in an nginx that nobody manages: its file is written and \
`nginx -s reload` is run. What it takes, nobody who reloads nginx can be faster than.
",
        host::computer(),
        host::version("nginx", "-v"),
        host::version("supervisord", "--version"),
        host::version("consul-template", "-version"),
        host::version("confd", "-version"),
    )
}
