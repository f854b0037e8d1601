//! A gRPC service on a real gRPC stack. Its messages are strings, so that nothing need be generated.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, BufMut};
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Context, Poll, Service, http, tokio_stream};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::server::{Grpc, NamedService};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};

/// What it is reached by.
pub(crate) const HOST: &str = "grpc.local";

/// | method | does |
/// |---|---|
/// | `Echo` | sends each message back, as it comes; the header `x-caller` says who called |
/// | `Join` | joins all messages to one |
/// | `Count` | counts up to its message |
/// | `Fail` | fails at once, with metadata and details |
/// | `FailLate` | counts to two and then fails |
/// | `Wait` | never answers; whoever gives up is noticed by [`Chat::given_up`] |
#[derive(Clone)]
pub(crate) struct Chat(Arc<Semaphore>);

impl Chat {
    /// On a free port, until `tasks` is dropped.
    pub(crate) async fn start(tasks: &mut JoinSet<()>) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let chat = Self(Arc::new(Semaphore::new(0)));
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = Server::builder()
            .add_service(chat.clone())
            .serve_with_incoming(incoming);
        tasks.spawn(async move { server.await.expect("the gRPC server") });
        (chat, addr)
    }

    /// Waits until somebody gave up a `Wait`.
    pub(crate) async fn given_up(&self) {
        self.0.acquire().await.expect("never closed").forget();
    }

    async fn answer(self, method: String, request: Request<Streaming<String>>) -> Answer {
        let caller = request.metadata().get("x-dstack-app-id").cloned();
        let mut messages = request.into_inner();
        let replies: BoxStream<'static, Result<String, Status>> = match method.as_str() {
            "Echo" => messages.boxed(),
            "Join" => {
                let mut all = String::new();
                while let Some(message) = messages.message().await? {
                    all += &message;
                }
                stream::iter([Ok(all)]).boxed()
            }
            "Count" => {
                let up_to = messages
                    .message()
                    .await?
                    .and_then(|n| n.parse().ok())
                    .unwrap_or(0);
                stream::iter(1..=up_to).map(|n: u32| Ok(n.to_string())).boxed()
            }
            "Fail" => return Err(failure()),
            "FailLate" => stream::iter([Ok("1".into()), Ok("2".into()), Err(failure())]).boxed(),
            "Wait" => {
                let _noticed = Noticed(self.0);
                std::future::pending().await
            }
            other => return Err(Status::unimplemented(other.to_owned())),
        };
        let mut response = Response::new(replies);
        if let Some(caller) = caller {
            response.metadata_mut().insert("x-caller", caller);
        }
        Ok(response)
    }
}

type Answer = Result<Response<BoxStream<'static, Result<String, Status>>>, Status>;

/// An error with everything an error can have.
pub(crate) fn failure() -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert("x-left", MetadataValue::from_static("0"));
    metadata.insert_bin("x-raw-bin", MetadataValue::from_bytes(&[0, 255, 10]));
    let (words, details) = ("50 % of the quota is used: ü", &b"\x00details\xff"[..]);
    Status::with_details_and_metadata(Code::ResourceExhausted, words, details.into(), metadata)
}

struct Noticed(Arc<Semaphore>);

impl Drop for Noticed {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

impl NamedService for Chat {
    const NAME: &'static str = "vpc.Chat";
}

/// What `tonic-build` would generate. On the wire every kind of call is one stream each way.
impl Service<http::Request<Body>> for Chat {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or("").to_owned();
        let handler = Method(self.clone(), method);
        Box::pin(async move { Ok(Grpc::new(Text).streaming(handler, request).await) })
    }
}

struct Method(Chat, String);

impl Service<Request<Streaming<String>>> for Method {
    type Response = Response<BoxStream<'static, Result<String, Status>>>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<String>>) -> Self::Future {
        Box::pin(self.0.clone().answer(self.1.clone(), request))
    }
}

/// Strings as messages.
#[derive(Clone, Copy)]
pub(crate) struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, item: String, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put_slice(item.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = src.copy_to_bytes(src.remaining()).to_vec();
        let text = String::from_utf8(bytes);
        text.map(Some).map_err(|_| Status::internal("not a string"))
    }
}
