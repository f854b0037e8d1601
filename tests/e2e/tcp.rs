//! A program that knows nothing of HTTP, nor of certificates, talks to one on another machine: through a forward there and
//! a TCP backend here.

use std::time::Duration;

use dstack_vpc::reconcile::status::ConditionKind::Ready;
use dstack_vpc::reconcile::status::Status;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::common::machine::{EDIT, holds};
use crate::common::pair::Pair;
use crate::common::ports::Port;
use crate::common::{CLIENT_APP, SERVER_APP, poll, run};

/// Says back what it hears, line by line, and greets first, as databases do.
async fn line_server() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = write.write_all(b"hello\n").await;
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    addr
}

struct Session(TcpStream);

impl Session {
    /// `None`: nobody greets.
    async fn open(at: &Port) -> Option<Self> {
        let mut session = Self(TcpStream::connect(at.addr()).await.ok()?);
        (session.hears(6).await? == b"hello\n").then_some(session)
    }

    async fn hears(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut words = vec![0; count];
        let read = timeout(Duration::from_secs(20), self.0.read_exact(&mut words)).await;
        read.expect("an answer or an end").ok()?;
        Some(words)
    }

    async fn works(&mut self, words: &str) -> bool {
        self.0.write_all(words.as_bytes()).await.is_ok()
            && self.hears(words.len()).await.as_deref() == Some(words.as_bytes())
    }
}

#[test]
fn a_session_goes_on_through_renewals_and_edits() {
    run(async {
        let (upstream, forward, backend) = (line_server().await, Port::reserve(), Port::reserve());
        let listed = |app: &str| format!("allowed_apps = [\"{app}\"] # of db");
        let pair = Pair::start_with(|client, server| {
            server.toml += &format!(
                "\n[[backends]]\nname = \"db\"\nprotocol = \"tcp\"\nlisten = \"{backend}\"\nupstream = \"{upstream}\"\n{}\n",
                listed(CLIENT_APP)
            );
            client.toml += &format!(
                "\n[[forwards]]\nname = \"db\"\nlisten = \"{forward}\"\ntarget_app = \"{SERVER_APP}\"\ntarget_port = {}\n",
                backend.number()
            );
            // A gateway leads to the port that its name tells; a fixed one is at that port.
            let https = format!("fixed/{}", server.ports.https);
            client.toml = client.toml.replace(&https, &format!("fixed/{backend}"));
        })
        .await;
        // The backend opens with the first certificate.
        let open = poll(Duration::from_secs(30), async || Session::open(&forward).await);
        let mut session = open.await.expect("a session");
        assert!(session.works("before").await);

        for machine in [&pair.server, &pair.client] {
            let folder = |status: &Status| status.identity.as_ref().map(|identity| identity.folder.clone());
            let before = folder(&machine.status().await.unwrap());
            machine.ask_for_renewal().await;
            let renewed = |status: &Status| folder(status) != before && !status.owed && holds(status, Ready);
            machine.until(EDIT, "the new certificate is live", renewed).await;
            assert!(session.works("renewed").await);
            assert!(
                Session::open(&forward)
                    .await
                    .expect("a new one")
                    .works("new")
                    .await
            );
        }

        let (ours, others) = (listed(CLIENT_APP), listed(SERVER_APP));
        pair.server.edit(|toml| toml.replace(&ours, &others)).await;
        assert!(session.works("struck off").await);
        assert!(Session::open(&forward).await.is_none(), "refused from now on");
        pair.server.edit(|toml| toml.replace(&others, &ours)).await;
        assert!(Session::open(&forward).await.is_some());

        // The port moves at both ends.
        let moved = Port::reserve();
        let (old, new) = (forward.to_string(), moved.to_string());
        pair.client.edit(|toml| toml.replace(&old, &new)).await;
        assert!(Session::open(&moved).await.is_some(), "{}", pair.client.logs());
        assert!(session.works("moved").await);
    });
}
