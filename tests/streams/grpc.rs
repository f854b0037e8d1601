//! gRPC between two apps, every kind of call, with its metadata, trailers and errors.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::chain::Chain;
use crate::common::pair::PRIVATE;
use crate::common::{CLIENT_APP, OTHER_APP, SERVER_APP, run};
use crate::service::{Chat, HOST, Text, failure};

/// No message is under way for longer.
const SOON: Duration = Duration::from_secs(20);

/// A client as an app would have it: one channel to its local proxy.
pub(crate) async fn client(proxy: SocketAddr, host: &str) -> Grpc<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{proxy}")).expect("an address");
    let origin = format!("http://{host}").parse().expect("an origin");
    let channel = endpoint.origin(origin).connect().await.expect("the proxy");
    Grpc::new(channel)
}

/// What generated code does before each call.
pub(crate) async fn ready(client: &mut Grpc<Channel>) -> &mut Grpc<Channel> {
    client.ready().await.expect("the proxy");
    client
}

pub(crate) fn to<T>(app: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let target = app.parse().expect("an app id");
    request.metadata_mut().insert("x-dstack-target-app", target);
    request
}

pub(crate) fn method(name: &str) -> PathAndQuery {
    format!("/vpc.Chat/{name}").parse().expect("a path")
}

/// A stream lives on where it was, and what is called meanwhile finds the new configuration.
#[test]
fn a_stream_outlives_a_reload_and_holds_no_other_call_back() {
    run(async {
        let mut tasks = JoinSet::new();
        let (_, addr) = Chat::start(&mut tasks).await;
        let chain = Chain::start(&[("grpc", HOST, addr)]).await;
        let mut client = client(chain.proxy(), HOST).await;
        let (say, said) = mpsc::unbounded_channel();
        say.send("0".to_owned()).expect("a listener");
        let said = to(SERVER_APP, UnboundedReceiverStream::new(said));
        let reply = ready(&mut client)
            .await
            .streaming(said, method("Echo"), Text)
            .await;
        let mut replies = reply.expect("an answer").into_inner();

        let open = format!("server_name = \"{HOST}\"\n");
        let closed = format!("{open}upstream = \"127.0.0.1:1\"\n");
        let upstream = format!("{open}upstream = \"{addr}\"\n");
        chain
            .pair
            .server
            .edit(|toml| toml.replace(&upstream, &closed))
            .await;
        let call = ready(&mut client)
            .await
            .unary(to(SERVER_APP, "new".to_owned()), method("Echo"), Text);
        let error = call
            .await
            .expect_err("the new configuration has no such upstream");
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        for n in 0..10 {
            let heard = tokio::time::timeout(SOON, replies.message())
                .await
                .expect("held back");
            assert_eq!(heard.expect("a message"), Some(n.to_string()));
            say.send((n + 1).to_string()).expect("a listener");
        }
    });
}

