//! The apps behind the backends and those that forwards lead to.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use dstack_vpc::agent::dev::{Issued, LeafRequest, Pki};
use dstack_vpc::identity;
use dstack_vpc::names::AppId;
use dstack_vpc::paths::StateDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::tls::acceptor;
use super::{OWN_APP, Patient};

const TARGET: AppId = AppId::from_bytes([0x5e; 20]);

#[tokio::test(flavor = "multi_thread")]
async fn backends_behind_which_nobody_listens() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let up = app.local_addr().unwrap();
    let down = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let backend = |name: &str, upstream: String| {
        format!("[[backends]]\nname = \"{name}\"\nserver_name = \"{name}.local\"\nupstream = [{upstream}]\n")
    };
    let patient = Patient::new().with(
        "",
        &[
            backend("well", format!("\"{up}\"")),
            backend("half", format!("\"{up}\", \"{down}\"")),
            backend("gone", format!("\"{down}\"")),
        ]
        .concat(),
    );
    let report = patient.examine().await;
    report.says("backend", "ok", "the app behind the backend \"well\"");
    let words =
        |name: &str| format!("behind the backend \"{name}\" nobody answers at {down}: Connection refused");
    report.says("backend", "warning", &words("half"));
    report.says("backend", "warning", &words("gone"));
    assert_eq!(report.of("backend").len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn forwards_to_apps_that_are_there_and_that_are_not() {
    let patient = Patient::new();
    let pki = Pki::load_or_create(patient.dir.path()).unwrap();
    let issued = pki.issue(&OWN_APP, &LeafRequest::both()).unwrap();
    let chain = issued.chain_pems.concat();
    let own = identity::check(&issued.key_pem, &chain, None, SystemTime::now()).unwrap();
    identity::store(&StateDir::new(patient.path("state")), own, None).unwrap();

    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let peer = |app, hangs_up| Peer::start(pki.issue(&app, &LeafRequest::both()).unwrap(), hangs_up);
    let (well, refuses) = (peer(TARGET, false).await, peer(TARGET, true).await);
    let other = peer(AppId::from_bytes([0x0e; 20]), false).await;
    let toml = patient.toml.clone();
    let mut patient = patient;
    for (at, severity, words) in [
        (well.addr, "ok", "leads to its app"),
        (refuses.addr, "error", "hung up after the handshake"),
        (other.addr, "error", "did not prove to be the target app"),
        (nobody, "error", "cannot be reached: Connection refused"),
    ] {
        // A fixed gateway is where every target is.
        patient.toml = format!(
            "{toml}gateway_domain = \"fixed/{at}\"\n[[forwards]]\nname = \"db\"\nlisten = \"127.0.0.1:0\"\n\
             target_app = \"{TARGET}\"\n"
        )
        .replace("127.0.0.1:0", &format!("127.0.0.1:{}", free()));
        let report = patient.examine().await;
        report.says("forward", severity, words);
        report.says("forward", severity, &format!("to app {TARGET}, port 443"));
        assert_eq!(report.of("forward").len(), 1);
    }
}

fn free() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// The other machine's end of a TCP backend.
struct Peer {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Peer {
    async fn start(issued: Issued, hangs_up: bool) -> Self {
        let acceptor = acceptor(&issued);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let accepted = tokio::time::timeout(Duration::from_secs(10), acceptor.accept(tcp)).await;
                if let (Ok(Ok(tls)), false) = (accepted, hangs_up) {
                    open.push(tls);
                }
            }
        });
        Self { addr, task }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
