//! The VPC server as a node sees it: two calls, through our own mesh or straight to the API of this very machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use serde::Deserialize;
use tokio::net::TcpStream;
use url::Url;

use super::{NodeSettings, Server};
use crate::facts::ports::reachable;
use crate::http::{self, ExchangeError};
use crate::names::{API_HOST, AppId, DnsName, NodeId};
use crate::words;

/// A call goes through two gateways, and a registration waits for Headscale as well.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer has a few hundred bytes.
const LONGEST_ANSWER: usize = 64 << 10;

/// Why the server did not do it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServerError {
    #[error("{way} does not answer: {why}")]
    Away { way: String, why: String },
    #[error("the VPC server {app} did not answer within {} s", PATIENCE.as_secs())]
    Slow { app: AppId },
    /// In the words of the server, or of the mesh on the way to it.
    #[error("the VPC server {app} {}: {words} (status {status})", match .status.as_u16() {
        401 | 403 => "does not let this app in (allowed_apps on the server says who may register)",
        502 | 504 => "cannot be reached",
        _ => "cannot do it",
    })]
    Refused {
        app: AppId,
        status: StatusCode,
        words: String,
    },
    #[error("the answer of {app} is not a VPC server's: {why}; is node.server_app_id the right one?")]
    Garbled { app: AppId, why: String },
}

/// The answer to a registration. It has no `Debug`: two of these are secrets.
#[derive(Deserialize)]
pub(super) struct Welcome {
    pub(super) pre_auth_key: String,
    pub(super) shared_key: String,
    pub(super) server_url: String,
}

/// What the server is told of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announcement {
    pub(super) server: AppId,
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) node_type: String,
    pub(super) address: Ipv4Addr,
    pub(super) hostname: DnsName,
    pub(super) silence: Duration,
}

/// What the server says of an announced node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Heard {
    /// False: Headscale knows no node with this address, which the node itself cannot see. Older servers do not say.
    #[serde(default = "yes")]
    pub(super) in_vpn: bool,
}

fn yes() -> bool {
    true
}

/// The way to the server.
#[derive(Debug, Clone)]
pub(super) struct Client {
    app: AppId,
    at: SocketAddr,
    /// Straight to the API, which believes what nginx says of the caller: so do we what nginx would.
    straight: bool,
}

impl Client {
    pub(super) fn new(settings: &NodeSettings, app: AppId) -> Self {
        match settings.server {
            Server::Here { api, .. } => Self {
                app,
                at: reachable(api),
                straight: true,
            },
            Server::App(_) | Server::SameApp => Self {
                app,
                at: reachable(settings.mesh),
                straight: false,
            },
        }
    }

    /// Asks for a key to join with.
    pub(super) async fn register(
        &self,
        id: &NodeId,
        settings: &NodeSettings,
    ) -> Result<Welcome, ServerError> {
        let mut target = format!("/api/register?instance_id={id}&node_name={}", settings.name);
        if let Some(node_type) = &settings.node_type {
            target.push_str(&format!("&node_type={node_type}"));
        }
        let welcome: Welcome = self.call(Method::GET, target).await?;
        check(&welcome).map_err(|what| self.garbled(format!("{what} is not what it should be")))?;
        Ok(welcome)
    }

    /// Says where this node is, and that it lives.
    pub(super) async fn announce(&self, node: &Announcement) -> Result<Heard, ServerError> {
        let Announcement {
            id,
            name,
            node_type,
            address,
            hostname,
            silence,
            ..
        } = node;
        let silence = silence.as_secs().max(1);
        // None of these has a character that would need escaping.
        let target = format!(
            "/api/nodes/update?uuid={id}&node_type={node_type}&tailscale_ip={address}&hostname={hostname}\
             &name={name}&silence={silence}"
        );
        self.call(Method::POST, target).await
    }

    async fn call<T: for<'a> Deserialize<'a>>(
        &self,
        method: Method,
        target: String,
    ) -> Result<T, ServerError> {
        let answer = tokio::time::timeout(PATIENCE, self.exchange(method, target)).await;
        let (status, body) = answer.map_err(|_| ServerError::Slow { app: self.app })??;
        if status != StatusCode::OK {
            return Err(ServerError::Refused {
                app: self.app,
                status,
                words: words::told(&body),
            });
        }
        // serde's words can quote the answer, and the answer has secrets: only the kind is told.
        serde_json::from_slice(&body).map_err(|error| {
            self.garbled(match error.classify() {
                serde_json::error::Category::Data => "a field is missing or of another type".to_owned(),
                _ => "it is not JSON".to_owned(),
            })
        })
    }

    async fn exchange(&self, method: Method, target: String) -> Result<(StatusCode, Bytes), ServerError> {
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, API_HOST)
            .header(
                if self.straight {
                    "x-dstack-app-id"
                } else {
                    "x-dstack-target-app"
                },
                self.app.to_string(),
            )
            .body(Full::default())
            .map_err(|error| self.garbled(error.to_string()))?;
        let io = TcpStream::connect(self.at)
            .await
            .map_err(|error| self.away(error.to_string()))?;
        http::exchange(io, request, LONGEST_ANSWER)
            .await
            .map_err(|error| match error {
                ExchangeError::TooLong(_) => self.garbled(error.to_string()),
                _ => self.away(error.to_string()),
            })
    }

    fn away(&self, why: String) -> ServerError {
        let way = match self.straight {
            true => format!("the VPC API of this machine, {},", self.at),
            false => format!("our own mesh proxy, {},", self.at),
        };
        ServerError::Away { way, why }
    }

    fn garbled(&self, why: String) -> ServerError {
        ServerError::Garbled { app: self.app, why }
    }
}

/// These end up in files and arguments of others. The error is the name of what cannot.
pub(super) fn check(welcome: &Welcome) -> Result<(), &'static str> {
    let Welcome {
        pre_auth_key,
        shared_key,
        server_url,
    } = welcome;
    if !Url::parse(server_url).is_ok_and(|url| ["http", "https"].contains(&url.scheme())) {
        return Err("server_url");
    }
    let is_word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let words = [
        ("pre_auth_key", pre_auth_key),
        ("shared_key", shared_key),
        // The parser of URLs overlooks line breaks.
        ("server_url", server_url),
    ];
    match words.into_iter().find(|(_, text)| !is_word(text)) {
        Some((what, _)) => Err(what),
        None => Ok(()),
    }
}
