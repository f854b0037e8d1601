//! TCP as it is: from a forward over mutual TLS to a TCP backend, both ends being ours.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dstack_vpc::mesh::{Forward, Mesh, MeshSettings, TcpBackend};
use dstack_vpc::names::{BackendName, InstanceId};
use dstack_vpc::ratls::{PeerVerifier, provider};
use dstack_vpc::spec::{self, AllowedApps, Gateway};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::kit::pki::{Shape, Signed, id};
use crate::kit::*;

const SOON: Duration = Duration::from_secs(20);

fn db() -> BackendName {
    "db".parse().unwrap()
}

/// A program behind the backend.
struct Upstream {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Upstream {
    async fn start<S: Future<Output = ()> + Send>(
        script: impl Fn(TcpStream) -> S + Clone + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let script = script.clone();
                tokio::spawn(async move { script(stream).await });
            }
        });
        Self { addr, connections }
    }

    /// Says everything back, and that it is the end.
    async fn echo() -> Self {
        Self::start(|mut stream| async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        })
        .await
    }

    fn count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Our app with a forward to the other one, and the other one with a backend that only we may call.
struct Two {
    root: Signed,
    us: OurSide,
    them: Mesh,
    their_identity: watch::Sender<Option<Arc<dstack_vpc::identity::Identity>>>,
    forward: SocketAddr,
    backend: SocketAddr,
    ours: MeshSettings,
    theirs: MeshSettings,
}

impl Two {
    async fn start(
        upstream: &[SocketAddr],
        change: impl FnOnce(&mut MeshSettings, &mut MeshSettings),
    ) -> Self {
        let root = Signed::root(&Shape::root());
        let (forward, backend) = (free_port().await, free_port().await);
        let mut theirs = settings(None);
        let tcp = TcpBackend {
            listen: backend,
            upstream: spec::Upstream::new(upstream.iter().map(|at| (*at).into()).collect()).unwrap(),
        };
        theirs.tcp_backends.insert(db(), tcp);
        theirs.backends.insert(db(), [id(US)].into_iter().collect());
        let mut ours = settings(fixed(backend));
        let leads = Forward {
            listen: forward,
            app: id(THEM),
            instance: None,
            port: 27017,
        };
        ours.forwards.insert(db(), leads);
        change(&mut ours, &mut theirs);
        let (their_identity, receiver) = watch::channel(Some(identity(&root, id(THEM))));
        let them = Mesh::start(theirs.clone(), receiver).unwrap();
        Self {
            us: OurSide::start(&root, ours.clone()).await,
            root,
            them,
            their_identity,
            forward,
            backend,
            ours,
            theirs,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.forward).await.unwrap()
    }

    /// Nothing comes back from whoever connects, and it ends: perhaps before this thread has a look at it.
    async fn refuses(&self) -> bool {
        let mut stream = match TcpStream::connect(self.forward).await {
            Ok(stream) => stream,
            Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
        };
        let _ = stream.write_all(b"secret").await;
        let mut rest = Vec::new();
        let _ = timeout(SOON, stream.read_to_end(&mut rest))
            .await
            .expect("an end");
        rest.is_empty()
    }

    async fn end(self) {
        tokio::join!(self.us.mesh.shutdown(), self.them.shutdown());
    }
}

/// What is said comes back.
async fn echoes(stream: &mut TcpStream, words: &[u8]) -> bool {
    let mut back = vec![0; words.len()];
    let said = async {
        stream.write_all(words).await?;
        stream.read_exact(&mut back).await
    };
    timeout(SOON, said).await.expect("an answer or an end").is_ok() && back == words
}

