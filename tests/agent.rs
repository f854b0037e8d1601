//! The agent's client against the stand-in, over both kinds of sockets, and against what is no agent at all.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use dstack_vpc::agent::dev::{DevAgent, DevAgentError, Faults, Machine, Options, Pki};
use dstack_vpc::agent::{AgentClient, AgentError, TlsKeyRequest};
use dstack_vpc::names::AppId;
use dstack_vpc::spec::AgentAddr;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const PATIENCE: Duration = Duration::from_secs(10);

fn app() -> AppId {
    AppId::from_bytes([0xa1; 20])
}

fn free_port() -> AgentAddr {
    AgentAddr::Http(SocketAddr::from(([127, 0, 0, 1], 0)).into())
}

fn machine(listen: AgentAddr) -> Machine {
    Machine {
        listen,
        app_id: app(),
        instance_id: Some("b2000000000000000000000000000000000000b2".parse().unwrap()),
        faults: Faults::default(),
    }
}

async fn start(listen: AgentAddr) -> DevAgent {
    DevAgent::start(Options {
        pki: Pki::new().unwrap(),
        machines: vec![machine(listen)],
        gateway: None,
    })
    .await
    .unwrap()
}

fn both() -> TlsKeyRequest {
    TlsKeyRequest {
        subject: "localhost".to_owned(),
        alt_names: vec!["a.example".to_owned()],
        usage_ra_tls: false,
        usage_server_auth: true,
        usage_client_auth: true,
        not_before: None,
        not_after: Some(SystemTime::now() + Duration::from_secs(3600)),
    }
}

async fn http(agent: &DevAgent, method: Method, path: &str, kind: &str, body: &str) -> (StatusCode, Value) {
    let request = Request::builder()
        .method(method)
        .uri(format!("{}{path}", agent.addrs()[0]))
        .header("content-type", kind)
        .body(Full::<Bytes>::from(body.to_owned()))
        .unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn the_methods_answer_over_both_kinds_of_sockets() {
    let dir = tempfile::tempdir().unwrap();
    for listen in [
        free_port(),
        AgentAddr::Unix(dir.path().join("deep/er/agent.sock")),
    ] {
        let agent = start(listen).await;
        let addr = agent.addrs().remove(0);
        let client = AgentClient::new(addr.clone(), PATIENCE);
        let info = client.info().await.unwrap();
        assert_eq!(info.app_id, app());
        assert_eq!(
            info.instance_id.unwrap().to_string(),
            "b2000000000000000000000000000000000000b2"
        );
        let key = client.get_tls_key(&both()).await.unwrap();
        assert_eq!(key.certificate_chain.len(), 3);
        assert!(key.key.starts_with("-----BEGIN PRIVATE KEY-----"));
        assert!(!client.version().await.unwrap().is_empty());
        agent.stop().await;
        if let AgentAddr::Unix(path) = addr {
            assert!(!path.exists(), "the socket is removed");
        }
    }
}

#[tokio::test]
async fn a_client_finds_an_agent_that_was_restarted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let addr = AgentAddr::Unix(path.clone());
    let client = AgentClient::new(addr.clone(), PATIENCE);
    assert!(matches!(client.info().await, Err(AgentError::NotFound { .. })));

    // What an agent that was killed leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(matches!(client.info().await, Err(AgentError::Refused { .. })));

    for _ in 0..2 {
        let agent = start(addr.clone()).await;
        assert_eq!(client.info().await.unwrap().app_id, app());
        agent.stop().await;
        assert!(matches!(client.info().await, Err(AgentError::NotFound { .. })));
    }
}

#[tokio::test]
async fn refusals_come_in_the_agents_own_words() {
    let agent = start(free_port()).await;
    let client = AgentClient::new(agent.addrs().remove(0), PATIENCE);
    agent.set_faults(|faults| faults.fail_next = 2);
    for _ in 0..2 {
        let error = client.info().await.unwrap_err();
        assert!(
            matches!(&error, AgentError::Status { code: 400, message, .. } if message == "Failed on demand"),
            "{error}"
        );
    }
    client.info().await.unwrap();
    agent.set_faults(|faults| faults.kms_down = true);
    client.info().await.unwrap();
    let Err(error) = client.get_tls_key(&both()).await else {
        panic!("the KMS is down")
    };
    assert!(
        error
            .to_string()
            .contains("GetTlsKey was refused: Failed to sign"),
        "{error}"
    );
    agent.set_faults(|faults| {
        *faults = Faults {
            old: true,
            ..Faults::default()
        }
    });
    assert!(matches!(
        client.version().await,
        Err(AgentError::Status { code: 400, .. })
    ));
}

#[tokio::test]
async fn a_slow_agent_costs_the_time_limit_and_no_more() {
    let agent = start(free_port()).await;
    agent.set_faults(|faults| faults.delay_ms = 60_000);
    let client = AgentClient::new(agent.addrs().remove(0), Duration::from_millis(300));
    let started = Instant::now();
    assert!(matches!(client.info().await, Err(AgentError::Timeout { .. })));
    assert!(started.elapsed() < Duration::from_secs(5));
    // The call that still waits there does not hold up the stop.
    agent.stop().await;
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// Answers every connection with these bytes, then closes it.
async fn answer_with(bytes: Vec<u8>) -> (AgentAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = AgentAddr::Http(listener.local_addr().unwrap().into());
    let task = tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            let _ = io.read(&mut [0; 4096]).await;
            let _ = io.write_all(&bytes).await;
            let _ = io.shutdown().await;
        }
    });
    (addr, task)
}

