//! What tailscaled and a VPC server answer to a node, and what the node kept.

use super::credentials::Membership;
use super::server::{self, Welcome};
use super::view::View;
use super::{NodeStatus, Path};

/// `data` is the status, and after a line of `---` the preferences. What a person sees of it is one line a name.
pub(crate) fn tailscale_answers(data: &[u8]) {
    let end = data.windows(5).position(|window| window == b"\n---\n");
    let (status, prefs) = end.map_or((data, &b"{}"[..]), |end| (&data[..end], &data[end + 5..]));
    let Ok(view) = View::read(status.to_vec().into(), prefs) else {
        return;
    };
    assert_eq!(*view.json, *status);
    let is_line = |text: &str| text.chars().count() <= 300 && !text.contains(char::is_control);
    assert!(view.health.iter().all(|words| is_line(words)));
    assert!(view.trouble().is_none_or(|words| is_line(&words)));
    assert!(view.peers.is_sorted_by(|a, b| a.name <= b.name));
    for peer in &view.peers {
        assert!(is_line(&peer.name), "{peer:?}");
        if let Path::Direct(by) | Path::Relayed(by) = &peer.path {
            assert!(is_line(by) && !by.is_empty(), "{peer:?}");
        }
    }
    assert!(!view.is_up() || view.address.is_some());
    assert!(!view.is_logged_in("https://h") || view.has_node_key);
    // The daemon says it on its socket, and the command line reads it from there.
    let status = NodeStatus {
        peers: view.peers,
        dns_name: view.dns_name.map(|name| name.to_string()),
        ..NodeStatus::default()
    };
    let json = serde_json::to_vec(&status).unwrap();
    assert_eq!(serde_json::from_slice::<NodeStatus>(&json).unwrap(), status);
}

/// `data` is the answer to a registration: what is kept of it are single words, and it is kept as it is.
pub(crate) fn welcome(data: &[u8]) {
    let Ok(welcome) = serde_json::from_slice::<Welcome>(data) else {
        return;
    };
    if server::check(&welcome).is_ok() {
        for text in [&welcome.pre_auth_key, &welcome.shared_key, &welcome.server_url] {
            assert_eq!(text.split_ascii_whitespace().collect::<Vec<_>>(), [text]);
            assert!(text.is_ascii() && !text.contains(char::is_control));
        }
        assert!(
            welcome.server_url.to_ascii_lowercase().starts_with("http"),
            "{}",
            welcome.server_url
        );
    }
}

/// `data` is `secrets/membership.json`.
pub(crate) fn membership(data: &[u8]) {
    if let Ok(membership) = serde_json::from_slice::<Membership>(data) {
        let written = serde_json::to_vec(&membership).unwrap();
        assert!(serde_json::from_slice::<Membership>(&written).unwrap() == membership);
    }
}
