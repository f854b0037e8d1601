//! Requests that two parsers may read in two ways, as data; and a witness that notes what of them arrives.
//!
//! Each is sent on a connection of its own, all at once, so that they share the pooled connections behind the proxy.

#![allow(unreachable_pub)]

mod list;
mod witness;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use May::{NotOurs, Nothing, Once, Perhaps};
pub use witness::Witness;

/// What may arrive behind the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum May {
    /// No whole request.
    Nothing,
    /// Exactly one, with this body.
    Once(&'static str),
    /// One with this body, or none: parsers differ, and both are right.
    Perhaps(&'static str),
    /// Nothing through our own parser. nginx takes more, and passes it on clean.
    NotOurs,
}

pub struct Attack {
    pub name: String,
    pub bytes: Vec<u8>,
    pub may: May,
}

/// Sends every attack to `door` at once and compares what the client was told with what arrived: each at most once, whole
/// and clean, and answered exactly when it arrived. Returns what is wrong.
pub async fn mount(door: SocketAddr, is_ours: bool, app: &str, witness: &Witness) -> Vec<String> {
    let attacks = list::all(app);
    let told = attacks
        .iter()
        .map(|attack| strike(door, &attack.bytes, Duration::from_secs(2)));
    let told = futures_util::future::join_all(told).await;
    let (requests, mut wrong) = witness.seen();
    let mut by_path: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (path, body) in &requests {
        by_path.entry(path).or_default().push(body);
    }
    for (number, (attack, told)) in attacks.iter().zip(&told).enumerate() {
        let arrived = by_path
            .remove(format!("/attack/{number}").as_str())
            .unwrap_or_default();
        let fits = match (attack.may, arrived.as_slice()) {
            (Nothing | Perhaps(_) | NotOurs, []) => true,
            (NotOurs, [_]) => !is_ours,
            (Once(body) | Perhaps(body), [one]) => *one == body,
            _ => false,
        };
        let good = told.iter().filter(|status| *status == "200").count();
        if !fits || good != arrived.len() {
            wrong.push(format!(
                "{number} {}: {:?}, arrived {arrived:?}, told {told:?}",
                attack.name, attack.may
            ));
        }
    }
    wrong.extend(by_path.keys().map(|path| format!("{path} was never sent")));
    wrong
}

/// What a client is told: the status of each answer, as far as it came in `patience`.
async fn strike(door: SocketAddr, bytes: &[u8], patience: Duration) -> Vec<String> {
    let mut stream = TcpStream::connect(door).await.expect("the proxy's door");
    let (mut read, mut write) = stream.split();
    let mut answer = Vec::new();
    let exchange = async {
        // It may be refused before all was written.
        let (_, _) = tokio::join!(write.write_all(bytes), read.read_to_end(&mut answer));
    };
    // What is left open waits for more of the request.
    let _ = tokio::time::timeout(patience, exchange).await;
    let text = String::from_utf8_lossy(&answer);
    let answers = text.split("HTTP/1.1 ").skip(1);
    answers.map(|answer| answer.chars().take(3).collect()).collect()
}