#[tokio::test]
async fn what_is_no_agent_is_told_apart_and_not_quoted() {
    let ok =
        |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes();
    let mut huge = b"HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n".to_vec();
    huge.resize(10_000_000, b'x');
    let cases = [
        (b"SECRET nonsense\r\n\r\n".to_vec(), "Info: the connection failed"),
        (Vec::new(), "Info: the connection failed"),
        (ok("SECRET"), "it is not JSON (line 1, column 1)"),
        (ok(r#"{"app_id":"SECRET"}"#), "app_id is not 40 hex digits"),
        (ok(r#"{"key":"SECRET"}"#), "a field is missing or of another type"),
        (ok(r#"{"app_id":7}"#), "a field is missing or of another type"),
        (huge, "longer than 1048576 bytes"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_vec(),
            "broke off",
        ),
        (
            b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\na\x1bb\n".to_vec(),
            "was refused: ab (status 500)",
        ),
        (
            b"HTTP/1.1 502 Oops\r\ncontent-length: 0\r\n\r\n".to_vec(),
            "it did not say why (status 502)",
        ),
    ];
    for (bytes, expected) in cases {
        let (addr, task) = answer_with(bytes).await;
        let error = AgentClient::new(addr, PATIENCE)
            .info()
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected) && !error.contains("SECRET"), "{error}");
        task.abort();
    }
}

#[tokio::test]
async fn the_stand_in_has_the_real_agents_ways() {
    let agent = start(free_port()).await;
    let json_type = "application/json";
    let sans = |answer: &Value| {
        let leaf = answer["certificate_chain"][0].as_str().unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(leaf.as_bytes()).unwrap();
        let leaf = pem.parse_x509().unwrap();
        let names = leaf.subject_alternative_name().unwrap();
        names.map_or(0, |names| names.value.general_names.len())
    };
    for path in [
        "/GetTlsKey?subject=localhost&usage_server_auth=true&usage_client_auth=true",
        "/prpc/GetTlsKey?alt_names[]=a.example",
        "/prpc/DstackGuest.GetTlsKey?alt_names%5B%5D=a.example",
    ] {
        let (status, answer) = http(&agent, Method::GET, path, "", "").await;
        assert_eq!(status, 200);
        assert_eq!(sans(&answer), usize::from(path.contains("[]")), "{path}");
    }
    let (status, answer) = http(
        &agent,
        Method::POST,
        "/GetTlsKey",
        json_type,
        r#"{"alt_names":["x","y"],"new":1}"#,
    )
    .await;
    assert_eq!((status, sans(&answer)), (StatusCode::OK, 2));
    for (method, path, kind, body) in [
        (Method::POST, "/GetTlsKey", "application/octet-stream", "\x08\x01"),
        (Method::POST, "/GetTlsKey", "", "{}"),
        (Method::POST, "/GetTlsKey", json_type, "{"),
        (Method::POST, "/GetTlsKey", json_type, r#"{"alt_names":7}"#),
        (
            Method::POST,
            "/GetTlsKey",
            json_type,
            r#"{"not_after":999999999999999999}"#,
        ),
        (Method::GET, "/GetTlsKey?usage_server_auth=maybe", "", ""),
        (Method::GET, "/NoSuchMethod", "", ""),
        (Method::DELETE, "/Info", "", ""),
        (
            Method::POST,
            "/dev/faults",
            json_type,
            r#"{"no_such_fault":true}"#,
        ),
    ] {
        let (status, answer) = http(&agent, method, path, kind, body).await;
        assert_eq!(status, 400, "{path} {body}");
        assert!(!answer["error"].as_str().unwrap().is_empty());
    }
    let (status, faults) = http(
        &agent,
        Method::POST,
        "/dev/faults",
        json_type,
        r#"{"kms_down":true}"#,
    )
    .await;
    assert_eq!(
        (status, &faults["kms_down"], &faults["fail_next"]),
        (StatusCode::OK, &json!(true), &json!(0))
    );
    assert_eq!(http(&agent, Method::GET, "/GetTlsKey", "", "").await.0, 400);
}

#[tokio::test]
async fn one_root_serves_several_apps_and_a_place_that_is_taken_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let socket = |name: &str| AgentAddr::Unix(dir.path().join(name));
    let other = AppId::from_bytes([2; 20]);
    let agent = DevAgent::start(Options {
        pki: Pki::load_or_create(dir.path()).unwrap(),
        machines: vec![
            machine(socket("a")),
            Machine {
                app_id: other,
                ..machine(socket("b"))
            },
            machine(free_port()),
        ],
        gateway: None,
    })
    .await
    .unwrap();
    let mut roots = Vec::new();
    for (addr, app_id) in agent.addrs().into_iter().zip([app(), other, app()]) {
        let client = AgentClient::new(addr, PATIENCE);
        assert_eq!(client.info().await.unwrap().app_id, app_id);
        roots.extend(client.get_tls_key(&both()).await.unwrap().certificate_chain.pop());
    }
    assert!(roots.len() == 3 && roots.iter().all(|root| *root == roots[0]));

    std::fs::write(dir.path().join("file"), "").unwrap();
    for (listen, why) in [
        (socket("a"), "somebody listens there already".to_owned()),
        (socket("file"), "there is a file that is no socket".to_owned()),
        (agent.addrs().remove(2), format!("(pid {},", std::process::id())),
    ] {
        let options = Options {
            pki: Pki::new().unwrap(),
            machines: vec![machine(listen)],
            gateway: None,
        };
        let Err(error @ DevAgentError::Listen { .. }) = DevAgent::start(options).await else {
            panic!("it is taken")
        };
        assert!(error.to_string().contains(&why), "{error}");
    }
    assert!(Path::new(&dir.path().join("file")).exists());
}
