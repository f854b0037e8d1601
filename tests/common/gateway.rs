//! A dstack gateway for tests: routes by the TLS name `<id>[-<port>[s]].<domain>`, passing TLS through with the `s` and
//! ending it without, tells its domain at `/prpc/Info`, and resolves its names.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::Acceptor;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::netns::{Namespace, Switch};

pub const DOMAIN: &str = "apps.vpc.test";
/// These names lead to loopback without a resolver.
const LOCAL_DOMAIN: &str = "apps.localhost";

/// At the switch's address, on ports 443 (apps), 9202 (`/prpc/Info`) and 53 (names). Dropping it ends it.
pub struct Gateway {
    shared: Arc<Shared>,
    /// By address: what serves the apps there.
    fronts: Mutex<HashMap<Ipv4Addr, JoinSet<()>>>,
    _tasks: JoinSet<()>,
}

struct Shared {
    /// By app id or instance id: the hosts, the first that answers is taken.
    routes: Mutex<HashMap<String, Vec<Ipv4Addr>>>,
    /// What its names lead to.
    address: Mutex<Ipv4Addr>,
    /// By address: connections for apps so far.
    opened: Mutex<HashMap<Ipv4Addr, usize>>,
    inside: Arc<Namespace>,
    tls: TlsAcceptor,
}

impl Gateway {
    /// Writes the certificate of the authority that signed its own to `ca_file`.
    pub fn start(switch: &Switch, ca_file: &Path) -> Self {
        let inside = switch.inside().clone();
        let shared = Arc::new(Shared {
            routes: Mutex::default(),
            address: Mutex::new(Switch::ADDRESS),
            opened: Mutex::default(),
            inside: inside.clone(),
            tls: certified(ca_file),
        });
        let at = |port| SocketAddr::from((Switch::ADDRESS, port));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(
            inside.listen(at(9202)).expect("port 9202"),
            shared.clone(),
            info,
        ));
        tasks.spawn(resolve(inside.udp(at(53)).expect("port 53"), shared.clone()));
        let gateway = Self {
            shared,
            fronts: Mutex::default(),
            _tasks: tasks,
        };
        gateway.move_to(Switch::ADDRESS);
        gateway
    }

    /// Serves the apps at this address of the switch, too, and from now on the names lead there.
    pub fn move_to(&self, address: Ipv4Addr) {
        let listener = self
            .shared
            .inside
            .listen((address, 443).into())
            .expect("port 443");
        let mut front = JoinSet::new();
        front.spawn(serve(listener, self.shared.clone(), apps));
        self.fronts
            .lock()
            .expect("no panic meanwhile")
            .insert(address, front);
        *self.shared.address.lock().expect("no panic meanwhile") = address;
    }

    /// Ends what it serves for the apps at this address, open connections too.
    pub fn close(&self, address: Ipv4Addr) {
        self.fronts.lock().expect("no panic meanwhile").remove(&address);
    }

    /// Connections for apps that came to this address so far.
    pub fn opened(&self, address: Ipv4Addr) -> usize {
        let opened = self.shared.opened.lock().expect("no panic meanwhile");
        opened.get(&address).copied().unwrap_or(0)
    }

    /// From now on names with this app or instance id lead to that host, too.
    pub fn route(&self, id: &str, host: Ipv4Addr) {
        let mut routes = self.shared.routes.lock().expect("no panic meanwhile");
        routes.entry(id.to_owned()).or_default().push(host);
    }
}

/// Accepts for ever; the connections end with the listener.
async fn serve<S, F>(listener: TcpListener, shared: Arc<S>, speak: fn(TcpStream, Arc<S>) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(speak(stream, shared.clone()));
                }
            }
            // A failure is a closed connection, as with the real one.
            Some(_) = connections.join_next() => {}
        }
    }
}

/// A gateway without a network of its own: every app is on this host, and of a name only the port counts.
pub struct LocalGateway {
    addr: SocketAddr,
    _task: JoinSet<()>,
}

impl LocalGateway {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let mut task = JoinSet::new();
        task.spawn(serve(listener, Arc::new(()), |stream, _| on_loopback(stream)));
        Self { addr, _task: task }
    }

    /// As `dstack.gateway_domain` has it.
    pub fn domain(&self) -> String {
        format!("{LOCAL_DOMAIN}:{}", self.addr.port())
    }
}

async fn on_loopback(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (name, mut hello) = client_hello(&mut stream).await?;
    let target = Target::parse(&name, LOCAL_DOMAIN).filter(|target| target.pass_through);
    let port = target.ok_or(io::ErrorKind::AddrNotAvailable)?.port;
    let mut upstream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    upstream.set_nodelay(true)?;
    upstream.write_all_buf(&mut hello).await?;
    copy_bidirectional(&mut stream, &mut upstream).await?;
    Ok(())
}

