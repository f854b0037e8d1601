//! The typed client of a guest agent.
//!
//! Every call makes its own connection by path: the socket's inode goes stale when the agent restarts.

use std::io::ErrorKind;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UnixStream};

use crate::http::{self, ExchangeError};
use crate::names::{AppId, InstanceId};
use crate::spec::AgentAddr;
use crate::words;

/// `Info` has about 25 KB, a chain less than 10.
const MAX_ANSWER: usize = 1 << 20;

/// A guest agent at an address. Cheap to make; holds no connection.
#[derive(Debug, Clone)]
pub struct AgentClient {
    addr: AgentAddr,
    timeout: Duration,
}

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The socket is not there, or its host has no address.
    #[error("guest agent {addr}: not there ({why}). Is its socket mounted into the container?")]
    NotFound { addr: AgentAddr, why: String },
    /// The socket is there, and nobody listens: the agent is stopped or starts just now.
    #[error("guest agent {addr}: nobody listens. The agent is stopped, or is starting")]
    Refused { addr: AgentAddr },
    /// This user may not open the socket.
    #[error("guest agent {addr}: permission denied. Give this user read and write access to the socket")]
    Denied { addr: AgentAddr },
    #[error("guest agent {addr}: no answer to {method} within {}s", after.as_secs_f32())]
    Timeout {
        addr: AgentAddr,
        method: &'static str,
        after: Duration,
    },
    /// The connection ended before the answer did.
    #[error("guest agent {addr}: {method}: {why}")]
    Broken {
        addr: AgentAddr,
        method: &'static str,
        why: String,
    },
    /// The agent said no, in its own words.
    #[error("guest agent {addr}: {method} was refused: {message} (status {code})")]
    Status {
        addr: AgentAddr,
        method: &'static str,
        code: u16,
        message: String,
    },
    /// The answer is not what the platform's agents answer.
    #[error("guest agent {addr}: {method} gave an answer that is not an agent's: {why}")]
    Malformed {
        addr: AgentAddr,
        method: &'static str,
        why: String,
    },
}

/// What of `Info` is of use here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub app_id: AppId,
    /// `None` when the platform gave this machine none.
    pub instance_id: Option<InstanceId>,
    /// For people only; chosen by the app.
    pub app_name: String,
}

/// `GetTlsKey`: a fresh key with a certificate.
#[derive(Debug, Clone, Serialize)]
pub struct TlsKeyRequest {
    pub subject: String,
    pub alt_names: Vec<String>,
    /// A quote in the certificate; the app id is in it anyway.
    pub usage_ra_tls: bool,
    pub usage_server_auth: bool,
    pub usage_client_auth: bool,
    /// Honoured from 0.5.6 on, ignored before.
    #[serde(serialize_with = "unix_seconds", skip_serializing_if = "Option::is_none")]
    pub not_before: Option<SystemTime>,
    /// Honoured from 0.5.6 on, ignored before.
    #[serde(serialize_with = "unix_seconds", skip_serializing_if = "Option::is_none")]
    pub not_after: Option<SystemTime>,
}

/// The answer to `GetTlsKey`. It has no `Debug`: the key stays out of logs.
#[derive(Deserialize)]
pub struct TlsKey {
    /// PKCS#8 in PEM.
    pub key: String,
    /// PEM, leaf first.
    pub certificate_chain: Vec<String>,
}

impl AgentClient {
    /// `timeout` is for a whole call: with a KMS behind it `GetTlsKey` takes seconds.
    pub fn new(addr: AgentAddr, timeout: Duration) -> Self {
        Self { addr, timeout }
    }

    pub fn addr(&self) -> &AgentAddr {
        &self.addr
    }

    /// Who we are, as the platform says.
    pub async fn info(&self) -> Result<Info, AgentError> {
        self.read_info(&self.call("Info", None).await?)
    }

    pub(super) fn read_info(&self, json: &[u8]) -> Result<Info, AgentError> {
        #[derive(Deserialize)]
        struct Answer {
            app_id: String,
            #[serde(default)]
            instance_id: String,
            #[serde(default)]
            app_name: String,
        }
        let answer: Answer = self.read("Info", json)?;
        let not_id = |what: &str| self.malformed("Info", format!("{what} is not 40 hex digits"));
        Ok(Info {
            app_id: answer.app_id.parse().map_err(|_| not_id("app_id"))?,
            instance_id: match answer.instance_id.as_str() {
                "" => None,
                id => Some(id.parse().map_err(|_| not_id("instance_id"))?),
            },
            app_name: answer.app_name,
        })
    }

