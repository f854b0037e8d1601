//! What the keeper makes of keys that are lost, revoked or old, and of a Headscale that comes and goes.

use std::net::SocketAddr;
use std::time::Duration;

use dstack_vpc::headscale::{Access, Headscale, HeadscaleError};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::WANTED;
use super::common::poll;
use super::place::{PATIENCE, Place};

/// A key is in use, it is another than `former`, and Headscale knows no more than this one.
async fn until_replaced(place: &Place, headscale: &Headscale, former: &str) {
    let replaced = poll(PATIENCE, async || {
        let key = place.key();
        let is_other = !key.is_empty() && key != former && place.api_keys() == 1;
        (is_other && headscale.join_key(&WANTED).await.is_ok()).then_some(())
    });
    let Some(()) = replaced.await else {
        panic!(
            "{:?}, {} keys\n{}",
            *headscale.trouble().borrow(),
            place.api_keys(),
            place.log()
        );
    };
}

#[tokio::test]
async fn a_lost_key_is_made_again_and_the_former_one_deleted() {
    let place = Place::running().await;
    for junk in [None, Some(""), Some("not a key\n")] {
        let headscale = Headscale::start(Some(place.access()));
        headscale.join_key(&WANTED).await.unwrap();
        headscale.close().await;
        let former = place.key();
        match junk {
            None => std::fs::remove_file(place.access().key_file).unwrap(),
            Some(junk) => std::fs::write(place.access().key_file, junk).unwrap(),
        }
        let headscale = Headscale::start(Some(place.access()));
        until_replaced(&place, &headscale, &former).await;
        headscale.close().await;
    }
}

#[tokio::test]
async fn a_revoked_key_is_replaced_while_nodes_register() {
    let place = Place::running().await;
    let headscale = Headscale::start(Some(place.access()));
    headscale.join_key(&WANTED).await.unwrap();
    let former = place.key();
    let listed = place.cli(&["apikeys", "list"])[0]["prefix"]
        .as_str()
        .unwrap()
        .to_owned();
    let bare = listed.trim_start_matches("hskey-api-").trim_end_matches("-***");
    place.cli(&["apikeys", "expire", "--prefix", bare]);
    // The very next call finds out, and nobody sees it fail.
    headscale.join_key(&WANTED).await.unwrap();
    until_replaced(&place, &headscale, &former).await;
}

#[tokio::test]
async fn a_key_is_renewed_before_it_expires() {
    let mut place = Place::new();
    place.spec.headscale.api_key_lifetime = Duration::from_secs(6);
    place.start().await;
    let headscale = Headscale::start(Some(place.access()));
    headscale.join_key(&WANTED).await.unwrap();
    let trouble = headscale.trouble();
    let former = place.key();
    until_replaced(&place, &headscale, &former).await;
    assert!(!trouble.has_changed().unwrap(), "it was never in trouble");
}

#[tokio::test]
async fn a_shorter_lifetime_counts_at_once_for_the_key_that_is_there() {
    let mut place = Place::running().await;
    let headscale = Headscale::start(Some(place.access()));
    headscale.join_key(&WANTED).await.unwrap();
    let former = place.key();
    place.spec.headscale.api_key_lifetime = Duration::from_secs(6);
    headscale.update(Some(place.access()));
    until_replaced(&place, &headscale, &former).await;
}

#[tokio::test]
async fn a_replaced_database_gets_its_user_and_key() {
    let mut place = Place::running().await;
    let headscale = Headscale::start(Some(place.access()));
    headscale.join_key(&WANTED).await.unwrap();
    let former = place.key();
    place.stop();
    place.wipe_database();
    place.start().await;
    headscale.join_key(&WANTED).await.unwrap();
    until_replaced(&place, &headscale, &former).await;
    assert_eq!(place.cli(&["users", "list"])[0]["name"], "default");
}

