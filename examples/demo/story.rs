//! How the demo is told: coloured on a terminal, plain in a pipe.

use anstream::println;
use anstyle::{AnsiColor, Style};

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const CYAN: Style = AnsiColor::Cyan.on_default();
const GREEN: Style = AnsiColor::Green.on_default();

/// A new step.
pub(crate) fn chapter(number: usize, title: &str) {
    println!("\n{BOLD}{number}. {title}{BOLD:#}");
}

/// A sentence of the story.
pub(crate) fn say(text: &str) {
    println!("   {text}");
}

/// Detail that can be skipped.
pub(crate) fn aside(text: &str) {
    println!("   {DIM}{text}{DIM:#}");
}

/// Something typed, sent or answered, word for word.
pub(crate) fn quote(text: &str) {
    println!("   {CYAN}| {text}{CYAN:#}");
}

/// What a step has shown.
pub(crate) fn good(text: &str) {
    println!("   {GREEN}\u{2713} {text}{GREEN:#}");
}
