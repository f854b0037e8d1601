//! How spans of time are said to people.

use std::time::Duration;

use jiff::Timestamp;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_said_in_their_largest_unit() {
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
        let now = Timestamp::now();
        assert_eq!(since(now + Duration::from_secs(5), now), "0s");
    }
}