/// It has its port and its connections, and answers nothing. Time is only counted: a clock that stands goes on to the next
/// timer as soon as there is nothing else to do.
#[tokio::test]
async fn one_that_hangs_is_noticed_within_a_quarter_of_a_minute() {
    let place = Place::running().await;
    let headscale = Headscale::start(Some(place.access()));
    headscale.join_key(&WANTED).await.unwrap();
    let mut trouble = headscale.trouble();
    place.signal(Signal::SIGSTOP);
    tokio::time::pause();
    let begun = Instant::now();
    let told = trouble.wait_for(Option::is_some).await.unwrap().clone();
    let took = begun.elapsed();
    tokio::time::resume();
    place.signal(Signal::SIGCONT);
    assert!(told.unwrap().contains("took longer"));
    assert!(took <= Duration::from_secs(16), "{took:?}");
    let again = poll(PATIENCE, async || headscale.join_key(&WANTED).await.ok());
    assert!(again.await.is_some(), "{}", place.log());
}

#[tokio::test]
async fn a_user_that_was_deleted_is_made_again() {
    let place = Place::running().await;
    let headscale = Headscale::start(Some(place.access()));
    // Its keys go with a user in some versions and keep it from going in others: none is made before.
    headscale.nodes().await.unwrap();
    let id = place.cli(&["users", "list"])[0]["id"].to_string();
    place.cli(&[
        "users",
        "destroy",
        "--identifier",
        id.trim_matches('"'),
        "--force",
    ]);
    headscale.join_key(&WANTED).await.unwrap();
    let users = place.cli(&["users", "list"]);
    assert_ne!(users[0]["id"].to_string(), id, "{users}");
}

#[tokio::test]
async fn headscale_may_come_late_and_restart() {
    let mut place = Place::new();
    let headscale = Headscale::start(Some(place.access()));
    let mut trouble = headscale.trouble();
    let told = trouble.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(told.contains("does not answer"), "{told}");
    place.start().await;
    headscale.join_key(&WANTED).await.unwrap();
    assert_eq!(*trouble.borrow_and_update(), None);

    place.stop();
    let (made, listed, ()) = tokio::join!(headscale.join_key(&WANTED), headscale.nodes(), place.start());
    made.unwrap();
    listed.unwrap();
    assert_eq!(place.api_keys(), 1);

    place.stop();
    headscale.update(None);
    let error = headscale.nodes().await.unwrap_err();
    assert!(matches!(error, HeadscaleError::NotHere), "{error}");
    trouble.wait_for(Option::is_none).await.unwrap();
}

#[tokio::test]
async fn what_is_not_headscale_is_told_and_costs_no_keys() {
    let place = Place::running().await;
    let headscale = Headscale::start(Some(place.access()));
    headscale.join_key(&WANTED).await.unwrap();
    headscale.close().await;
    let former = place.key();

    for (answer, words) in [
        ("200 OK", "<html>", "it is not JSON"),
        (
            "200 OK",
            "{\"users\":[{\"id\":\"x\",\"name\":\"default\"}]}",
            "a field is missing",
        ),
        ("200 OK", "[]", "a field is missing"),
        ("503 Busy", "later", "later (status 503)"),
        ("302 Found", "", "it did not say why (status 302)"),
        (
            "401 Unauthorized",
            "Unauthorized",
            "Is another program on that port?",
        ),
    ]
    .map(|(status, body, words)| ((status, body), words))
    {
        let stranger = Stranger::start(answer).await;
        let access = Access {
            listen: stranger.addr,
            ..place.access()
        };
        let headscale = Headscale::start(Some(access));
        let mut trouble = headscale.trouble();
        let told = trouble.wait_for(|trouble| trouble.as_ref().is_some_and(|told| told.contains(words)));
        let told = tokio::time::timeout(PATIENCE, told).await;
        assert!(told.is_ok(), "{answer:?}: {:?}", *headscale.trouble().borrow());
        headscale.close().await;
    }
    // A single one, for the stranger who said 401 to a good key.
    let keys = place.api_keys();
    assert!(keys <= 2, "{keys} keys");
    let headscale = Headscale::start(Some(place.access()));
    until_replaced(&place, &headscale, &former).await;
}

/// Answers everything but `/health` with the same.
struct Stranger {
    addr: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Stranger {
    async fn start((status, body): (&'static str, &'static str)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let read = stream.read(&mut request).await.unwrap_or(0);
                let (status, body) = match request[..read].starts_with(b"GET /health") {
                    true => ("200 OK", "{}"),
                    false => (status, body),
                };
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { addr, task }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.task.abort();
    }
}
