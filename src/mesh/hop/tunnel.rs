//! After `101 Switching Protocols`: bytes both ways, until either side has enough.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header;
use hyper::upgrade::OnUpgrade;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use super::failure::Far;
use super::link::Link;
use super::{Failure, headers};
use crate::mesh::access::Handover;
use crate::mesh::listener::Life;
use crate::mesh::reply::{self, Body};

/// Passes a 101 on and joins the two connections. The tunnel ends with its listener's drain.
pub(in crate::mesh) fn switch(
    response: Response<Incoming>,
    link: Link,
    client: OnUpgrade,
    life: &Arc<Life>,
    hop: Far,
) -> Result<Response<Body>, Failure> {
    let (mut parts, body) = response.into_parts();
    let protocol = parts.headers.get(header::UPGRADE).cloned();
    let protocol = protocol.ok_or(Failure::BadResponse { hop })?;
    headers::strip_hop_by_hop(&mut parts.headers);
    headers::set_upgrade(&mut parts.headers, protocol);
    let server = hyper::upgrade::on(Response::from_parts(parts.clone(), body));

    let log = Handover::default();
    let mut answer = reply::empty(StatusCode::SWITCHING_PROTOCOLS);
    *answer.headers_mut() = parts.headers;
    answer.extensions_mut().insert(log.clone());
    let cut = life.cut.clone();
    life.tasks.spawn_local(async move {
        let tunnel = async {
            let server = link.upgraded(server).await?;
            let client = client.await?;
            // How a tunnel ends is the affair of the two ends.
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            if let Ok(bytes) = copy_bidirectional(&mut client, &mut server).await {
                log.ended(bytes);
            }
            Ok::<_, hyper::Error>(())
        };
        tokio::select! {
            ended = tunnel => drop(ended.inspect_err(|error| tracing::debug!(%error, "an upgrade failed"))),
            () = cut.cancelled() => {}
        }
    });
    Ok(answer)
}
