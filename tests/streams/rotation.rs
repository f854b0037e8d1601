//! Certificates, allow-lists and listeners change while 64 connections run.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::chain::Chain;
use crate::common::http::{Error, With, request};
use crate::common::machine::{EDIT, Machine, front};
use crate::common::pair::REPORTS;
use crate::common::ports::Port;
use crate::common::{CLIENT_APP, SERVER_APP, poll, run};
use crate::grpc;
use crate::service::{Chat, HOST, Text};
use crate::socket::renew;

/// A client that keeps its connection, as most do: it opens another when the server closed this one between two
/// requests or announced that it will.
pub(crate) struct Kept {
    at: watch::Receiver<SocketAddr>,
    sender: Option<SendRequest<Full<Bytes>>>,
    _drivers: JoinSet<()>,
}

impl Kept {
    pub(crate) fn new(at: SocketAddr) -> Self {
        Self::following(watch::channel(at).1)
    }

    /// Goes wherever the address leads now.
    fn following(at: watch::Receiver<SocketAddr>) -> Self {
        Self {
            at,
            sender: None,
            _drivers: JoinSet::new(),
        }
    }

    /// The status of the whole answer.
    pub(crate) async fn call<B>(&mut self, request: Request<B>) -> Result<u16, Error>
    where
        B: hyper::body::Body,
        B::Error: std::fmt::Debug,
    {
        if self.at.has_changed().unwrap_or(false) {
            self.sender = None;
        }
        let alive = match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !alive {
            let at = *self.at.borrow_and_update();
            let stream = TcpStream::connect(at).await?;
            stream.set_nodelay(true)?;
            let (sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            while self._drivers.try_join_next().is_some() {}
            self._drivers.spawn(async move { drop(driver.await) });
            self.sender = Some(sender);
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.expect("a body in memory").to_bytes();
        let answer = self.exchange(Request::from_parts(head, Full::new(body))).await;
        if answer.is_err() {
            self.sender = None;
        }
        answer
    }

    async fn exchange(&mut self, mut request: Request<Full<Bytes>>) -> Result<u16, Error> {
        let host = hyper::header::HeaderValue::from_static("app.local");
        request.headers_mut().entry("host").or_insert(host);
        let sender = self.sender.as_mut().ok_or("no connection")?;
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        response.into_body().collect().await?;
        Ok(status)
    }
}

/// What a group of clients has seen.
#[derive(Debug, Default)]
struct Tally {
    answered: usize,
    refused: Vec<u16>,
    cut: Vec<String>,
}

/// Clients that call without a pause until the load is dropped.
struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Tally>,
}

impl Load {
    fn start(count: usize, at: &watch::Receiver<SocketAddr>, method: Method) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for _ in 0..count {
            let (stop, method) = (Arc::clone(&stop), method.clone());
            let mut kept = Kept::following(at.clone());
            clients.spawn(async move {
                let mut tally = Tally::default();
                while !stop.load(Ordering::Relaxed) {
                    let call = request(method.clone(), "/load", Full::<Bytes>::default());
                    match kept.call(call.to_app(SERVER_APP)).await {
                        Ok(200) => tally.answered += 1,
                        Ok(status) => tally.refused.push(status),
                        Err(error) => tally.cut.push(format!("{error}: {:?}", error.source())),
                    }
                }
                tally
            });
        }
        Self { stop, clients }
    }

    async fn end(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        for tally in self.clients.join_all().await {
            sum.answered += tally.answered;
            sum.refused.extend(tally.refused);
            sum.cut.extend(tally.cut);
        }
        sum
    }
}

/// Unary gRPC calls, one after the other on a channel.
async fn chat(mut at: watch::Receiver<SocketAddr>, stop: Arc<AtomicBool>) -> Tally {
    let mut tally = Tally::default();
    let now = |at: &mut watch::Receiver<SocketAddr>| *at.borrow_and_update();
    let mut client = grpc::client(now(&mut at), HOST).await;
    while !stop.load(Ordering::Relaxed) {
        if at.has_changed().unwrap_or(false) {
            client = grpc::client(now(&mut at), HOST).await;
        }
        let call = grpc::to(SERVER_APP, "hello".to_owned());
        let method = grpc::method("Echo");
        match grpc::ready(&mut client).await.unary(call, method, Text).await {
            Ok(_) => tally.answered += 1,
            Err(error) => tally.cut.push(error.to_string()),
        }
    }
    tally
}

