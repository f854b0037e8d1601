//! The apps at both ends: those behind the backends of this machine, and those that its forwards lead to.

use std::time::Duration;

use futures_util::future::join_all;

use super::{Finding, Patient, web};
use crate::mesh::reach;

/// For one of them.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was seen.
pub(super) struct Apps {
    /// Each backend with the upstreams that do not answer, and how many it has.
    backends: Vec<(String, Vec<String>, usize)>,
    /// Each forward, and where it is reached, with why it leads nowhere.
    forwards: Vec<(String, Result<(), String>)>,
}

/// Connects to each of them and sends nothing.
pub(super) async fn ask(patient: &Patient<'_>) -> Apps {
    let backends = patient.spec.backends.iter().map(async |backend| {
        let asking = backend.upstream.iter().map(async |at| {
            let why = match tokio::time::timeout(PATIENCE, web::connect(&at.host.to_string(), at.port)).await
            {
                Ok(Ok(_)) => return None,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {}s", PATIENCE.as_secs()),
            };
            Some(format!("{at}: {why}"))
        });
        let down = join_all(asking).await.into_iter().flatten().collect();
        (backend.name.to_string(), down, backend.upstream.len())
    });
    let gateway = patient.seen.facts.gateway.as_ref().map(|fact| &fact.value);
    // Without these the forwards cannot be tried, and that is said already.
    let ready = patient.seen.identity.as_deref().zip(gateway);
    let forwards = patient.spec.forwards.iter().filter_map(|it| Some((it, ready?)));
    let forwards = forwards.map(async |(it, (identity, gateway))| {
        let target = (it.target_app, it.target_instance, it.target_port);
        let told = format!(
            "the forward \"{}\" ({} to app {}, port {})",
            it.name, it.listen, it.target_app, it.target_port
        );
        (told, reach(identity, gateway, target, PATIENCE).await)
    });
    let (backends, forwards) = tokio::join!(join_all(backends), join_all(forwards));
    Apps { backends, forwards }
}

pub(super) fn findings(apps: Apps) -> Vec<Finding> {
    let backends = apps.backends.into_iter().map(|(name, down, all)| {
        if down.is_empty() {
            return Finding::ok(
                "backend",
                format!("the app behind the backend \"{name}\" takes connections"),
            );
        }
        let why = match down.len() < all {
            true => "Its other upstreams take over; the load is theirs.",
            false => {
                "Peers that call it get 502 `backend_unreachable`, or are cut off, until it listens there."
            }
        };
        Finding::warning(
            "backend",
            format!(
                "behind the backend \"{name}\" nobody answers at {}",
                down.join("; ")
            ),
        )
        .why(why)
        .mend("start that app, or correct the backend's upstream (MESH_BACKEND); where it is said:")
        .run("dstack-vpc explain backends")
    });
    let forwards = apps.forwards.into_iter().map(|(name, reached)| match reached {
        Ok(()) => Finding::ok("forward", format!("{name} leads to its app")),
        Err(why) => Finding::error("forward", format!("{name} leads nowhere: {why}"))
            .why("Programs that connect to it are cut off.")
            .mend("is that app deployed, and does it have a TCP backend on that port which lets this app in?")
            .run("dstack-vpc doctor   # on a machine of that app"),
    });
    backends.chain(forwards).collect()
}
