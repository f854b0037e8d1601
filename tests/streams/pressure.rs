//! Slow readers stop fast writers, and nobody between them hoards.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::chain::Chain;
use crate::common::http::{With, get, open, open_h2, request};
use crate::common::memory::Memory;
use crate::common::{SERVER_APP, run};

const HOST: &str = "flood.local";
const CHUNK: Bytes = Bytes::from_static(&[b'x'; 64 * 1024]);
/// What sockets and buffers on the way may hold of one stream: six TCP connections, each with the kernel's buffers.
const UNDER_WAY: usize = 72 << 20;
/// What a process may need more than at rest, for all the streams together.
const GROWTH_KIB: u64 = 32 * 1024;

/// One stream, seen from both ends.
#[derive(Default)]
struct Stream {
    /// Bytes that its writer got rid of.
    written: AtomicUsize,
    read: AtomicUsize,
}

/// How the client comes to the proxy.
#[derive(Clone, Copy)]
enum Way {
    Nginx,
    Http1,
    Http2,
}

const WAYS: [Way; 3] = [Way::Nginx, Way::Http1, Way::Http2];

/// How fast a reader is: it reads a megabyte, rests, and then goes on with a pause after each chunk.
#[derive(Clone, Copy)]
struct Pace {
    total: usize,
    rest: Duration,
    pause: Duration,
}

#[test]
fn a_slow_reader_stops_the_writer() {
    run(slow_readers(Pace {
        total: 128 << 20,
        rest: Duration::from_millis(1500),
        pause: Duration::ZERO,
    }));
}

#[test]
#[ignore = "minutes; `make soak-streams`"]
fn a_slow_reader_of_a_gigabyte_stops_the_writer() {
    run(slow_readers(Pace {
        total: 1 << 30,
        rest: Duration::from_secs(10),
        pause: Duration::from_millis(3),
    }));
}

