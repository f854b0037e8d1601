//! A port stays and its address does not: what is open cannot be had beside what is wanted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dstack_vpc::reconcile::status::ConditionKind::{Configured, Ready};
use http_body_util::BodyExt;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::common::http::{With, get, open, send};
use crate::common::machine::{EDIT, Machine, front, holds};
use crate::common::pair::Pair;
use crate::common::ports::Port;
use crate::common::{SERVER_APP, poll, run};

/// Whether a local app is answered there.
async fn is_served(addr: SocketAddr) -> bool {
    send(addr, get("/health"))
        .await
        .is_ok_and(|reply| reply.status == 200)
}

/// How long at a time nobody could connect to an address.
struct Refused {
    longest: Arc<AtomicU64>,
    watcher: AbortHandle,
}

impl Refused {
    fn watch(addr: SocketAddr) -> Self {
        let longest = Arc::new(AtomicU64::new(0));
        let told = longest.clone();
        let watching = async move {
            let mut open = Instant::now();
            loop {
                if TcpStream::connect(addr).await.is_ok() {
                    open = Instant::now();
                }
                told.fetch_max(open.elapsed().as_millis() as u64, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let watcher = tokio::spawn(watching).abort_handle();
        Self { longest, watcher }
    }

    fn longest(&self) -> Duration {
        Duration::from_millis(self.longest.load(Ordering::Relaxed))
    }
}

impl Drop for Refused {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

async fn listen(machine: &Machine, from: &str, to: &str) {
    let port = machine.ports.http.number();
    let [from, to] = [from, to].map(|ip| format!("http_listen = \"{ip}:{port}\""));
    let status = machine.edit(|toml| toml.replace(&from, &to)).await;
    assert!(
        holds(&status, Configured) && holds(&status, Ready),
        "{to}: {status:#?}"
    );
    assert_eq!(status.counters.drift.len(), 0, "{status:#?}");
}

#[test]
fn a_listener_changes_its_address_and_keeps_its_port() {
    run(async {
        let pair = Pair::start().await;
        let client = &pair.client;
        let port = client.ports.http.number();
        let at = |ip: &str| -> SocketAddr { format!("{ip}:{port}").parse().expect("an address") };
        // What is open outlives every change.
        let held = open(client.connect().await, get("/hold").to_app(SERVER_APP));
        let mut held = held.await.expect("a head").into_body();
        let refused = Refused::watch(at("127.0.0.1"));
        for (from, to, serves, is_silent) in [
            ("127.0.0.1", "0.0.0.0", "127.0.0.2", "[::1]"),
            ("0.0.0.0", "127.0.0.1", "127.0.0.1", "127.0.0.2"),
            ("127.0.0.1", "[::]", "127.0.0.2", ""),
        ] {
            listen(client, from, to).await;
            if from == "0.0.0.0" {
                println!("refused for {:?}", refused.longest());
                assert!(refused.longest() < Duration::from_secs(10), "for a moment");
            }
            assert!(
                is_served(at(serves)).await,
                "{from} to {to}: nobody is at {serves}"
            );
            assert!(
                is_silent.is_empty() || TcpStream::connect(at(is_silent)).await.is_err(),
                "{from} to {to}: somebody is at {is_silent}"
            );
        }
        // Something of the daemon wants the port on IPv4: then `[::]` is for IPv6 alone; and for both once that has moved.
        let elsewhere = Port::reserve();
        let forward = format!(
            "\n[[forwards]]\nname = \"twin\"\nlisten = \"127.0.0.1:{port}\"\ntarget_app = \"{SERVER_APP}\"\n"
        );
        let status = client.edit(|toml| toml + &forward).await;
        assert!(holds(&status, Configured), "{status:#?}");
        assert!(is_served(at("[::1]")).await && TcpStream::connect(at("127.0.0.2")).await.is_err());
        assert!(TcpStream::connect(at("127.0.0.1")).await.is_ok(), "the forward");
        let status = client
            .edit(|toml| {
                toml.replace(
                    &forward,
                    &forward.replace(&port.to_string(), &elsewhere.number().to_string()),
                )
            })
            .await;
        assert!(holds(&status, Configured), "{status:#?}");
        assert!(is_served(at("127.0.0.2")).await && is_served(at("[::1]")).await);
        // The same with what is no part of the mesh.
        let metrics = format!("\n[metrics]\nlisten = \"127.0.0.1:{port}\"\n");
        let status = client.edit(|toml| toml + &metrics).await;
        assert!(holds(&status, Configured), "{status:#?}");
        assert!(is_served(at("[::1]")).await && TcpStream::connect(at("127.0.0.2")).await.is_err());
        let page = send(at("127.0.0.1"), get("/metrics")).await;
        assert!(page.expect("an answer").text().contains("dstack_vpc_generation"));
        let status = client.edit(|toml| toml.replace(&metrics, "")).await;
        assert!(holds(&status, Configured), "{status:#?}");
        assert!(is_served(at("127.0.0.1")).await && is_served(at("[::1]")).await);
        for _ in 0..2 {
            pair.default.release();
        }
        let mut all = Vec::new();
        while let Some(frame) = held.frame().await {
            all.extend(frame.expect("the rest of it").into_data().unwrap_or_default());
        }
        assert_eq!(String::from_utf8_lossy(&all), "first,last");
        // Together with a change of front, too.
        let mut now = front();
        for (from, to, ip) in [
            ("[::]", "127.0.0.1", "127.0.0.1"),
            ("127.0.0.1", "0.0.0.0", "127.0.0.2"),
        ] {
            let next = if now == "nginx" { "builtin" } else { "nginx" };
            let fronts = [now.as_str(), next].map(|front| format!("front = \"{front}\""));
            let edit = |toml: String| {
                toml.replace(&fronts[0], &fronts[1])
                    .replace(&format!("{from}:{port}"), &format!("{to}:{port}"))
            };
            let status = client.edit(edit).await;
            assert!(holds(&status, Configured), "{now} to {next}: {status:#?}");
            assert!(is_served(at(ip)).await, "{now} to {next}: nobody is at {ip}");
            next.clone_into(&mut now);
        }
    });
}

#[test]
fn a_new_address_that_does_not_come_to_serve_gives_the_old_one_back() {
    run(async {
        let pair = Pair::start_with(|client, _| {
            client.toml = client.toml.replace("front = \"builtin\"", "front = \"nginx\"");
            let template = include_str!("../../templates/nginx.conf.tera");
            let other = format!(
                "return 200 {{% if http.address == \"0.0.0.0:{}\" %}}other{{% else %}}{{{{ tag }}}}{{% endif %}};",
                client.ports.http.number()
            );
            let template = template.replace("return 200 {{ tag }};", &other);
            let templates = client.dir.path().join("templates");
            std::fs::create_dir(&templates).unwrap();
            std::fs::write(templates.join("nginx.conf.tera"), template).unwrap();
        })
        .await;
        let client = &pair.client;
        let port = client.ports.http.number();
        let edit = |toml: String| toml.replace(&format!("127.0.0.1:{port}"), &format!("0.0.0.0:{port}"));
        let status = client.edit(edit).await;
        assert!(!holds(&status, Configured), "{status:#?}");
        let last = status.history.last().expect("an event");
        assert_eq!(last.outcome, "rolled back", "{last:#?}");
        let address = client.ports.http.addr();
        let served = poll(EDIT, async || is_served(address).await.then_some(())).await;
        assert!(served.is_some(), "{}", client.logs());
        assert!(TcpStream::connect(("127.0.0.2", port)).await.is_err());
    });
}
