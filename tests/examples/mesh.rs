//! Apps call each other.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::common::backend::Backend;
use crate::common::http::{Reply, With, get};
use crate::common::run;
use crate::common::{http, machine::Machine, netns::Host};
use crate::compose::Compose;
use crate::container::{example, file, host, must, name_on, prepare, start};
use crate::site::Site;

fn backend(host: &Host, at: &str, name: &'static str) -> Backend {
    let listener = host.inside.listen(at.parse().expect("an address"));
    Backend::behind(
        listener.unwrap_or_else(|error| panic!("{at}: {error}")),
        name,
        None,
    )
}

/// Calls `app` as a local app of `caller` would.
async fn call(caller: &Machine, app: &str, to: &'static str) -> Reply {
    let request = get("/hello").to_app(app).with("host", to);
    caller.call(request).await.expect("an answer")
}

fn answered_by(reply: &Reply) -> (u16, String) {
    let name = reply.json()["backend"].as_str().unwrap_or_default().to_owned();
    (reply.status, name)
}

#[test]
fn a_call_reaches_the_backend_that_the_file_names() {
    run(async {
        let site = Site::new().await;
        let [a, b, c, d] = ['1', 'b', 'c', 'd'].map(example);
        let compose = Compose::read("compose/mesh.yaml");
        let several = Compose::read("compose/vpc-toml.yaml");
        let (of_b, of_d) = tokio::join!(host(&site, "mesh", &b), host(&site, "builtin", &d));
        let (plain, builtin) = (
            file(&site, &of_b, "mesh.toml").spawn(),
            file(&site, &of_d, "builtin-front.toml").spawn(),
        );
        let in_compose = start(&site, "compose", &a, &compose, &[]).await;
        let (of_c, several) = prepare(&site, "several", &c, &several, &[]).await;
        for address in ["10.0.0.11", "10.0.0.12"] {
            must(&of_c, &format!("ip address add {address}/32 dev lo")).await;
        }
        name_on(&of_c, "reports.local", "127.0.0.2").await;
        let several = several.spawn();
        tokio::join!(
            in_compose.machine.until_ready(),
            several.until_ready(),
            plain.until_ready(),
            builtin.until_ready()
        );

        let _apps = (
            backend(&in_compose.host, "127.0.0.1:8081", "in-compose"),
            backend(&of_b, "127.0.0.1:8081", "plain"),
            backend(&of_d, "127.0.0.1:8081", "builtin"),
            backend(&of_c, "127.0.0.1:8081", "default"),
            backend(&of_c, "127.0.0.2:9000", "reports"),
            // The second of two upstreams: that the first is down, nobody notices.
            backend(&of_c, "10.0.0.12:8080", "orders"),
        );
        for (caller, called, name) in [
            (&in_compose.machine, &b, "plain"),
            (&in_compose.machine, &d, "builtin"),
            (&plain, &a, "in-compose"),
            (&builtin, &a, "in-compose"),
        ] {
            let reply = call(caller, &called.app, "any.example.com").await;
            assert_eq!(answered_by(&reply), (200, name.to_owned()), "{}", reply.text());
        }
        let programs = builtin.processes();
        assert!(
            programs.iter().all(|it| !it.command.contains("nginx")),
            "{programs:#?}"
        );

        for (caller, to, wanted) in [
            (&in_compose.machine, "orders.example.com", (200, "orders")),
            (&plain, "orders.example.com", (403, "")),
            (&plain, "reports.example.com", (200, "reports")),
            (&plain, "any.example.com", (200, "default")),
        ] {
            for _ in 0..3 {
                let reply = call(caller, &c.app, to).await;
                assert_eq!(
                    answered_by(&reply),
                    (wanted.0, wanted.1.to_owned()),
                    "{to}: {}",
                    reply.text()
                );
            }
        }
    });
}

#[test]
fn a_forward_carries_tcp_to_the_backend() {
    run(async {
        let site = Site::new().await;
        let [database, caller, stranger] = ['1', '2', '7'].map(example);
        let of_database = host(&site, "database", &database).await;
        let serving = file(&site, &of_database, "tcp-backend.toml").spawn();
        let forward = Compose::read("compose/tcp-forward.yaml");
        let calling = start(&site, "caller", &caller, &forward, &[]).await;
        let refused = start(&site, "stranger", &stranger, &forward, &[]).await;
        tokio::join!(
            serving.until_ready(),
            calling.machine.until_ready(),
            refused.machine.until_ready()
        );
        let listener = of_database
            .inside
            .listen("127.0.0.1:27018".parse().expect("an address"));
        let echo = tokio::spawn(echo(listener.expect("port 27018")));
        let words = vec![0xa5; 1 << 20];
        assert_eq!(through(&calling.host, &words).await.as_ref(), Some(&words));
        assert_eq!(through(&refused.host, b"words").await, None, "it is not listed");
        echo.abort();
    });
}

/// Sends back what comes.
async fn echo(listener: TcpListener) {
    let mut sessions = tokio::task::JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        sessions.spawn(async move {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await
        });
    }
}

/// What comes back from the forward; `None` when it is closed before that.
async fn through(host: &Host, words: &[u8]) -> Option<Vec<u8>> {
    let forward: SocketAddr = "127.0.0.1:27018".parse().expect("an address");
    let exchange = async {
        let mut stream = host.inside.connect(forward).await?;
        let (mut read, mut write) = stream.split();
        let mut heard = vec![0; words.len()];
        tokio::try_join!(write.write_all(words), read.read_exact(&mut heard))?;
        Ok::<_, http::Error>(heard)
    };
    let limit = std::time::Duration::from_secs(30);
    tokio::time::timeout(limit, exchange).await.expect("in time").ok()
}
