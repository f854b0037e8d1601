//! The REST interface. Every call makes its own connection: Headscale restarts whenever its configuration changes.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, StatusCode, header};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use super::wire::{
    self, ApiKeys, CreateJoinKey, CreateUser, CreatedJoinKey, CreatedUser, Nodes, User, Users,
};
use super::{HeadscaleError, JoinKey, MadeKey, Secret, VpnNode};
use crate::facts::ports::reachable;
use crate::http::{ExchangeError, exchange};
use crate::names::NodeName;

/// For one call. Headscale hashes keys with bcrypt, which takes its time on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A node has about 1 KB.
const MAX_ANSWER: usize = 256 << 20;

/// One Headscale and the key to it. Holds no connection.
pub(super) struct Client {
    listen: SocketAddr,
    key: Secret,
}

impl Client {
    pub(super) fn new(listen: SocketAddr, key: Secret) -> Self {
        Self { listen, key }
    }

    pub(super) fn key(&self) -> &Secret {
        &self.key
    }

    pub(super) async fn user(&self, name: &str) -> Result<Option<User>, HeadscaleError> {
        let doing = "look up its user";
        let users: Users = self.get(doing, &format!("/api/v1/user?name={name}")).await?;
        Ok(users.users.into_iter().find(|user| user.name == name))
    }

    pub(super) async fn create_user(&self, name: &str) -> Result<User, HeadscaleError> {
        let doing = "make its user";
        let made: CreatedUser = self.post(doing, "/api/v1/user", &CreateUser { name }).await?;
        Ok(made.user)
    }

    /// The API keys: when they were made and when they expire.
    pub(super) async fn api_keys(&self) -> Result<ApiKeys, HeadscaleError> {
        self.get("list its API keys", "/api/v1/apikey").await
    }

    pub(super) async fn delete_api_key(&self, prefix: &str) -> Result<(), HeadscaleError> {
        let path = format!("/api/v1/apikey/{prefix}");
        self.delete("delete an API key", &path).await
    }

    pub(super) async fn create_join_key(
        &self,
        user: u64,
        wanted: &JoinKey,
    ) -> Result<MadeKey, HeadscaleError> {
        let doing = "make a key for a node";
        let body = CreateJoinKey {
            user: user.to_string(),
            reusable: wanted.reusable,
            ephemeral: false,
            expiration: Timestamp::now()
                .checked_add(wanted.lifetime)
                .unwrap_or(Timestamp::MAX),
            acl_tags: wanted.node_type.iter().filter_map(wire::tag).collect(),
        };
        let made: CreatedJoinKey = self.post(doing, "/api/v1/preauthkey", &body).await?;
        let made = made.pre_auth_key;
        match made.key.expose() {
            "" => Err(self.malformed(doing, "the key is empty".to_owned())),
            _ => Ok(MadeKey {
                id: made.id,
                secret: made.key,
            }),
        }
    }

    pub(super) async fn nodes(&self) -> Result<Vec<VpnNode>, HeadscaleError> {
        let answer: Nodes = self.get("list its nodes", "/api/v1/node").await?;
        Ok(answer.nodes)
    }

    pub(super) async fn delete_node(&self, id: u64) -> Result<(), HeadscaleError> {
        self.delete("delete a node", &format!("/api/v1/node/{id}")).await
    }

    pub(super) async fn rename_node(&self, id: u64, name: &NodeName) -> Result<(), HeadscaleError> {
        let path = format!("/api/v1/node/{id}/rename/{name}");
        self.call("rename a node", Method::POST, &path, Bytes::new())
            .await
            .map(drop)
    }

    async fn get<T: DeserializeOwned>(&self, doing: &'static str, path: &str) -> Result<T, HeadscaleError> {
        let answer = self.call(doing, Method::GET, path, Bytes::new()).await?;
        self.parse(doing, &answer)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        doing: &'static str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, HeadscaleError> {
        let body = serde_json::to_vec(body).map_err(|e| self.malformed(doing, e.to_string()))?;
        let answer = self.call(doing, Method::POST, path, body.into()).await?;
        self.parse(doing, &answer)
    }

    /// What is not there is deleted already.
    async fn delete(&self, doing: &'static str, path: &str) -> Result<(), HeadscaleError> {
        match self.call(doing, Method::DELETE, path, Bytes::new()).await {
            Err(e) if e.is_not_found() => Ok(()),
            result => result.map(drop),
        }
    }

    async fn call(
        &self,
        doing: &'static str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, HeadscaleError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key.expose()))
            .header(header::CONTENT_TYPE, "application/json");
        match send(doing, self.listen, request, body).await? {
            (StatusCode::UNAUTHORIZED, _) => Err(HeadscaleError::Unauthorized),
            // 0.26 says it so when it has never heard of the key.
            (StatusCode::INTERNAL_SERVER_ERROR, body) if *body == *b"Unauthorized" => {
                Err(HeadscaleError::Unauthorized)
            }
            (status, body) if status.is_success() => Ok(body),
            (status, body) => Err(HeadscaleError::Refused {
                doing,
                status: status.as_u16(),
                message: wire::error_message(&body),
            }),
        }
    }

    /// serde's words can quote the answer, and the answer can be a key: only the place is told.
    pub(super) fn parse<T: DeserializeOwned>(
        &self,
        doing: &'static str,
        body: &[u8],
    ) -> Result<T, HeadscaleError> {
        serde_json::from_slice(body).map_err(|e| {
            let why = match e.classify() {
                serde_json::error::Category::Data => "a field is missing or of another type",
                _ => "it is not JSON",
            };
            self.malformed(doing, format!("{why} (line {}, column {})", e.line(), e.column()))
        })
    }

    fn malformed(&self, doing: &'static str, why: String) -> HeadscaleError {
        HeadscaleError::Malformed {
            listen: self.listen,
            doing,
            why,
        }
    }
}

/// Whether Headscale serves; needs no key.
pub(super) async fn health(listen: SocketAddr) -> Result<(), HeadscaleError> {
    let doing = "say that it is well";
    let (status, body) = send(doing, listen, Request::get("/health"), Bytes::new()).await?;
    match status.is_success() {
        true => Ok(()),
        false => Err(HeadscaleError::Refused {
            doing,
            status: status.as_u16(),
            message: wire::error_message(&body),
        }),
    }
}

async fn send(
    doing: &'static str,
    listen: SocketAddr,
    request: hyper::http::request::Builder,
    body: Bytes,
) -> Result<(StatusCode, Bytes), HeadscaleError> {
    let down = |why: String| HeadscaleError::Down { listen, why };
    let request = request
        .header(header::HOST, listen.to_string())
        .body(Full::from(body))
        .map_err(|e| down(e.to_string()))?;
    let exchange = async {
        let io = TcpStream::connect(reachable(listen))
            .await
            .map_err(|e| down(e.to_string()))?;
        exchange(io, request, MAX_ANSWER).await.map_err(|e| match e {
            ExchangeError::TooLong(_) => HeadscaleError::Malformed {
                listen,
                doing,
                why: e.to_string(),
            },
            _ => down(e.to_string()),
        })
    };
    let answer = tokio::time::timeout(TIMEOUT, exchange).await;
    answer.unwrap_or(Err(HeadscaleError::Timeout {
        doing,
        after: TIMEOUT,
    }))
}
