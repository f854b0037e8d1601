//! A gateway that brings each call to whoever says to be the app, and counts what it is told.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use dstack_vpc::ratls::provider;
use dstack_vpc::spec::Gateway;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::kit::forgeries::{Claim, OK, claims, root};
use crate::kit::*;

/// A refusal in TLS is one alert; with TLS 1.3 there may be a `ChangeCipherSpec` before it.
const ALERT: usize = 64;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad";

/// Each target port leads to the claim with that number.
struct Impostors {
    addr: SocketAddr,
    /// For each connection that ended: the name that was asked for, and the bytes that came after ours.
    ended: Arc<Mutex<Vec<(String, usize)>>>,
}

impl Impostors {
    async fn start(claims: &[Claim], version: &'static rustls::SupportedProtocolVersion) -> Self {
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ByPort::new(claims)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // What is answered before anybody has asked goes out with the handshake itself, where the version can.
        config.send_half_rtt_data = true;
        let acceptor = TlsAcceptor::from(Arc::new(config));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let impostors = Self {
            addr: listener.local_addr().unwrap(),
            ended: Arc::default(),
        };
        let ended = Arc::clone(&impostors.ended);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, ended) = (acceptor.clone(), Arc::clone(&ended));
                tokio::spawn(async move {
                    let tap = Tap::default();
                    let stream = Tapped {
                        stream,
                        tap: Arc::clone(&tap),
                    };
                    let mut name = String::new();
                    let accepting = acceptor.accept_with(stream, |session| {
                        name = session.server_name().unwrap_or_default().to_owned();
                        let _ = io::Write::write_all(&mut session.writer(), ANSWER);
                    });
                    if let Ok(mut stream) = accepting.await {
                        name = stream.get_ref().1.server_name().unwrap_or_default().to_owned();
                        let _ = stream.read_to_end(&mut Vec::new()).await;
                    }
                    let heard = tap.lock().unwrap().heard;
                    ended.lock().unwrap().push((name, heard));
                });
            }
        });
        impostors
    }

    fn gateway(&self) -> Option<Gateway> {
        Some(Gateway::Domain {
            domain: "gw.localhost".parse().unwrap(),
            port: self.addr.port(),
        })
    }

    /// Waits until so many connections ended, and says what the longest of them was told.
    async fn most_heard(&self, connections: usize) -> usize {
        let all = async {
            while self.ended.lock().unwrap().len() < connections {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all)
            .await
            .expect("every connection ends");
        let ended = self.ended.lock().unwrap();
        assert_eq!(ended.len(), connections);
        ended.iter().map(|(_, heard)| *heard).max().unwrap_or_default()
    }
}

/// The certificate by the port in `<app id>-<port>s.<domain>`.
#[derive(Debug)]
struct ByPort(HashMap<String, Arc<CertifiedKey>>);

impl ByPort {
    fn new(claims: &[Claim]) -> Self {
        let named = claims.iter().zip(1u16..).map(|(claim, port)| {
            let key = provider()
                .key_provider
                .load_private_key(claim.key.clone_key())
                .unwrap();
            let name = format!("{}-{port}s.gw.localhost", them());
            (name, Arc::new(CertifiedKey::new(claim.chain.clone(), key)))
        });
        Self(named.collect())
    }
}

impl ResolvesServerCert for ByPort {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.get(hello.server_name()?).cloned()
    }
}

/// What was heard since the first word of ours.
#[derive(Default)]
struct Heard {
    spoken: bool,
    heard: usize,
}

type Tap = Arc<Mutex<Heard>>;

struct Tapped {
    stream: TcpStream,
    tap: Tap,
}

impl AsyncRead for Tapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let mut tap = self.tap.lock().unwrap();
        if tap.spoken {
            tap.heard += buf.filled().len() - before;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.tap.lock().unwrap().spoken = true;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The status and the code of one call over HTTP/2.
async fn call_http2(us: &OurSide, port: u16) -> (u16, String) {
    let stream = TcpStream::connect(us.client).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://service.internal/secret")
        .header("x-dstack-target-app", them())
        .header("x-dstack-target-port", port)
        .body(Full::new(Bytes::from("secret")))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    (status, json["code"].as_str().unwrap_or("-").to_owned())
}

/// Whatever they show, over whatever they speak: they see an alert, and no byte of ours behind the handshake.
#[tokio::test]
async fn impostors_hear_nothing() {
    let root = root();
    let (impostors, genuine): (Vec<_>, Vec<_>) =
        claims(&root).into_iter().partition(|claim| claim.called != OK);
    assert!(!genuine.is_empty());
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let gateway = Impostors::start(&impostors, version).await;
        let us = OurSide::start(&root, settings(gateway.gateway())).await;
        let mut client = Client::connect(us.client).await;
        for (claim, port) in impostors.iter().zip(1u16..) {
            let what = format!("{}, {version:?}", claim.what);
            let headers = format!("x-dstack-target-port: {port}\r\ncontent-length: 6\r\n");
            let answer = client
                .call(&(request("POST", "/secret", &headers) + "secret"))
                .await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (502, claim.called),
                "{what}: {}",
                answer.text()
            );
            assert!(!answer.text().contains("secret"));
            assert_eq!(
                call_http2(&us, port).await,
                (502, claim.called.to_owned()),
                "{what}"
            );
        }
        let heard = gateway.most_heard(2 * impostors.len()).await;
        assert!(heard <= ALERT, "{heard} bytes, {version:?}");
        us.mesh.shutdown().await;
    }
}

/// The other half of the test above: what it counts is there when somebody is believed.
#[tokio::test]
async fn the_genuine_are_told() {
    let root = root();
    let genuine: Vec<_> = claims(&root)
        .into_iter()
        .filter(|claim| claim.called == OK)
        .collect();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let gateway = Impostors::start(&genuine, version).await;
        let us = OurSide::start(&root, settings(gateway.gateway())).await;
        for (claim, port) in genuine.iter().zip(1u16..) {
            let headers = format!("x-dstack-target-port: {port}\r\n");
            let answer = call(us.client, &get("/", &headers)).await;
            // Its answer comes at once: before the question, and then it is none, or just after it.
            let said = (answer.status, answer.code());
            let fair = [(200, "-".to_owned()), (502, "bad_response".to_owned())];
            assert!(
                fair.contains(&said),
                "{}: {said:?}: {}",
                claim.what,
                answer.text()
            );
        }
        us.mesh.shutdown().await;
        assert!(gateway.most_heard(genuine.len()).await > ALERT);
        let ended = gateway.ended.lock().unwrap();
        assert!(
            ended
                .iter()
                .any(|(name, _)| *name == format!("{}-1s.gw.localhost", them()))
        );
    }
}