    /// A fresh key and its certificate. With a KMS the call goes over the network, and fails at times.
    pub async fn get_tls_key(&self, request: &TlsKeyRequest) -> Result<TlsKey, AgentError> {
        let body = serde_json::to_vec(request).map_err(|e| self.malformed("GetTlsKey", e.to_string()))?;
        self.read("GetTlsKey", &self.call("GetTlsKey", Some(body)).await?)
    }

    /// The agent's version, from 0.5.7 on; older ones refuse the method.
    pub async fn version(&self) -> Result<String, AgentError> {
        #[derive(Deserialize)]
        struct Answer {
            version: String,
        }
        let answer = self.call("Version", None).await?;
        self.read::<Answer>("Version", &answer)
            .map(|answer| answer.version)
    }

    async fn call(&self, method: &'static str, json: Option<Vec<u8>>) -> Result<Bytes, AgentError> {
        let answer = tokio::time::timeout(self.timeout, self.exchange(method, json)).await;
        let (status, body) = answer.map_err(|_| AgentError::Timeout {
            addr: self.addr.clone(),
            method,
            after: self.timeout,
        })??;
        match status {
            StatusCode::OK => Ok(body),
            _ => Err(AgentError::Status {
                addr: self.addr.clone(),
                method,
                code: status.as_u16(),
                message: words::told(&body),
            }),
        }
    }

    /// serde's words can quote the answer, and the answer can be a key: only the place is told.
    pub(super) fn read<T: for<'a> Deserialize<'a>>(
        &self,
        method: &'static str,
        json: &[u8],
    ) -> Result<T, AgentError> {
        serde_json::from_slice(json).map_err(|e| {
            let why = match e.classify() {
                serde_json::error::Category::Data => "a field is missing or of another type",
                _ => "it is not JSON",
            };
            self.malformed(
                method,
                format!("{why} (line {}, column {})", e.line(), e.column()),
            )
        })
    }

    async fn exchange(
        &self,
        method: &'static str,
        json: Option<Vec<u8>>,
    ) -> Result<(StatusCode, Bytes), AgentError> {
        let host = match &self.addr {
            AgentAddr::Unix(_) => "dstack".to_owned(),
            AgentAddr::Http(host_port) => host_port.to_string(),
        };
        let request = Request::builder()
            .uri(format!("/{method}"))
            .header(header::HOST, host)
            .header(header::ACCEPT, "application/json");
        let request = match json {
            // Without this content type the agent takes the body for protobuf.
            Some(json) => request
                .method(Method::POST)
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::from(json)),
            None => request.method(Method::GET).body(Full::default()),
        };
        let request = request.map_err(|e| self.malformed(method, e.to_string()))?;
        let answer = match &self.addr {
            AgentAddr::Unix(path) => {
                let io = UnixStream::connect(path)
                    .await
                    .map_err(|e| self.unreachable(method, e))?;
                http::exchange(io, request, MAX_ANSWER).await
            }
            AgentAddr::Http(at) => {
                let io = TcpStream::connect(at.to_string())
                    .await
                    .map_err(|e| self.unreachable(method, e))?;
                http::exchange(io, request, MAX_ANSWER).await
            }
        };
        answer.map_err(|e| match e {
            ExchangeError::TooLong(_) => self.malformed(method, e.to_string()),
            _ => AgentError::Broken {
                addr: self.addr.clone(),
                method,
                why: e.to_string(),
            },
        })
    }

    fn unreachable(&self, method: &'static str, error: std::io::Error) -> AgentError {
        let addr = self.addr.clone();
        match error.kind() {
            ErrorKind::NotFound => AgentError::NotFound {
                addr,
                why: error.to_string(),
            },
            ErrorKind::ConnectionRefused => AgentError::Refused { addr },
            ErrorKind::PermissionDenied => AgentError::Denied { addr },
            _ => AgentError::Broken {
                addr,
                method,
                why: error.to_string(),
            },
        }
    }

    fn malformed(&self, method: &'static str, why: String) -> AgentError {
        AgentError::Malformed {
            addr: self.addr.clone(),
            method,
            why,
        }
    }
}

fn unix_seconds<S: serde::Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    let seconds = time.map(|time| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    seconds.serialize(serializer)
}
