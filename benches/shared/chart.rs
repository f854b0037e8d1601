//! Figures as one picture of bars, for light and dark pages.

use std::fmt::Write as _;

const PANEL: (f64, f64) = (420.0, 240.0);
/// Around the bars of a panel: left, top, below.
const LEFT: f64 = 48.0;
const TOP: f64 = 44.0;
const BELOW: f64 = 28.0;
const LEGEND: f64 = 30.0;
/// Every label can be read on white and on black, and the bars are told apart without colour by their order.
const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#57606a}.title{font-weight:600;fill:#1f2328}.value{font-size:10px}\
.grid{stroke:#d0d7de}.s0{fill:#0969da}.s1{fill:#2da44e}.s2{fill:#bf8700}.s3{fill:#8250df}\
@media(prefers-color-scheme:dark){text{fill:#9198a1}.title{fill:#f0f6fc}.grid{stroke:#3d444d}\
.s0{fill:#4493f8}.s1{fill:#3fb950}.s2{fill:#d29922}.s3{fill:#ab7df8}}";

/// Groups of bars, with a name below each.
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    /// A value for each of the series; what is no number is left out.
    pub(crate) groups: Vec<(String, Vec<f64>)>,
}

/// SVG. `series` names the bars of each group, in their order.
pub(crate) fn of(title: &str, series: &[&str], panels: &[Panel]) -> String {
    let columns = 2;
    let rows = panels.len().div_ceil(columns);
    let (width, height) = (PANEL.0 * columns as f64, PANEL.1 * rows as f64 + LEGEND);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\">\
         <title>{title}</title><style>{STYLE}</style>\n"
    );
    for (at, name) in series.iter().enumerate() {
        let x = LEFT + 110.0 * at as f64;
        let _ = writeln!(
            svg,
            "<rect class=\"s{at}\" x=\"{x}\" y=\"10\" width=\"12\" height=\"12\" rx=\"2\"/>\
             <text x=\"{}\" y=\"20\">{name}</text>",
            x + 18.0,
        );
    }
    for (at, panel) in panels.iter().enumerate() {
        let (x, y) = (
            (at % columns) as f64 * PANEL.0,
            (at / columns) as f64 * PANEL.1 + LEGEND,
        );
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
        panel.draw(&mut svg);
        svg += "</g>\n";
    }
    svg + "</svg>\n"
}

impl Panel {
    fn draw(&self, svg: &mut String) {
        let bars = self
            .groups
            .iter()
            .map(|(_, values)| values.len())
            .max()
            .unwrap_or(1);
        let values = self.groups.iter().flat_map(|(_, values)| values.iter().copied());
        let top = round_up(values.filter(|value| value.is_finite()).fold(0.0, f64::max));
        let (width, height) = (PANEL.0 - LEFT - 12.0, PANEL.1 - TOP - BELOW);
        let y = |value: f64| TOP + height * (1.0 - value / top);
        let _ = writeln!(
            svg,
            "<text class=\"title\" x=\"{LEFT}\" y=\"22\">{}</text>",
            self.title
        );
        for quarter in 0..=4 {
            let value = top * f64::from(quarter) / 4.0;
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT + width,
                LEFT - 6.0,
                y(value) + 4.0,
                short(value),
                y = y(value),
            );
        }
        let group = width / self.groups.len() as f64;
        let bar = (group * 0.8 / bars as f64).min(36.0);
        for (at, (name, values)) in self.groups.iter().enumerate() {
            let middle = LEFT + group * (at as f64 + 0.5);
            for (series, value) in values
                .iter()
                .copied()
                .enumerate()
                .filter(|(_, value)| value.is_finite())
            {
                let x = middle + bar * (series as f64 - bars as f64 / 2.0);
                let _ = writeln!(
                    svg,
                    "<rect class=\"s{series}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>\
                     <text class=\"value\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                    x + 1.0,
                    y(value),
                    bar - 2.0,
                    TOP + height - y(value),
                    x + bar / 2.0,
                    y(value) - 3.0,
                    short(value),
                );
            }
            let _ = writeln!(
                svg,
                "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                PANEL.1 - 10.0,
                name
            );
        }
    }
}

/// The next of 1, 2, 4, 6, 8 times a power of ten: quarters of it are short to write.
fn round_up(value: f64) -> f64 {
    let unit = 10f64.powf(value.max(f64::MIN_POSITIVE).log10().floor());
    let steps = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0].map(|step| step * unit);
    steps.into_iter().find(|step| *step >= value).unwrap_or(value)
}

fn short(value: f64) -> String {
    match value {
        ..100.0 => format!("{value:.1}").trim_end_matches(".0").to_owned(),
        _ => format!("{value:.0}"),
    }
}
