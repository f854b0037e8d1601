//! This machine's clock, compared with those of others.

use std::time::{Duration, SystemTime};

use super::Finding;
use super::web::Date;
use crate::identity;
use crate::paths::StateDir;
use crate::words::span;

/// Answers travel, and the header counts whole seconds.
const NOTICEABLE: Duration = Duration::from_secs(60);

/// Certificates are dated back by one hour: beyond that, fresh ones are refused.
const HARMFUL: Duration = Duration::from_secs(3600);

pub(super) fn findings(state: &StateDir, dates: impl Iterator<Item = Date>) -> Vec<Finding> {
    let stored = identity::load(state, None, SystemTime::now()).ok().flatten();
    judge(
        SystemTime::now(),
        stored.map(|stored| stored.obtained),
        dates.collect(),
    )
}

/// `obtained`: when a certificate was stored here, by this machine's own clock.
fn judge(now: SystemTime, obtained: Option<SystemTime>, dates: Vec<Date>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(ahead) = obtained
        .and_then(|at| at.duration_since(now).ok())
        .filter(|ahead| *ahead > NOTICEABLE)
    {
        findings.push(advised(Finding::error(
            "clock",
            format!(
                "the clock has gone back by at least {}: the stored certificate is from the future",
                span(ahead)
            ),
        )));
    }
    let looked_at = dates.len();
    let differing: Vec<_> = dates
        .into_iter()
        .filter(|date| distance(date) > NOTICEABLE)
        .collect();
    for date in &differing {
        let behind = date.theirs > date.ours;
        let what = format!(
            "the clock is {} {} that of {}",
            span(distance(date)),
            if behind { "behind" } else { "ahead of" },
            date.source
        );
        // One of several that differ is probably wrong itself.
        let most = differing.len() * 2 > looked_at;
        let harmful = distance(date) > HARMFUL && most;
        findings.push(advised(if harmful {
            Finding::error("clock", what)
        } else {
            Finding::warning("clock", what)
        }));
    }
    if findings.is_empty() {
        findings.push(match looked_at {
            0 => Finding::ok("clock", "nobody answered with whom the clock could be compared"),
            _ => Finding::ok("clock", "the clock agrees with those that answered"),
        });
    }
    findings
}

fn advised(finding: Finding) -> Finding {
    finding
        .why(
            "Certificates are valid from one hour before they are issued: machines whose clocks differ by more refuse each \
             other, as `expired` or `not_yet_valid`.",
        )
        .run("date -u   # here and on the other machine")
        .mend("a CVM takes its time from the host: mend that one")
}

fn distance(date: &Date) -> Duration {
    let ahead = date.theirs.duration_since(date.ours);
    ahead.unwrap_or_else(|behind| behind.duration())
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    fn date(seconds_ahead: i64) -> Date {
        let ours = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let apart = Duration::from_secs(seconds_ahead.unsigned_abs());
        Date {
            theirs: if seconds_ahead > 0 {
                ours + apart
            } else {
                ours - apart
            },
            ours,
            source: "https://gateway".to_owned(),
        }
    }

    #[test]
    fn a_wrong_clock_is_told_with_how_much_and_the_majority_is_believed() {
        let judged = |dates: &[i64]| {
            let dates: Vec<_> = dates.iter().map(|seconds| date(*seconds)).collect();
            let findings = judge(SystemTime::now(), None, dates);
            findings
                .into_iter()
                .map(|f| (f.severity, f.what))
                .collect::<Vec<_>>()
        };
        assert_eq!(judged(&[1, -2, 0])[0].0, Severity::Ok);
        assert_eq!(judged(&[])[0].0, Severity::Ok);
        let behind = "the clock is 3 h behind that of https://gateway".to_owned();
        assert_eq!(judged(&[3 * 3600]), [(Severity::Error, behind.clone())]);
        assert_eq!(judged(&[3 * 3600, 0, 1]), [(Severity::Warning, behind)]);
        let ahead = "the clock is 10 min ahead of that of https://gateway".to_owned();
        assert_eq!(judged(&[-600]), [(Severity::Warning, ahead)]);

        let future = SystemTime::now() + Duration::from_secs(86_400 * 3);
        let findings = judge(SystemTime::now(), Some(future), Vec::new());
        assert_eq!(findings[0].severity, Severity::Error);
        assert!(
            findings[0].what.contains("gone back by at least 3 days") || findings[0].what.contains("2 days")
        );
    }
}