#[test]
fn every_kind_of_call_passes_with_its_metadata_and_errors() {
    run(async {
        let mut tasks = JoinSet::new();
        let (chat, addr) = Chat::start(&mut tasks).await;
        let chain = Chain::start(&[("grpc", HOST, addr)]).await;
        let mut client = client(chain.proxy(), HOST).await;

        let call = to(SERVER_APP, "hello".to_owned());
        let reply = ready(&mut client).await.unary(call, method("Echo"), Text).await;
        let reply = reply.expect("an answer");
        assert_eq!(reply.metadata().get("x-caller").expect("a caller"), CLIENT_APP);
        assert_eq!(reply.get_ref(), "hello");

        let words = ["a".to_owned(), "b".repeat(1 << 20), "c".to_owned()];
        let joined = words.concat();
        let reply = ready(&mut client).await.client_streaming(
            to(SERVER_APP, stream::iter(words)),
            method("Join"),
            Text,
        );
        assert!(reply.await.expect("an answer").get_ref() == &joined);

        let reply = ready(&mut client).await.server_streaming(
            to(SERVER_APP, "1000".to_owned()),
            method("Count"),
            Text,
        );
        let mut replies = reply.await.expect("an answer").into_inner();
        for n in 1..=1000 {
            let message = replies.message().await.expect("a message");
            assert_eq!(message, Some(n.to_string()));
        }
        assert_eq!(replies.message().await.expect("an end"), None);
        let trailers = replies.trailers().await.expect("trailers");
        assert!(trailers.is_some());

        // Neither side waits for the other's end.
        let (say, said) = mpsc::unbounded_channel();
        let said = UnboundedReceiverStream::new(said);
        say.send("0".to_owned()).expect("a listener");
        let reply = ready(&mut client)
            .await
            .streaming(to(SERVER_APP, said), method("Echo"), Text)
            .await;
        let mut replies = reply.expect("an answer").into_inner();
        for n in 0..10 {
            let heard = tokio::time::timeout(SOON, replies.message())
                .await
                .expect("held back");
            assert_eq!(heard.expect("a message"), Some(n.to_string()));
            say.send((n + 1).to_string()).expect("a listener");
        }
        assert_eq!(replies.message().await.expect("a message").as_deref(), Some("10"));
        drop(say);
        assert_eq!(replies.message().await.expect("an end"), None);

        let error = ready(&mut client)
            .await
            .unary(to(SERVER_APP, String::new()), method("Fail"), Text)
            .await;
        assert_is_failure(&error.expect_err("an error"));
        let reply = ready(&mut client).await.server_streaming(
            to(SERVER_APP, String::new()),
            method("FailLate"),
            Text,
        );
        let mut replies = reply.await.expect("an answer").into_inner();
        for n in ["1", "2"] {
            assert_eq!(replies.message().await.expect("a message").as_deref(), Some(n));
        }
        assert_is_failure(&replies.message().await.expect_err("an error"));

        gives_up(&mut client, &chat).await;
        refusals(&chain, &mut client).await;
    });
}

fn assert_is_failure(error: &Status) {
    let expected = failure();
    assert_eq!(
        (error.code(), error.message(), error.details()),
        (expected.code(), expected.message(), expected.details())
    );
    for name in ["x-left", "x-raw-bin"] {
        let value = |status: &Status| match name.ends_with("-bin") {
            true => status
                .metadata()
                .get_bin(name)
                .expect("metadata")
                .to_bytes()
                .expect("bytes"),
            false => status
                .metadata()
                .get(name)
                .expect("metadata")
                .as_encoded_bytes()
                .to_vec()
                .into(),
        };
        assert_eq!(value(error), value(&expected), "{name}");
    }
}

/// The service hears of a caller that leaves, and of one that has no more time.
async fn gives_up(client: &mut Grpc<Channel>, chat: &Chat) {
    let leaving =
        ready(client)
            .await
            .unary::<_, String, _>(to(SERVER_APP, String::new()), method("Wait"), Text);
    tokio::time::timeout(Duration::from_millis(300), leaving)
        .await
        .expect_err("it never answers");
    tokio::time::timeout(SOON, chat.given_up())
        .await
        .expect("it waits on");

    let mut hurried = to(SERVER_APP, String::new());
    hurried.set_timeout(Duration::from_millis(300));
    let error = ready(client)
        .await
        .unary::<_, String, _>(hurried, method("Wait"), Text)
        .await;
    let code = error.expect_err("too late").code();
    assert!(
        [Code::Cancelled, Code::DeadlineExceeded].contains(&code),
        "{code:?}"
    );
    tokio::time::timeout(SOON, chat.given_up())
        .await
        .expect("it waits on");
}

/// Our own refusals are gRPC's, too.
async fn refusals(chain: &Chain, allowed: &mut Grpc<Channel>) {
    let call = to(OTHER_APP, String::new());
    let error = ready(allowed)
        .await
        .unary::<_, String, _>(call, method("Echo"), Text)
        .await;
    let error = error.expect_err("another app");
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("identity_mismatch"), "{error}");

    let mut private = client(chain.proxy(), PRIVATE).await;
    let call = to(SERVER_APP, String::new());
    let error = ready(&mut private)
        .await
        .unary::<_, String, _>(call, method("Echo"), Text)
        .await;
    assert_eq!(error.expect_err("not allowed").code(), Code::PermissionDenied);
}
