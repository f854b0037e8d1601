//! The members of etcd.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use tokio::process::Command;

use super::Patient;

#[tokio::test(flavor = "multi_thread")]
async fn members_of_etcd_that_answer_and_that_do_not() {
    let ports = [0; 3]
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .map(|it| it.local_addr().unwrap().port());
    let [client, peer, nobody] = ports;
    let patient = |endpoints: &str| {
        Patient::new().with(
            "role = \"server\"\nallowed_apps = []",
            &format!("[registry]\nstore = \"etcd\"\nendpoints = [{endpoints}]"),
        )
    };
    let (up, down) = (
        format!("\"http://127.0.0.1:{client}\""),
        format!("\"http://127.0.0.1:{nobody}\""),
    );
    let report = patient(&down).examine().await;
    let mend = report.says("etcd", "error", "Connection refused");
    assert!(
        mend.contains(&format!("curl -i http://127.0.0.1:{nobody}/health")),
        "{mend}"
    );

    let dir = tempfile::tempdir().unwrap();
    let _etcd = Etcd::start(dir.path(), client, peer).await;
    let report = patient(&format!("{up}, {down}")).examine().await;
    report.says("etcd", "ok", "etcd answers at");
    report.says("etcd", "warning", "Connection refused");
}

/// One real member.
struct Etcd(Child);

impl Etcd {
    async fn start(dir: &Path, client: u16, peer: u16) -> Self {
        let (client_url, peer_url) = (
            format!("http://127.0.0.1:{client}"),
            format!("http://127.0.0.1:{peer}"),
        );
        let child = std::process::Command::new("etcd")
            .arg("--data-dir")
            .arg(dir)
            .args([
                "--listen-client-urls",
                &client_url,
                "--advertise-client-urls",
                &client_url,
            ])
            .args([
                "--listen-peer-urls",
                &peer_url,
                "--initial-advertise-peer-urls",
                &peer_url,
            ])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd: run `make setup`");
        let etcd = Self(child);
        let end = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let health = Command::new("curl")
                .args(["-sf", &format!("{client_url}/health")])
                .output()
                .await
                .unwrap();
            if String::from_utf8_lossy(&health.stdout).contains("true") {
                return etcd;
            }
            assert!(tokio::time::Instant::now() < end, "etcd does not become healthy");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
