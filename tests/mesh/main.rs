//! The mesh through its own doors: real listeners, real TLS peers, clients that write bytes.

#[path = "../common/attacks/mod.rs"]
mod attacks;
mod auth;
mod crowd;
mod floods;
mod hops;
mod http;
mod http2;
mod identity;
mod impostors;
mod kit;
mod limits;
mod live;
mod openssl;
mod pool;
mod reach;
mod sessions;
mod smuggling;
mod streams;
mod tcp;
