//! Programs that do not run: why, and what to do about it.

use super::reasons::{FAILING, GIVEN_UP, NOT_RUNNING, NOT_SERVING, Reason, STOPPED_BY_HAND};
use crate::plan::{Present, Service, ServiceState};
use crate::supervisor::State;

/// In one word and in sentences, the worst first; `None`: all run.
pub(super) fn unwell(present: &Present) -> Option<(Reason, String)> {
    let services = present.services.iter().flatten();
    let down = services.filter(|(_, service)| service.state != ServiceState::Up);
    let mut all: Vec<_> = down.map(|(name, service)| say(name, service)).collect();
    all.sort_by_key(|(order, ..)| *order);
    let (_, reason, _) = *all.first()?;
    let words: Vec<_> = all.into_iter().map(|(.., words)| words).collect();
    Some((reason, words.join("; ")))
}

fn say(name: &str, service: &Service) -> (u8, Reason, String) {
    let detail = &service.detail;
    match (service.state, service.process) {
        (ServiceState::StoppedByOperator, _) => {
            let words =
                format!("{name} was stopped by hand and stays so; `supervisorctl start {name}` ends that");
            (3, STOPPED_BY_HAND, words)
        }
        (_, State::Fatal) => {
            let words = format!(
                "{name} does not start, and supervisord has given it up ({detail}): its log says why, and \
                 `dstack-vpc doctor` may know the cause. It is tried again now and then, and by `dstack-vpc apply`"
            );
            (0, GIVEN_UP, words)
        }
        (_, State::Backoff) => {
            let words = format!(
                "{name} ends as soon as it is started ({detail}) and is tried again and again: its log says why, and \
                 `dstack-vpc doctor` may know the cause"
            );
            (1, FAILING, words)
        }
        (_, State::Running | State::Starting) => (1, NOT_SERVING, format!("{name} does not serve: {detail}")),
        _ => (2, NOT_RUNNING, format!("{name} does not run yet ({detail})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first() {
        let service = |process| {
            let state = match process {
                State::Running => ServiceState::Up,
                State::Stopped => ServiceState::StoppedByOperator,
                _ => ServiceState::Down,
            };
            let detail = "Exited too quickly".to_owned();
            Service {
                state,
                process,
                pid: None,
                started: None,
                detail,
            }
        };
        let all = |programs: &[(&str, State)]| {
            let services = programs
                .iter()
                .map(|(name, state)| ((*name).to_owned(), service(*state)));
            unwell(&Present {
                services: Some(services.collect()),
                ..Present::default()
            })
        };
        assert!(all(&[("nginx", State::Running)]).is_none());
        let (reason, words) = all(&[("headscale", State::Stopped), ("nginx", State::Fatal)]).unwrap();
        assert_eq!(reason.word, "GivenUp");
        assert!(words.starts_with("nginx does not start"), "{words}");
        assert!(words.contains("`supervisorctl start headscale`"), "{words}");
        assert_eq!(all(&[("nginx", State::Backoff)]).unwrap().0.word, "Failing");
        assert_eq!(all(&[("nginx", State::Exited)]).unwrap().0.word, "NotRunning");
    }
}
