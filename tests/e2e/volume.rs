//! Bodies larger than anybody's buffer.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::Method;
use hyper::body::Frame;

use crate::common::http::{self, Reply, With, get, request};
use crate::common::memory::Memory;
use crate::common::pair::Pair;
use crate::common::{SERVER_APP, run};

const GIGABYTE: usize = 1 << 30;
/// What a machine may need more than at rest while a gigabyte goes through it: buffers of sockets, TLS and
/// HTTP, and what the allocator keeps.
const GROWTH_KIB: u64 = 24 * 1024;

#[test]
fn a_gigabyte_goes_either_way_at_constant_memory() {
    run(async {
        let pair = Pair::start().await;
        assert_eq!(pair.call(get("/warm-up")).await.status, 200);
        let memory = [Memory::watch(&pair.client), Memory::watch(&pair.server)];

        const CHUNK: Bytes = Bytes::from_static(&[b'x'; 64 * 1024]);
        let chunks =
            stream::iter((0..GIGABYTE / CHUNK.len()).map(|_| Ok::<_, Infallible>(Frame::data(CHUNK))));
        let upload = request(Method::POST, "/upload", StreamBody::new(chunks)).to_app(SERVER_APP);
        let response = http::open(pair.client.connect().await, upload).await.unwrap();
        let reply = Reply::read(response).await.unwrap();
        assert_eq!(
            reply.json()["bytes"],
            GIGABYTE,
            "{} {}",
            reply.status,
            reply.text()
        );

        let download = get(&format!("/download/{GIGABYTE}")).to_app(SERVER_APP);
        let response = http::open(pair.client.connect().await, download).await.unwrap();
        let mut body = response.into_body();
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            received += frame.unwrap().data_ref().map_or(0, Bytes::len);
        }
        assert_eq!(received, GIGABYTE);

        for watched in memory {
            for (command, before, most) in watched.stop().await {
                assert!(before > 0, "{command}");
                assert!(
                    most - before < GROWTH_KIB,
                    "{command}: {before} KiB at rest, {most} KiB at most"
                );
            }
        }
    });
}
