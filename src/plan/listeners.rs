//! Why the built-in listeners are given other settings, in words.

use crate::desired::ListenerSettings;

pub(super) fn listener_reason(before: &ListenerSettings, after: &ListenerSettings) -> String {
    let mut what = Vec::new();
    let (old, new) = (&before.mesh, &after.mesh);
    if old.client_listen != new.client_listen {
        what.push("mesh.client_listen moved");
    }
    if old.auth_listen != new.auth_listen {
        what.push("mesh.auth_listen moved");
    }
    match (&old.front, &new.front) {
        (None, Some(_)) => what.push("the daemon becomes the front"),
        (Some(_), None) => what.push("nginx becomes the front"),
        (Some(old), Some(new)) => {
            if old.http_listen != new.http_listen {
                what.push("mesh.http_listen moved");
            }
            match (old.https_listen, new.https_listen) {
                (old, new) if old == new => {}
                (None, Some(_)) => what.push("the certificate is there"),
                _ => what.push("mesh.https_listen moved"),
            }
            if old.routes != new.routes {
                what.push("backends changed");
            }
        }
        (None, None) => {}
    }
    if old.gateway != new.gateway {
        what.push("the gateway domain changed");
    }
    if old.agent != new.agent {
        what.push("the guest agent's address changed");
    }
    if old.backends != new.backends {
        what.push("backends or who may call them changed");
    }
    if old.tcp_backends != new.tcp_backends {
        what.push("TCP backends changed");
    }
    if old.forwards != new.forwards {
        what.push("forwards changed");
    }
    match (&before.api, &after.api) {
        (None, Some(_)) => what.push("the VPC API is wanted"),
        (Some(_), None) => what.push("the VPC API is no longer wanted"),
        (Some(old), Some(new)) if old.listen != new.listen => what.push("server.api_listen moved"),
        (Some(old), Some(new)) if old != new => what.push("settings of the VPC API changed"),
        _ => {}
    }
    match (before.metrics, after.metrics) {
        (None, Some(_)) => what.push("metrics are wanted"),
        (Some(_), None) => what.push("metrics are no longer wanted"),
        (Some(old), Some(new)) if old != new => what.push("metrics.listen moved"),
        _ => {}
    }
    match (&before.page, &after.page) {
        (None, Some(_)) => what.push("the status page is wanted"),
        (Some(_), None) => what.push("the status page is no longer wanted"),
        (Some(old), Some(new)) if old.listen != new.listen => what.push("status.listen moved"),
        (Some(old), Some(new)) if old != new => what.push("status.names changed"),
        _ => {}
    }
    if old.access_log != new.access_log {
        what.push("mesh.access_log changed");
    }
    if what.is_empty() {
        what.push("a time limit changed");
    }
    what.join(", ")
}