#[tokio::test]
async fn only_those_who_may_reach_the_upstream() {
    let upstream = Upstream::echo().await;
    let two = Two::start(&[upstream.addr], |_, _| {}).await;
    let foreign = Signed::root(&Shape::root());
    let callers = [
        (None, false),
        (Some(identity(&two.root, id(0xbb))), false),
        (Some(identity(&foreign, id(US))), false),
        (Some(identity(&two.root, id(US))), true),
    ];
    for (case, (caller, allowed)) in callers.into_iter().enumerate() {
        for alpn in [&[][..], &[b"postgresql".to_vec()], &[b"h2".to_vec()]] {
            let verifier = Arc::new(PeerVerifier::new(id(THEM), two.root.der.clone()));
            let config = rustls::ClientConfig::builder_with_provider(Arc::clone(provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(verifier);
            let mut config = match &caller {
                None => config.with_no_client_auth(),
                Some(caller) => config
                    .with_client_auth_cert(caller.chain.clone(), caller.key.clone_key())
                    .unwrap(),
            };
            config.alpn_protocols = alpn.to_vec();
            let before = upstream.count();
            let tcp = TcpStream::connect(two.backend).await.unwrap();
            let name = ServerName::from(two.backend.ip());
            let mut stream = TlsConnector::from(Arc::new(config))
                .connect(name, tcp)
                .await
                .unwrap();
            let _ = stream.write_all(b"words").await;
            let _ = stream.flush().await;
            let mut back = [0; 5];
            let answer = timeout(SOON, stream.read_exact(&mut back)).await.expect("an end");
            assert_eq!(
                answer.is_ok() && back == *b"words",
                allowed,
                "case {case}, {alpn:?}"
            );
            assert_eq!(upstream.count() - before, usize::from(allowed), "case {case}");
        }
    }
    two.end().await;
}

#[tokio::test]
async fn another_app_behind_the_name_gets_nothing() {
    let root = Signed::root(&Shape::root());
    let acceptor = Certificate::of(&root, id(0xbb)).acceptor(rustls::ALL_VERSIONS, &[]);
    let impostor = Peer::scripted(acceptor, |mut stream, _| async move {
        let _ = stream.read(&mut [0]).await;
    })
    .await;
    let upstream = Upstream::echo().await;
    let two = Two::start(&[upstream.addr], |ours, _| ours.gateway = impostor.gateway()).await;
    assert!(two.refuses().await);
    assert_eq!(impostor.count(), 0, "no handshake came to an end");
    // Nor one that is the right app under another root.
    let acceptor = Certificate::of(&root, id(THEM)).acceptor(rustls::ALL_VERSIONS, &[]);
    let foreign = Peer::scripted(acceptor, |_, _| async {}).await;
    let wanted = MeshSettings {
        gateway: foreign.gateway(),
        ..two.ours.clone()
    };
    two.us.mesh.update(wanted).await.unwrap();
    assert!(two.refuses().await);
    assert_eq!(foreign.count(), 0);
    two.end().await;
}

/// Where no instance is named, the gateway picks one.
#[tokio::test]
async fn a_forward_leads_to_the_instance_that_it_names() {
    let two = Two::start(&[free_port().await], |_, _| {}).await;
    let acceptor = Certificate::of(&two.root, id(THEM)).acceptor(rustls::ALL_VERSIONS, &[]);
    let gateway = Peer::scripted(acceptor, |mut stream, _| async move {
        let asked = stream.get_ref().1.server_name().unwrap_or("").to_owned();
        stream.write_all(asked.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let _ = stream.read(&mut [0]).await;
    })
    .await;
    let named: InstanceId = "bb000000000000000000000000000000000000cc".parse().unwrap();
    for (instance, host) in [(None, them()), (Some(named), named.to_string())] {
        let mut ours = two.ours.clone();
        ours.gateway = Some(Gateway::Domain {
            domain: "apps.localhost".parse().unwrap(),
            port: gateway.addr.port(),
        });
        ours.forwards.get_mut(&db()).unwrap().instance = instance;
        two.us.mesh.update(ours).await.unwrap();
        let mut asked = String::new();
        let mut client = two.connect().await;
        let reading = client.read_to_string(&mut asked);
        timeout(SOON, reading).await.expect("an end").unwrap();
        assert_eq!(asked, format!("{host}-27017s.apps.localhost"));
    }
    two.end().await;
}

/// Each side may stop to speak and still be spoken to, with more under way than any buffer holds.
#[tokio::test]
async fn the_end_of_one_direction_is_not_the_end_of_the_other() {
    const MUCH: usize = 20 * 1024 * 1024;
    // Reads all before it says a word.
    let sink = Upstream::start(|mut stream| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all).await.unwrap();
        stream.shutdown().await.unwrap();
    })
    .await;
    let two = Two::start(&[sink.addr], |_, _| {}).await;
    let words: Vec<u8> = (0..MUCH).map(|n| (n % 251) as u8).collect();
    let mut client = two.connect().await;
    client.write_all(&words).await.unwrap();
    client.shutdown().await.unwrap();
    let mut back = Vec::new();
    timeout(SOON, client.read_to_end(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert!(back == words, "{} of {MUCH} bytes came back", back.len());
    two.end().await;

    // Says its last word first, and hears ours after that.
    let (heard, mut hears) = watch::channel(Vec::new());
    let source = Upstream::start(move |mut stream| {
        let heard = heard.clone();
        async move {
            stream.write_all(b"last word").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            heard.send_replace(all);
        }
    })
    .await;
    let two = Two::start(&[source.addr], |_, _| {}).await;
    let mut client = two.connect().await;
    let mut said = Vec::new();
    timeout(SOON, client.read_to_end(&mut said))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(said, b"last word");
    client.write_all(b"understood").await.unwrap();
    client.shutdown().await.unwrap();
    let all = timeout(SOON, hears.wait_for(|all| !all.is_empty())).await;
    assert_eq!(all.unwrap().unwrap().as_slice(), b"understood");
    two.end().await;
}

/// Half of something is not to pass for all of it.
#[tokio::test]
async fn what_breaks_off_is_no_end() {
    let upstream = Upstream::start(|mut stream| async move {
        stream.write_all(b"half").await.unwrap();
        let _ = stream.read(&mut [0]).await;
        // Dropped with something unread: a reset.
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    })
    .await;
    let two = Two::start(&[upstream.addr], |_, _| {}).await;
    let mut client = two.connect().await;
    let mut half = [0; 4];
    client.read_exact(&mut half).await.unwrap();
    client.write_all(b"go on").await.unwrap();
    let rest = timeout(SOON, client.read_to_end(&mut Vec::new()))
        .await
        .expect("an end");
    assert!(rest.is_err(), "it was told that this is all: {rest:?}");
    two.end().await;
}

#[tokio::test]
async fn silence_is_cut_and_what_moves_is_not() {
    let idle = Duration::from_millis(800);
    // At either end.
    let ours = |ours: &mut MeshSettings, _: &mut MeshSettings| ours.limits.tcp_idle_timeout = idle;
    let theirs = |_: &mut MeshSettings, theirs: &mut MeshSettings| theirs.limits.tcp_idle_timeout = idle;
    tokio::join!(silence_is_cut(idle, ours), silence_is_cut(idle, theirs));
}

async fn silence_is_cut(idle: Duration, limit: impl FnOnce(&mut MeshSettings, &mut MeshSettings)) {
    let upstream = Upstream::echo().await;
    let two = Two::start(&[upstream.addr], limit).await;
    let mut client = two.connect().await;
    let begin = Instant::now();
    while begin.elapsed() < idle * 3 {
        assert!(echoes(&mut client, b"?").await, "cut after {:?}", begin.elapsed());
        sleep(idle / 20).await;
    }
    let begin = Instant::now();
    let end = timeout(SOON, client.read(&mut [0])).await.expect("cut");
    assert!(end.is_err(), "{end:?}");
    assert!(begin.elapsed() > idle / 2, "cut after {:?}", begin.elapsed());
    two.end().await;
}

#[tokio::test]
async fn there_are_no_more_sessions_than_allowed() {
    for calling in [true, false] {
        let cap = |ours: &mut MeshSettings, theirs: &mut MeshSettings| {
            let capped = if calling { ours } else { theirs };
            capped.limits.connections = 2;
        };
        no_more_than_two(cap).await;
    }
}

async fn no_more_than_two(cap: impl FnOnce(&mut MeshSettings, &mut MeshSettings)) {
    let upstream = Upstream::echo().await;
    let two = Two::start(&[upstream.addr], cap).await;
    let (mut one, mut other) = (two.connect().await, two.connect().await);
    assert!(echoes(&mut one, b"a").await && echoes(&mut other, b"b").await);
    assert!(two.refuses().await);
    drop(one);
    let begin = Instant::now();
    while !echoes(&mut two.connect().await, b"c").await {
        assert!(begin.elapsed() < SOON, "the place of one that ended stays taken");
        sleep(Duration::from_millis(20)).await;
    }
    assert!(echoes(&mut other, b"b").await);
    two.end().await;
}

#[tokio::test]
async fn the_next_address_is_asked_when_one_does_not_answer() {
    let (nobody, upstream) = (free_port().await, Upstream::echo().await);
    let two = Two::start(&[nobody, upstream.addr], |_, _| {}).await;
    for _ in 0..4 {
        assert!(echoes(&mut two.connect().await, b"hello").await);
    }
    assert_eq!(upstream.count(), 4);
    two.end().await;
    let two = Two::start(&[nobody], |_, _| {}).await;
    assert!(two.refuses().await);
    two.end().await;
}

/// Whatever changes, who has a session keeps it, and who comes next finds what is new.
#[tokio::test]
async fn sessions_outlive_every_change() {
    let upstream = Upstream::echo().await;
    let mut two = Two::start(&[upstream.addr], |_, _| {}).await;
    let mut first = two.connect().await;
    assert!(echoes(&mut first, b"before").await);

    two.us.identity.send(Some(identity(&two.root, id(US)))).unwrap();
    two.their_identity
        .send(Some(identity(&two.root, id(THEM))))
        .unwrap();
    assert!(echoes(&mut first, b"renewed").await);
    assert!(echoes(&mut two.connect().await, b"renewed").await);

    let only: AllowedApps = [id(0xcc)].into_iter().collect();
    two.theirs.backends.insert(db(), only);
    two.them.update(two.theirs.clone()).await.unwrap();
    two.them.retire().await;
    assert!(echoes(&mut first, b"struck off").await);
    assert!(two.refuses().await);
    two.theirs.backends.insert(db(), AllowedApps::Any);

    // Both listeners move, and the backend gets another name.
    let old = two.backend;
    let mut tcp = two.theirs.tcp_backends.remove(&db()).unwrap();
    tcp.listen = free_port().await;
    two.ours.gateway = fixed(tcp.listen);
    let renamed: BackendName = "renamed".parse().unwrap();
    two.theirs.tcp_backends.insert(renamed.clone(), tcp);
    two.theirs.backends.insert(renamed, AllowedApps::Any);
    two.them.update(two.theirs.clone()).await.unwrap();
    two.them.retire().await;
    two.forward = free_port().await;
    two.ours.forwards.get_mut(&db()).unwrap().listen = two.forward;
    two.us.mesh.update(two.ours.clone()).await.unwrap();
    two.us.mesh.retire().await;
    assert!(echoes(&mut first, b"moved").await);
    assert!(echoes(&mut two.connect().await, b"moved").await);
    assert!(TcpStream::connect(old).await.is_err(), "gone");

    // One that cannot be had changes nothing.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut bad = two.ours.clone();
    bad.client_listen = free_port().await;
    bad.forwards.get_mut(&db()).unwrap().listen = taken.local_addr().unwrap();
    let error = two.us.mesh.update(bad.clone()).await.unwrap_err().to_string();
    assert!(error.contains("forwards.listen"), "{error}");
    assert!(TcpStream::connect(bad.client_listen).await.is_err());
    assert!(echoes(&mut two.connect().await, b"as before").await);
    assert!(echoes(&mut first, b"as before").await);
    two.end().await;
}

#[tokio::test]
async fn a_drain_lets_sessions_end_and_then_cuts() {
    let upstream = Upstream::echo().await;
    let two = Two::start(&[upstream.addr], |ours, _| {
        ours.drain_timeout = Duration::from_secs(2)
    })
    .await;
    let (mut ends, mut stays) = (two.connect().await, two.connect().await);
    assert!(echoes(&mut ends, b"a").await && echoes(&mut stays, b"b").await);
    let shutdown = tokio::spawn(two.us.mesh.shutdown());
    // From here on nobody is let in.
    let begin = Instant::now();
    while TcpStream::connect(two.forward).await.is_ok() {
        assert!(begin.elapsed() < SOON, "still open");
    }
    assert!(echoes(&mut ends, b"last").await);
    ends.shutdown().await.unwrap();
    assert_eq!(ends.read(&mut [0]).await.unwrap(), 0, "a whole end");
    let end = timeout(SOON, stays.read(&mut [0])).await.expect("cut");
    assert!(end.is_err(), "{end:?}");
    shutdown.await.unwrap();
    two.them.shutdown().await;
}
