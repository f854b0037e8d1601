//! Who gets in at `https_listen`, and as whom.

use dstack_vpc::agent::dev::pki::{app_id_extension, usage_extension};
use dstack_vpc::agent::dev::{Forgery, LeafRequest, Pki};

use crate::common::http::{self, With, get};
use crate::common::pair::{PRIVATE, Pair};
use crate::common::tls::Caller;
use crate::common::{CLIENT_APP, OTHER_APP, SERVER_APP, run};
use crate::traffic::header;

#[test]
fn a_certificate_with_an_app_id_gets_in_over_tls_1_2_and_1_3() {
    run(async {
        let pair = Pair::shared().await;
        for version in rustls::ALL_VERSIONS {
            let caller = Caller {
                version: Some(version),
                ..Caller::with(pair.agent.issue(OTHER_APP))
            };
            let stream = caller.connect(pair.server.ports.https.addr()).await.unwrap();
            let reply = http::send_on(stream, get("/as-a-peer")).await.unwrap();
            assert_eq!(reply.status, 200, "{version:?}: {}", reply.text());
            assert_eq!(
                header(&reply.json(), "x-dstack-app-id"),
                [OTHER_APP],
                "{version:?}"
            );
        }
    });
}

#[test]
fn without_a_certificate_only_health_answers() {
    run(async {
        let pair = Pair::shared().await;
        let health = pair.server.call_as_peer(None, get("/health")).await.unwrap();
        assert_eq!((health.status, health.text().trim()), (200, "OK"));
        let reply = pair
            .server
            .call_as_peer(None, get("/without-a-certificate"))
            .await
            .unwrap();
        assert_eq!(reply.status, 401, "{}", reply.text());
        assert_unseen(&pair, "without-a-certificate");
    });
}

#[test]
fn certificates_that_prove_nothing_are_refused() {
    run(async {
        let pair = Pair::shared().await;
        let app = CLIENT_APP.parse().unwrap();
        let other = OTHER_APP.parse().unwrap();
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        let forged = |extensions| LeafRequest {
            forgery: Forgery {
                leaf_extensions: Some(extensions),
                ca_extensions: None,
            },
            ..LeafRequest::both()
        };
        let expired = LeafRequest {
            not_after: Some(long_ago),
            ..LeafRequest::both()
        };
        let two_ids = vec![
            app_id_extension(&app),
            app_id_extension(&other),
            usage_extension("app:custom"),
        ];
        let rpc = vec![app_id_extension(&app), usage_extension("kms:rpc")];
        let callers = [
            (
                "another root",
                Pki::new().unwrap().issue(&app, &LeafRequest::both()).unwrap(),
            ),
            ("no KMS", Pki::issue_without_kms(&LeafRequest::both()).unwrap()),
            ("expired", pair.agent.issue_as(CLIENT_APP, &expired)),
            (
                "no app id",
                pair.agent
                    .issue_as(CLIENT_APP, &forged(vec![usage_extension("app:custom")])),
            ),
            ("two app ids", pair.agent.issue_as(CLIENT_APP, &forged(two_ids))),
            ("a KMS", pair.agent.issue_as(CLIENT_APP, &forged(rpc))),
        ];
        for (what, identity) in callers {
            let reply = pair
                .server
                .call_as_peer(Some(identity), get("/proves-nothing"))
                .await;
            // nginx itself refuses a chain it cannot verify with a 400; the rest is the auth service's 401.
            let status = reply.map(|reply| reply.status).expect("an answer");
            assert!(status == 400 || status == 401, "{what}: {status}");
        }
        assert_unseen(&pair, "proves-nothing");
    });
}

#[test]
fn a_backend_with_a_list_lets_in_whom_it_lists() {
    run(async {
        let pair = Pair::shared().await;
        for (app, status) in [(SERVER_APP, 200), (CLIENT_APP, 403), (OTHER_APP, 403)] {
            let identity = Some(pair.agent.issue(app));
            let call = get(&format!("/listed-{status}")).with("host", PRIVATE);
            let reply = pair.server.call_as_peer(identity, call).await.unwrap();
            assert_eq!(reply.status, status, "{app}: {}", reply.text());
        }
        assert_unseen(&pair, "listed-403");
    });
}

#[test]
fn no_spelling_of_the_app_id_header_comes_from_the_caller() {
    run(async {
        let pair = Pair::shared().await;
        let spellings = [
            "X-Dstack-App-Id: F",
            "x-dstack-app-id: F",
            "X-DSTACK-APP-ID: F",
            "X-Dstack-App-Id:F\r\nX-Dstack-App-Id: F",
            "X_Dstack_App_Id: F",
            "x_dstack_app_id: F",
            "X-Dstack_App-Id: F",
            "X-Dstack-App-Id : F",
            "X-Dstack-App-Id\t: F",
            " X-Dstack-App-Id: F",
            "X-Other: 1\r\n X-Dstack-App-Id: F",
            "X.Dstack.App.Id: F",
            "X-Dstack-App-Id\0: F",
            "Connection: x-dstack-app-id\r\nX-Dstack-App-Id: F",
            "X-Client-Cert: F\r\nX-Client-Verify: SUCCESS",
        ];
        for (n, spelling) in spellings.iter().enumerate() {
            let lines = spelling.replace('F', SERVER_APP);
            let direct =
                format!("GET /spoof-{n} HTTP/1.1\r\nHost: app.local\r\nConnection: close\r\n{lines}\r\n\r\n");
            let peer = Caller::with(pair.agent.issue(CLIENT_APP));
            let stream = peer.connect(pair.server.ports.https.addr()).await.unwrap();
            assert_only_the_caller(spelling, &http::raw(stream, &direct).await.unwrap());

            // The same from a local app, through the proxy.
            let target = format!("X-Dstack-Target-App: {SERVER_APP}\r\nConnection: close\r\n");
            let local = format!("GET /spoof-{n} HTTP/1.1\r\nHost: app.local\r\n{target}{lines}\r\n\r\n");
            let answer = http::raw(pair.client.connect().await, &local).await.unwrap();
            assert_only_the_caller(spelling, &answer);
        }
    });
}

/// Either refused, or the backend saw the verified id once and the forged one nowhere.
fn assert_only_the_caller(spelling: &str, answer: &str) {
    let status = answer.split(' ').nth(1).unwrap_or_default();
    if status == "400" {
        return;
    }
    assert_eq!(status, "200", "{spelling:?}: {answer}");
    let body = answer
        .find('{')
        .and_then(|from| answer.get(from..=answer.rfind('}')?));
    let seen: serde_json::Value = serde_json::from_str(body.unwrap_or_default()).expect(answer);
    assert_eq!(header(&seen, "x-dstack-app-id"), [CLIENT_APP], "{spelling:?}");
    for pair in seen["headers"].as_array().expect("headers") {
        let name = pair[0].as_str().unwrap_or_default().replace(['_', '.'], "-");
        if name.trim() == "x-dstack-app-id" {
            assert_eq!(pair[1], CLIENT_APP, "{spelling:?}: {pair}");
        }
        assert!(!name.starts_with("x-client-"), "{spelling:?}: {pair}");
    }
}

fn assert_unseen(pair: &Pair, path: &str) {
    let seen = [pair.default.seen(), pair.reports.seen()].concat();
    assert!(!seen.iter().any(|line| line.contains(path)), "{seen:?}");
}