/// What changes when another certificate is shown: nginx needs another generation for it.
pub(crate) async fn shown(machine: &Machine) -> Option<PathBuf> {
    if front() == "nginx" {
        return Some(std::fs::read_link(machine.state.current()).expect("a live generation"));
    }
    let status = machine.status().await?;
    Some(status.identity?.folder.into())
}

#[test]
fn nothing_fails_while_everything_changes() {
    run(changes(Duration::from_secs(8)));
}

#[test]
#[ignore = "ten minutes; `make soak-streams`"]
fn nothing_fails_for_ten_minutes_while_everything_changes() {
    run(changes(Duration::from_secs(600)));
}

async fn changes(time: Duration) {
    let mut tasks = JoinSet::new();
    let (_, grpc) = Chat::start(&mut tasks).await;
    let chain = Chain::start(&[("grpc", HOST, grpc)]).await;
    let pair = &chain.pair;
    let (moved, built_in) = watch::channel(chain.proxy());
    let nginx = watch::channel(pair.client.ports.http.addr()).1;
    let loads = [
        ("GET to the proxy", Load::start(24, &built_in, Method::GET)),
        ("POST to the proxy", Load::start(8, &built_in, Method::POST)),
        ("GET through nginx", Load::start(24, &nginx, Method::GET)),
        ("POST through nginx", Load::start(8, &nginx, Method::POST)),
    ];
    let stop = Arc::new(AtomicBool::new(false));
    let mut chats = JoinSet::new();
    for _ in 0..4 {
        chats.spawn(chat(built_in.clone(), Arc::clone(&stop)));
    }
    let end = Instant::now() + time;
    let mut rounds = 0;
    let mut ports = vec![Port::reserve(), Port::reserve()];
    let (mut client_listen, mut auth_listen) = (
        pair.client.ports.client.to_string(),
        pair.server.ports.auth.to_string(),
    );
    while Instant::now() < end {
        renew(&pair.server).await;
        renew(&pair.client).await;

        let open = format!("server_name = \"{REPORTS}\"\n");
        let list = format!("{open}allowed_apps = [\"{CLIENT_APP}\"]\n");
        let status = pair.server.edit(|toml| match toml.contains(&list) {
            true => toml.replace(&list, &open),
            false => toml.replace(&open, &list),
        });
        status.await;

        let next = Port::reserve();
        let to = next.to_string();
        let saved = pair.client.save(|toml| toml.replace(&client_listen, &to)).await;
        // The old one serves until nginx has followed; other clients have as long.
        let open = poll(EDIT, async || TcpStream::connect(next.addr()).await.ok());
        open.await.expect("the new address opens");
        moved.send(next.addr()).expect("clients");
        pair.client.settled(&saved).await;
        client_listen = to;
        ports.push(next);

        let next = Port::reserve();
        let to = next.to_string();
        pair.server.edit(|toml| toml.replace(&auth_listen, &to)).await;
        auth_listen = to;
        ports.push(next);
        rounds += 1;
    }
    let mut tallies = Vec::new();
    for (what, load) in loads {
        tallies.push((what, load.end().await));
    }
    stop.store(true, Ordering::Relaxed);
    for tally in chats.join_all().await {
        tallies.push(("gRPC to the proxy", tally));
    }
    println!(
        "{rounds} rounds, {} connections at the gateway",
        chain.gateway.opened()
    );
    for (what, tally) in tallies {
        let (refused, cut) = (&tally.refused, &tally.cut);
        println!(
            "{what}: {} answered, {refused:?} refused, cut: {cut:?}",
            tally.answered
        );
        assert!(tally.answered > 0, "{what}");
        // A POST (gRPC is one) can meet the close of a connection that had nothing to do when its end was announced, and
        // so can whoever calls nginx. It has no second chance; without the announcement it happens many times a round.
        let bad_luck = if what == "GET to the proxy" { 0 } else { rounds };
        assert!(
            refused.len() + cut.len() <= bad_luck,
            "{what}: {refused:?} {cut:?}"
        );
    }
}
