//! Steady traffic, and what became of it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::http;

/// Within this time even a busy machine answers some requests.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests that go on until [`Load::stop`].
pub struct Load {
    stop: CancellationToken,
    callers: JoinSet<Tally>,
    answered: watch::Sender<usize>,
}

/// What the requests of a [`Load`] came to.
#[derive(Debug, Default)]
pub struct Tally {
    pub answered: usize,
    /// A sentence for each request that was not answered with 200.
    pub failed: Vec<String>,
}

impl Load {
    /// `callers` at once, each sending the request again as soon as it is answered, every time on a new
    /// connection.
    pub fn start(callers: usize, addr: SocketAddr, request: fn() -> Request<Empty<Bytes>>) -> Self {
        let stop = CancellationToken::new();
        let answered = watch::Sender::new(0);
        let mut set = JoinSet::new();
        for _ in 0..callers {
            let (stop, answered) = (stop.clone(), answered.clone());
            set.spawn(async move {
                let mut tally = Tally::default();
                while !stop.is_cancelled() {
                    match http::send(addr, request()).await {
                        Ok(reply) if reply.status == 200 => {
                            tally.answered += 1;
                            answered.send_modify(|sum| *sum += 1);
                        }
                        Ok(reply) => tally.failed.push(format!("{}: {}", reply.status, reply.text())),
                        Err(error) => tally.failed.push(error.to_string()),
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                tally
            });
        }
        Self {
            stop,
            callers: set,
            answered,
        }
    }

    /// Waits until so many requests have been answered, however slow the machine is.
    pub async fn answered(&self, requests: usize) {
        let mut answered = self.answered.subscribe();
        let enough = answered.wait_for(|sum| *sum >= requests);
        tokio::time::timeout(PATIENCE, enough)
            .await
            .expect("there is traffic")
            .expect("the sender is ours");
    }

    pub async fn stop(self) -> Tally {
        self.stop.cancel();
        let tallies = self.callers.join_all().await;
        tallies.into_iter().fold(Tally::default(), |mut sum, one| {
            sum.answered += one.answered;
            sum.failed.extend(one.failed);
            sum
        })
    }
}