async fn apps(mut stream: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if let std::net::IpAddr::V4(at) = stream.local_addr()?.ip() {
        let mut opened = shared.opened.lock().expect("no panic meanwhile");
        *opened.entry(at).or_default() += 1;
    }
    let (name, hello) = client_hello(&mut stream).await?;
    let target = Target::parse(&name, DOMAIN).ok_or(io::ErrorKind::AddrNotAvailable)?;
    let hosts = {
        let routes = shared.routes.lock().expect("no panic meanwhile");
        routes.get(&target.id).cloned().unwrap_or_default()
    };
    let mut upstream = first_of(&hosts, target.port, &shared.inside).await?;
    upstream.set_nodelay(true)?;
    let (read, write) = stream.split();
    // What was read to find the name still has to be read by whoever it is for.
    let mut stream = tokio::io::join(hello.chain(read), write);
    match target.pass_through {
        true => copy_bidirectional(&mut stream, &mut upstream).await?,
        false => copy_bidirectional(&mut shared.tls.accept(stream).await?, &mut upstream).await?,
    };
    Ok(())
}

async fn first_of(hosts: &[Ipv4Addr], port: u16, inside: &Namespace) -> io::Result<TcpStream> {
    let limit = std::time::Duration::from_secs(5);
    for host in hosts {
        let connecting = inside.connect((*host, port).into());
        if let Ok(Ok(stream)) = tokio::time::timeout(limit, connecting).await {
            return Ok(stream);
        }
    }
    Err(io::ErrorKind::HostUnreachable.into())
}

/// The name that a TLS client asks for, and all that was read to find it.
async fn client_hello(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(String, io::Cursor<Vec<u8>>)> {
    let mut acceptor = Acceptor::default();
    let mut seen = Vec::new();
    loop {
        let start = seen.len();
        if stream.read_buf(&mut seen).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        acceptor.read_tls(&mut &seen[start..])?;
        let no_tls = |_| io::Error::from(io::ErrorKind::InvalidData);
        if let Some(accepted) = acceptor.accept().map_err(no_tls)? {
            let name = accepted.client_hello().server_name().map(str::to_owned);
            return Ok((name.ok_or(io::ErrorKind::InvalidData)?, io::Cursor::new(seen)));
        }
    }
}

async fn info(stream: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    let mut stream = shared.tls.accept(stream).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = match head.starts_with(b"GET /prpc/Info ") {
        true => (
            "200 OK",
            format!(r#"{{"base_domain":"{DOMAIN}","external_port":443}}"#),
        ),
        false => ("404 Not Found", String::new()),
    };
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// Where `<id>[-<port>[s]].<domain>` leads.
struct Target {
    id: String,
    port: u16,
    pass_through: bool,
}

impl Target {
    fn parse(name: &str, domain: &str) -> Option<Self> {
        let label = name.strip_suffix(domain)?.strip_suffix('.')?;
        let (id, port) = label.split_once('-').unwrap_or((label, "80"));
        let (port, pass_through) = match port.strip_suffix('s') {
            Some("") => ("443", true),
            Some(port) => (port, true),
            None => (port, false),
        };
        Some(Self {
            id: id.to_owned(),
            port: port.parse().ok()?,
            pass_through,
        })
    }
}

/// A certificate for every name below [`DOMAIN`], from an authority made for it.
fn certified(ca_file: &Path) -> TlsAcceptor {
    let key = || KeyPair::generate().expect("a key");
    let ca_key = key();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "gateway test CA");
    let root = ca.self_signed(&ca_key).expect("a certificate");
    std::fs::write(ca_file, root.pem()).expect("the CA file");

    let leaf_key = key();
    let names = [DOMAIN.to_owned(), format!("*.{DOMAIN}")];
    let leaf = CertificateParams::new(names)
        .expect("names")
        .signed_by(&leaf_key, &Issuer::new(ca, ca_key))
        .expect("a certificate");
    let key = PrivateKeyDer::try_from(leaf_key.serialize_der()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(leaf)], key)
        .expect("a certificate");
    TlsAcceptor::from(Arc::new(config))
}

/// Answers every question for a name in [`DOMAIN`] with the gateway's address, any other with "there is none".
async fn resolve(socket: UdpSocket, shared: Arc<Shared>) {
    let mut buffer = [0; 512];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let address = *shared.address.lock().expect("no panic meanwhile");
        if let Some(answer) = dns_answer(&buffer[..length], address) {
            let _ = socket.send_to(&answer, client).await;
        }
    }
}

/// RFC 1035, section 4: one question, at most one answer.
fn dns_answer(query: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        let label = query.get(at + 1..at + 1 + length)?;
        at += 1 + length;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
    }
    let question = query.get(HEADER..at + 4)?;
    let is_ours = labels.join(".").ends_with(DOMAIN);
    let asks_ipv4 = question.ends_with(&[0, 1, 0, 1]);
    let answers = u8::from(is_ours && asks_ipv4);
    let code = if is_ours { 0 } else { 3 };
    let mut answer = Vec::from(&query[..2]);
    // A response, recursion offered; one question.
    answer.extend([0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0]);
    answer.extend(question);
    if answers == 1 {
        // The name of the question, type A, class IN, 60 seconds, 4 bytes.
        answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
