//! Backends that close kept connections at the worst moment.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::chain::Chain;
use crate::common::http::{With, get, post};
use crate::common::{SERVER_APP, run};
use crate::rotation::Kept;

const HOST: &str = "fickle.local";

/// By path: how often it came.
type Seen = Arc<Mutex<HashMap<String, usize>>>;

/// Answers a few requests on each connection and then closes it: at once, a little later, or with the next request
/// already on its way.
async fn fickle(tasks: &mut JoinSet<()>, seen: Seen) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(converse(stream, Arc::clone(&seen)));
            while connections.try_join_next().is_some() {}
        }
    });
    addr
}

async fn converse(stream: TcpStream, seen: Seen) {
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    for _ in 0..=fastrand::u8(..8) {
        let Some(path) = read_request(&mut stream).await else {
            return;
        };
        *seen.lock().expect("no panic").entry(path).or_default() += 1;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        if stream.get_mut().write_all(answer).await.is_err() {
            return;
        }
    }
    tokio::time::sleep(Duration::from_micros(fastrand::u64(..3000))).await;
}

/// The path of a request without a body, or with one of a known length that is read too.
async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let (mut path, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_ascii_lowercase();
        match line.strip_prefix("content-length: ") {
            Some(number) => length = number.parse().ok()?,
            None if path.is_none() => path = line.split(' ').nth(1).map(str::to_owned),
            None if line.is_empty() => break,
            None => {}
        }
    }
    let mut body = vec![0; length];
    tokio::io::AsyncReadExt::read_exact(stream, &mut body)
        .await
        .ok()?;
    path
}

#[test]
fn a_backend_that_closes_at_the_worst_moment_costs_no_get_and_doubles_no_post() {
    run(async {
        let (mut tasks, seen) = (JoinSet::new(), Seen::default());
        let addr = fickle(&mut tasks, Arc::clone(&seen)).await;
        let chain = Chain::start(&[("fickle", HOST, addr)]).await;
        let mut callers = JoinSet::new();
        for caller in 0..8 {
            let at = chain.proxy();
            callers.spawn(async move {
                let (mut kept, mut refused) = (Kept::new(at), 0);
                for number in 0..250 {
                    let path = format!("/{caller}/{number}");
                    let answer = match number % 2 {
                        0 => kept.call(get(&path).with("host", HOST).to_app(SERVER_APP)).await,
                        _ => {
                            kept.call(post(&path, "once").with("host", HOST).to_app(SERVER_APP))
                                .await
                        }
                    };
                    match answer.expect("our own connection stays") {
                        200 => {}
                        502 if number % 2 == 1 => refused += 1,
                        status => panic!("{path}: {status}"),
                    }
                }
                refused
            });
        }
        let refused: usize = callers.join_all().await.into_iter().sum();
        println!("{refused} of 1000 POSTs were answered with 502");
        let seen = seen.lock().expect("no panic");
        let twice = seen.iter().filter(|(path, count)| is_post(path) && **count > 1);
        assert_eq!(twice.count(), 0, "a POST was sent twice");
    });
}

fn is_post(path: &str) -> bool {
    let number = path.rsplit('/').next().and_then(|n| n.parse::<usize>().ok());
    number.is_some_and(|number| number % 2 == 1)
}
