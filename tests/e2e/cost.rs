//! What an edit may cost, by what it does and not by the time it takes.

use std::fs;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Method;
use tokio::net::UnixStream;

use crate::common::http::{self, With, request};
use crate::common::machine::{Machine, has_nginx};
use crate::common::pair::{Pair, REPORTS};
use crate::common::process::Traces;
use crate::common::{SERVER_APP, run};

#[test]
fn nothing_to_do_and_who_may_call_start_no_process() {
    run(async {
        let pair = Pair::start().await;
        let server = &pair.server;
        let traces = || Traces::of(&server.processes());
        let generation = || fs::read_link(server.state.current()).expect("a generation");
        let (before, first) = (traces(), generation());
        for _ in 0..5 {
            assert_eq!(apply(server).await["changed"], false);
        }
        assert_eq!(traces(), before);
        assert_eq!(generation(), first);

        let anyone = format!("server_name = \"{REPORTS}\"");
        let list = format!("{anyone}\nallowed_apps = [\"{SERVER_APP}\"]");
        server.edit(|toml| toml.replace(&anyone, &list)).await;
        assert_ne!(generation(), first);
        assert_eq!(traces(), before, "no reload, no check, nothing");

        // The same eyes see a reload, which the built-in front never needs.
        let other = format!("server_name = \"other.{REPORTS}\"");
        server.edit(|toml| toml.replace(&anyone, &other)).await;
        assert_eq!(traces() == before, !has_nginx());
    });
}

/// As `dstack-vpc apply` asks the daemon.
async fn apply(machine: &Machine) -> serde_json::Value {
    let stream = UnixStream::connect(machine.state.daemon_socket())
        .await
        .expect("the daemon");
    let body = Full::new(Bytes::from_static(br#"{"apply":{"confirm_within":null}}"#));
    let ask = request(Method::POST, "/do", body).with("content-type", "application/json");
    let reply = http::send_on(stream, ask).await.expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}
