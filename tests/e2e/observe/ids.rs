//! One id for a request at every hop, and refusals that say which hop failed.

use super::{Alone, DOWN, PRIVATE};
use crate::common::http::{With, get};
use crate::common::ports::Port;
use crate::common::{CLIENT_APP, OTHER_APP, run};

/// The values of a header that came to the backend.
fn came(seen: &serde_json::Value, name: &str) -> Vec<String> {
    let headers = seen["headers"].as_array().into_iter().flatten();
    let matching = headers.filter(|header| header[0] == name);
    matching
        .map(|header| header[1].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn one_id_is_seen_at_every_hop_and_traces_pass_as_they_are() {
    run(async {
        let alone = Alone::start(|_| {}).await;
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let call = || {
            get("/x")
                .to_app(CLIENT_APP)
                .with("traceparent", parent)
                .with("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE")
                .with("tracestate", "more=1")
        };
        let is_made = |id: &str| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        for (given, kept) in [("Trace-1/of:me@here", true), ("has a space", false), ("", false)] {
            for front in [true, false] {
                let request = call().with("x-request-id", given);
                let reply = match front {
                    true => alone.machine.call(request).await.expect("an answer"),
                    false => alone.proxy(request).await,
                };
                let seen = reply.json();
                let ids = came(&seen, "x-request-id");
                match kept {
                    true => assert_eq!(ids, [given], "{seen}"),
                    false => assert!(ids.len() == 1 && is_made(&ids[0]), "{given:?}: {seen}"),
                }
                assert_eq!(came(&seen, "traceparent"), [parent]);
                assert_eq!(
                    came(&seen, "tracestate").join(","),
                    "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE,more=1"
                );
            }
        }
        let twice = call().with("x-request-id", "a").with("x-request-id", "b");
        let ids = came(&alone.proxy(twice).await.json(), "x-request-id");
        assert!(ids.len() == 1 && is_made(&ids[0]), "{ids:?}");
        let (first, second) = (alone.proxy(call()).await.json(), alone.proxy(call()).await.json());
        assert_ne!(came(&first, "x-request-id"), came(&second, "x-request-id"));
    });
}

#[test]
fn a_refusal_names_the_hop_that_failed_and_the_request() {
    run(async {
        let alone = Alone::start(|plan| {
            // Of three backends none takes every Host.
            plan.toml = plan
                .toml
                .replace("server_name = \"_\"", "server_name = \"named.local\"");
        })
        .await;
        let to = |host: &str| get("/x").to_app(CLIENT_APP).with("host", host);
        for (request, status, code, hop) in [
            (get("/x").to_app("?"), 400, "bad_target", "caller"),
            (get("/x").to_app(OTHER_APP), 502, "identity_mismatch", "target"),
            (to(PRIVATE), 403, "forbidden", "caller"),
            (to("nobody.local"), 421, "no_backend", "front"),
            (to(DOWN), 502, "backend_unreachable", "backend"),
        ] {
            let reply = alone.proxy(request.with("x-request-id", code)).await;
            let json = reply.json();
            assert_eq!(reply.status, status, "{json}");
            assert_eq!(
                (&json["code"], &json["hop"], &json["request_id"]),
                (&code.into(), &hop.into(), &code.into()),
                "{json}"
            );
            assert!(
                json["error"].as_str().is_some_and(|error| error.len() > 10),
                "{json}"
            );
            assert_eq!(reply.all("x-request-id"), [code]);
        }
        let unnamed = alone.proxy(get("/x").to_app("?")).await;
        assert_eq!(
            unnamed.all("x-request-id"),
            [unnamed.json()["request_id"].as_str().unwrap_or("-")]
        );
        let stranger = alone
            .machine
            .call_as_peer(None, get("/x").with("x-request-id", "s-1"))
            .await;
        let json = stranger.expect("an answer").json();
        assert_eq!(
            (&json["code"], &json["hop"], &json["request_id"]),
            (&"unauthorized".into(), &"caller".into(), &"s-1".into())
        );

        let (https, closed) = (alone.machine.ports.https.to_string(), Port::reserve());
        let gateway = |toml: String| toml.replace(&format!("fixed/{https}"), &format!("fixed/{closed}"));
        alone.machine.edit(gateway).await;
        let json = alone.proxy(to("named.local")).await.json();
        assert_eq!(
            (&json["code"], &json["hop"]),
            (&"connect_refused".into(), &"gateway".into()),
            "{json}"
        );
    });
}
