//! The conditions that follow from what one round found.

use jiff::Timestamp;

use super::reasons::*;
use super::round::Aim;
use super::status::{ConditionKind, Status};
use super::told::Round;
use super::unwell::unwell;
use crate::facts::Topic;
use crate::plan::{Listeners, Present};

pub(super) fn conditions(status: &mut Status, present: &Present, round: &Round<'_>) {
    use ConditionKind::{ApiServing, Configured, IdentityValid, ServicesHealthy, VpnJoined};
    let error = status
        .last_error
        .as_ref()
        .map(|error| error.message.clone())
        .unwrap_or_default();
    let held = status.rollout.held.clone();
    match (&round.live, &round.invalid) {
        (Some((_, _, Aim::Held)), None) if let Some(held) = held => {
            let message = format!(
                "the settings of generation {} are held since {} ({}); the configuration is applied when it changes, \
                 or by `dstack-vpc apply`",
                held.generation,
                held.since.strftime("%Y-%m-%d %H:%M:%S"),
                held.why
            );
            status.set(HELD, message);
        }
        (_, Some(_)) => status.set(INVALID, error.clone()),
        (Some((applied, _, Aim::File)), _) if applied.proven => {
            status.set(LIVE, format!("generation {} is live", applied.generation));
        }
        (Some((applied, _, Aim::File)), _) => {
            let message = format!(
                "generation {} is rendered and waits for supervisord",
                applied.generation
            );
            status.set(UNPROVEN, message);
        }
        _ if round.again => status.set(NOT_REPAIRED, error.clone()),
        _ => status.set(REFUSED, error.clone()),
    }

    match &round.seen.identity {
        Some(identity) if identity.not_after < std::time::SystemTime::now() => {
            status.set(
                EXPIRED,
                "the certificate has expired; a new one is being asked for",
            );
        }
        Some(identity) if identity.app_id.is_none() => {
            let message = "the certificate has no app id: the guest agent has no KMS, so no peer can know us";
            status.set(NO_APP_ID, message);
        }
        Some(identity) => {
            let until = Timestamp::try_from(identity.not_after).unwrap_or(Timestamp::MAX);
            status.set(VALID, format!("valid until {until}"));
        }
        None => {
            let message = round
                .seen
                .problem(Topic::Identity)
                .map_or("waiting for the guest agent", |problem| problem.message.as_str());
            status.set(WAITING, message);
        }
    }

    let unwell = unwell(present);
    let (reason, message) = if present.services.is_none() {
        (
            NO_SUPERVISOR,
            "supervisord is not running; `dstack-vpc up` starts it".to_owned(),
        )
    } else if let Some((_, plan, _)) = round
        .live
        .as_ref()
        .filter(|(_, plan, _)| !plan.missing.is_empty())
    {
        (MISSING, plan.missing.join("; "))
    } else {
        match unwell {
            None => (RUNNING, format!("{} programs run", status.services.len())),
            Some(why) => why,
        }
    };
    status.set(reason, message);

    node(status);
    api(status);

    let fails = |kind| status.condition(kind).is_some_and(|condition| !condition.holds());
    // A daemon that started anew may find that somebody else has its ports by now.
    let is_open = present.listeners != Listeners::Closed;
    let serves = present.generation.is_some() && !present.owed && is_open;
    let needed = [IdentityValid, ServicesHealthy, VpnJoined, ApiServing];
    let ready = serves && !needed.into_iter().any(fails);
    // A node stays in the VPN without its server: worth saying, but nothing that serves has ended.
    let lost = status
        .node
        .as_ref()
        .filter(|node| node.in_vpn())
        .and_then(|node| node.problem.clone());
    // What serves goes on serving with a configuration that is refused; with none that serves there is nothing to wait for.
    let order = match serves {
        true => [IdentityValid, ServicesHealthy, VpnJoined, ApiServing, Configured],
        false => [Configured, IdentityValid, ServicesHealthy, VpnJoined, ApiServing],
    };
    let wrong: Vec<String> = order
        .into_iter()
        .filter_map(|kind| {
            status
                .condition(kind)
                .filter(|c| !c.holds())
                .map(|c| c.message.clone())
        })
        .chain(
            round
                .seen
                .problems
                .iter()
                .map(|problem| format!("{}: {}", problem.what.name(), problem.message)),
        )
        .chain(lost)
        .collect();
    match ready {
        true => status.set(
            READY,
            format!("generation {} serves", present.generation.unwrap_or(0)),
        ),
        false => status.set(NOT_READY, wrong.first().cloned().unwrap_or_default()),
    }
    match wrong.is_empty() {
        true => status.set(AS_CONFIGURED, "everything is as it should be"),
        false => status.set(SEE_MESSAGE, wrong.join("\n")),
    }
    status.problems = wrong;
}

fn node(status: &mut Status) {
    use ConditionKind::VpnJoined;
    let Some(node) = status.node.clone() else {
        return status.unset(VpnJoined);
    };
    match (node.in_vpn(), node.address) {
        (true, Some(address)) => status.set(IN_VPN, format!("this node is {address}")),
        _ => {
            let step = node.step.words();
            let message = node
                .problem
                .map_or(step.to_owned(), |problem| format!("{step}: {problem}"));
            status.set(joining(node.step), message);
        }
    }
}

fn api(status: &mut Status) {
    use ConditionKind::ApiServing;
    match status.api.clone() {
        None => status.unset(ApiServing),
        Some(api) if api.problems.is_empty() => {
            status.set(API_SERVING, "nodes can register and be found");
        }
        Some(api) => status.set(API_NOT_SERVING, api.problems.join("; ")),
    }
}

/// Says at once that programs do not run: to bring them back takes a while, and ends with [`conditions`].
pub(super) fn not_running(status: &mut Status, present: &Present) {
    if let Some((reason, message)) = unwell(present) {
        status.set(reason, message.clone());
        status.set(NOT_READY, message.clone());
        status.set(SEE_MESSAGE, message.clone());
        status.problems = vec![message];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Observed;
    use crate::reconcile::status::LastError;

    #[test]
    fn only_an_edit_is_refused() {
        let reason = |again| {
            let seen = Observed::default();
            let mut round = Round::new("test", &seen, None);
            round.again = again;
            let mut status = Status::default();
            conditions(&mut status, &Present::default(), &round);
            let configured = status.condition(ConditionKind::Configured);
            configured
                .map(|configured| configured.reason.clone())
                .unwrap_or_default()
        };
        assert_eq!(
            (reason(false).as_str(), reason(true).as_str()),
            ("Refused", "NotRepaired")
        );
    }

    #[test]
    fn what_keeps_it_from_serving_is_told_before_what_is_only_refused() {
        let first = |generation| {
            let seen = Observed::default();
            let round = Round::new("test", &seen, Some("a bad file".to_owned()));
            let present = Present {
                generation,
                ..Present::default()
            };
            let at = Timestamp::UNIX_EPOCH;
            let message = "a bad file".to_owned();
            let mut status = Status {
                last_error: Some(LastError { message, at }),
                ..Status::default()
            };
            conditions(&mut status, &present, &round);
            assert_eq!(status.problems.len(), 3, "{status:#?}");
            let ready = status
                .condition(ConditionKind::Ready)
                .map(|ready| ready.message.clone());
            assert_eq!(ready.as_ref(), status.problems.first());
            status.problems.swap_remove(0)
        };
        assert_eq!(first(Some(1)), "waiting for the guest agent");
        assert_eq!(first(None), "a bad file", "nothing can come of the rest");
    }
}
