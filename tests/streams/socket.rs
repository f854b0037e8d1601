//! WebSockets that outlive many reloads of both fronts.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use crate::chain::Chain;
use crate::common::machine::Machine;
use crate::common::{SERVER_APP, poll, run};
use crate::rotation::shown;

/// How many messages are on their way at once, so that a cut would find some in each direction.
const UNDER_WAY: u64 = 16;

#[test]
fn a_websocket_outlives_reloads() {
    run(outlives(Duration::from_secs(10)));
}

#[test]
#[ignore = "ten minutes; `make soak-streams`"]
fn a_websocket_outlives_ten_minutes_of_reloads() {
    run(outlives(Duration::from_secs(600)));
}

/// A new certificate makes nginx reload; here one comes every second, on either machine in turn.
async fn outlives(time: Duration) {
    // What a stop would leave them is far less than they live.
    let short = |toml: &mut String| *toml = toml.replace("[mesh]\n", "[mesh]\ndrain_timeout = \"1s\"\n");
    let chain = Chain::start_with(&[], |client, server| {
        short(&mut client.toml);
        short(&mut server.toml);
    })
    .await;
    let echo = tokio::spawn(echo(chain.pair.client.connect().await, time));
    let end = Instant::now() + time;
    let mut reloads = 0;
    for machine in [&chain.pair.client, &chain.pair.server].into_iter().cycle() {
        if Instant::now() > end {
            break;
        }
        renew(machine).await;
        reloads += 1;
    }
    let echoed = echo.await.expect("the socket lives");
    println!("{echoed} messages there and back, {reloads} reloads");
    assert!(reloads >= time.as_secs() / 3, "{reloads} reloads");
    assert!(echoed > time.as_secs() * 20, "{echoed} messages");
}

/// Has a machine fetch a new certificate, and waits until its front shows it.
pub(crate) async fn renew(machine: &Machine) {
    let before = shown(machine).await;
    machine.ask_for_renewal().await;
    let live = poll(Duration::from_secs(20), async || {
        (shown(machine).await != before).then_some(())
    });
    live.await.expect("the new certificate goes live");
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// Sends numbered messages and wants each of them back, in order.
async fn echo(stream: tokio::net::TcpStream, time: Duration) -> u64 {
    let mut request = "ws://app.local/ws".into_client_request().expect("a request");
    let target = SERVER_APP.parse().expect("an app id");
    request.headers_mut().insert("x-dstack-target-app", target);
    let (socket, _) = tokio_tungstenite::client_async(request, stream)
        .await
        .expect("a socket");
    let (mut sink, mut source) = socket.split();
    let end = Instant::now() + time + Duration::from_secs(2);
    let (mut sent, mut heard) = (0_u64, 0_u64);
    while heard < sent || Instant::now() < end {
        while sent < heard + UNDER_WAY && Instant::now() < end {
            sink.send(message(sent)).await.expect("the socket takes it");
            sent += 1;
        }
        let next = tokio::time::timeout(Duration::from_secs(10), source.next());
        let next = next.await.unwrap_or_else(|_| panic!("message {heard} is lost"));
        let next = next.unwrap_or_else(|| panic!("the socket was closed after {heard}"));
        assert!(next.expect("a message") == message(heard), "message {heard}");
        heard += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    heard
}

fn message(number: u64) -> Message {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(8 + (number as usize * 37) % 3000, number as u8);
    Message::Binary(Bytes::from(bytes))
}
