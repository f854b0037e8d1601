//! The mesh through its own doors: real listeners, real TLS peers, clients that write bytes.

mod auth;
mod http;
mod http2;
mod identity;
mod impostors;
mod kit;
mod live;
mod openssl;
mod pool;
mod sessions;
mod streams;
