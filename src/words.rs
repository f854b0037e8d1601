//! How things are said to people: spans of time, sizes, and what others said.

use std::error::Error;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

/// What of somebody else's words goes into a message.
const LONGEST_QUOTE: usize = 300;

/// In its largest unit: `12s`, `5 min`, `3 h`, `4 days`.
pub fn span(span: Duration) -> String {
    match span.as_secs() {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// From `then` to `now`; nothing when `then` is still to come.
pub fn since(then: Timestamp, now: Timestamp) -> String {
    span(Duration::try_from(now.duration_since(then)).unwrap_or_default())
}

/// In its largest unit: `12 bytes`, `3.4 KiB`.
pub fn bytes(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(bits, _)| bytes >> bits > 0) {
        Some((bits, unit)) => format!("{:.1} {unit}", bytes as f64 / (1_u64 << bits) as f64),
        None => format!("{bytes} bytes"),
    }
}

/// Somebody else's words as part of a sentence: one line, short, and nothing that a terminal or a log would obey.
pub fn quoted(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars()
        .filter(|c| !c.is_control())
        .take(LONGEST_QUOTE)
        .collect()
}

/// What an HTTP service said of a failure: the sentence of `{"error": …}`, else the start of what there is.
pub fn told(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Answer {
        error: String,
    }
    let text = match serde_json::from_slice::<Answer>(body) {
        Ok(answer) => answer.error,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    or_nothing(quoted(&text))
}

/// What happened in the end: hyper's own words stop at `client error (…)`.
pub fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Says so where there is nothing to quote.
pub fn or_nothing(quoted: String) -> String {
    match quoted.is_empty() {
        true => "it did not say why".to_owned(),
        false => quoted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_becomes_one_short_line_without_orders_to_a_terminal() {
        assert_eq!(quoted(" a\n\n  b\tc\u{1b}[31m\u{9b}x\0\n"), "a b c[31mx");
        assert_eq!(quoted(&"x".repeat(5000)).len(), LONGEST_QUOTE);
        assert_eq!(told(br#"{"error":"no\nroom"}"#), "no room");
        assert_eq!(told(b"Bad Gateway\r\n"), "Bad Gateway");
        assert_eq!(told(b" \x1b "), "it did not say why");
    }

    #[test]
    fn spans_and_sizes_are_said_in_their_largest_unit() {
        for (seconds, words) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2 min"),
            (7199, "119 min"),
            (7200, "2 h"),
            (172_800, "2 days"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), words);
        }
        for (size, words) in [(1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")] {
            assert_eq!(bytes(size), words);
        }
        let now = Timestamp::now();
        assert_eq!(since(now + Duration::from_secs(5), now), "0s");
    }
}