async fn slow_readers(pace: Pace) {
    let streams: Arc<Vec<Stream>> = Arc::new((0..2 * WAYS.len()).map(|_| Stream::default()).collect());
    let mut tasks = JoinSet::new();
    let backend = flood(&mut tasks, Arc::clone(&streams), pace).await;
    let chain = Chain::start(&[("flood", HOST, backend)]).await;
    let warm = http_call(&chain, Way::Nginx, get("/warm-up")).await;
    assert_eq!(warm.status(), 200);
    let memory = [
        Memory::watch(&chain.pair.client),
        Memory::watch(&chain.pair.server),
    ];
    let mut work = JoinSet::new();
    let chain = Arc::new(chain);
    for (n, way) in WAYS.into_iter().enumerate() {
        work.spawn(down(Arc::clone(&chain), way, 2 * n, pace, Arc::clone(&streams)));
        work.spawn(up(Arc::clone(&chain), way, 2 * n + 1, pace, Arc::clone(&streams)));
    }
    let mut lag = vec![0; streams.len()];
    while !work.is_empty() {
        for (lag, stream) in lag.iter_mut().zip(streams.iter()) {
            *lag = stream.lag().max(*lag);
        }
        for machine in [&chain.pair.client, &chain.pair.server] {
            assert_eq!(
                files_below(&machine.state.run().join("nginx")),
                0,
                "nginx writes to the disk"
            );
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        while let Some(ended) = work.try_join_next() {
            ended.expect("the stream ends well");
        }
    }
    println!(
        "under way at most, in KiB: {:?}",
        lag.iter().map(|bytes| bytes >> 10).collect::<Vec<_>>()
    );
    for (stream, lag) in streams.iter().zip(lag) {
        assert_eq!(stream.read.load(Ordering::Relaxed), pace.total);
        assert!(
            lag < UNDER_WAY,
            "{lag} bytes were taken from the writer and not given to the reader"
        );
    }
    for watched in memory {
        for (command, before, most) in watched.stop().await {
            println!("{command}: {before} KiB at rest, {most} KiB at most");
            assert!(
                most - before < GROWTH_KIB,
                "{command}: {before} KiB at rest, {most} KiB at most"
            );
        }
    }
}

impl Stream {
    fn lag(&self) -> usize {
        let read = self.read.load(Ordering::Relaxed);
        self.written.load(Ordering::Relaxed).saturating_sub(read)
    }

    /// A body of `total` bytes that notes how far it was taken.
    fn body(streams: Arc<Vec<Self>>, number: usize, total: usize) -> BoxBody<Bytes, Infallible> {
        let chunks = stream::iter((0..total / CHUNK.len()).map(move |_| {
            streams[number].written.fetch_add(CHUNK.len(), Ordering::Relaxed);
            Ok(Frame::data(CHUNK))
        }));
        BodyExt::boxed(StreamBody::new(chunks))
    }

    async fn consume(&self, mut body: Incoming, pace: Pace) {
        let mut rested = false;
        while let Some(frame) = body.frame().await {
            let length = frame
                .expect("the stream goes on")
                .data_ref()
                .map_or(0, Bytes::len);
            let read = self.read.fetch_add(length, Ordering::Relaxed) + length;
            if !rested && read >= 1 << 20 {
                rested = true;
                tokio::time::sleep(pace.rest).await;
            }
            // However small the pieces are that it comes in.
            let chunks = |bytes| bytes / CHUNK.len();
            if chunks(read) > chunks(read - length) && !pace.pause.is_zero() {
                tokio::time::sleep(pace.pause).await;
            }
        }
    }
}

async fn down(chain: Arc<Chain>, way: Way, number: usize, pace: Pace, streams: Arc<Vec<Stream>>) {
    let response = http_call(&chain, way, get(&format!("/{number}"))).await;
    streams[number].consume(response.into_body(), pace).await;
}

async fn up(chain: Arc<Chain>, way: Way, number: usize, pace: Pace, streams: Arc<Vec<Stream>>) {
    let body = Stream::body(streams, number, pace.total);
    let response = http_call(&chain, way, request(Method::POST, &format!("/{number}"), body)).await;
    assert_eq!(response.status(), 200);
}

async fn http_call<B>(chain: &Chain, way: Way, request: Request<B>) -> Response<Incoming>
where
    B: hyper::body::Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: Into<crate::common::http::Error>,
{
    let mut request = request.to_app(SERVER_APP);
    let at = match way {
        Way::Nginx => chain.pair.client.ports.http.addr(),
        Way::Http1 | Way::Http2 => chain.proxy(),
    };
    let stream = TcpStream::connect(at).await.expect("a listener");
    let answer = match way {
        Way::Http2 => {
            let uri = format!("http://{HOST}{}", request.uri().path());
            *request.uri_mut() = uri.parse().expect("a URI");
            open_h2(stream, request).await
        }
        _ => open(stream, request.with("host", HOST)).await,
    };
    answer.expect("an answer")
}

/// `GET /<number>` sends a stream, `POST /<number>` reads one at the given pace.
async fn flood(tasks: &mut JoinSet<()>, streams: Arc<Vec<Stream>>, pace: Pace) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let answer = move |request: Request<Incoming>| {
        let streams = Arc::clone(&streams);
        async move {
            let number = request.uri().path().trim_start_matches('/').parse::<usize>().ok();
            Ok::<_, Infallible>(Response::new(match (number, request.method()) {
                (Some(number), &Method::GET) => Stream::body(streams, number, pace.total),
                (Some(number), _) => {
                    streams[number].consume(request.into_body(), pace).await;
                    Full::default().boxed()
                }
                (None, _) => Full::default().boxed(),
            }))
        }
    };
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(answer.clone());
            connections.spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    addr
}

fn files_below(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).expect("nginx's folder");
    let count = |path: &Path| match path.is_dir() {
        true => files_below(path),
        false => 1,
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| count(&entry.path()))
        .sum()
}
