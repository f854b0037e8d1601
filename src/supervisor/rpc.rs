//! One XML-RPC call: `POST /RPC2` on a unix socket, one connection each, always within a time limit.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use dxr::{FaultResponse, MethodCall, MethodResponse, Value};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// More than any answer of supervisord's that we ask for.
const LONGEST_ANSWER: usize = 16 << 20;

/// Why supervisord did not do it.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("supervisord does not answer on {socket}: {source}; `dstack-vpc up` starts it", socket = .socket.display())]
    Away { socket: PathBuf, source: std::io::Error },

    #[error("supervisord did not answer {method} within {} ms", .after.as_millis())]
    Slow { method: &'static str, after: Duration },

    #[error("supervisord's answer to {method} cannot be understood: {why}")]
    Garbled { method: &'static str, why: String },

    #[error("supervisord refused {method}: {text}")]
    Refused {
        method: &'static str,
        fault: Fault,
        /// supervisord's own words, e.g. `BAD_NAME: nginx`.
        text: String,
    },

    #[error("{name} is still {state} after {} s", .after.as_secs())]
    TooLong {
        name: String,
        state: super::State,
        after: Duration,
    },

    #[error("{name} does not stay up ({state}): {why}{}", last_lines(.log))]
    Failed {
        name: String,
        state: super::State,
        why: String,
        /// The last lines it wrote to stderr; empty when they went to supervisord's own output.
        log: String,
    },
}

impl SupervisorError {
    /// The fault's code, when supervisord answered with one.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Refused { fault, .. } => Some(*fault),
            _ => None,
        }
    }
}

fn last_lines(log: &str) -> String {
    match log.is_empty() {
        true => String::new(),
        false => format!("; it said:\n{log}"),
    }
}

/// `supervisor.xmlrpc.Faults`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    UnknownMethod,
    IncorrectParameters,
    BadArguments,
    SignatureUnsupported,
    /// It is shutting down and takes no orders.
    ShutdownState,
    BadName,
    BadSignal,
    NoFile,
    NotExecutable,
    Failed,
    AbnormalTermination,
    SpawnError,
    AlreadyStarted,
    NotRunning,
    Success,
    AlreadyAdded,
    StillRunning,
    /// The file is bad; the old configuration stays.
    CantReread,
    Other(i32),
}

impl From<i32> for Fault {
    fn from(code: i32) -> Self {
        match code {
            1 => Self::UnknownMethod,
            2 => Self::IncorrectParameters,
            3 => Self::BadArguments,
            4 => Self::SignatureUnsupported,
            6 => Self::ShutdownState,
            10 => Self::BadName,
            11 => Self::BadSignal,
            20 => Self::NoFile,
            21 => Self::NotExecutable,
            30 => Self::Failed,
            40 => Self::AbnormalTermination,
            50 => Self::SpawnError,
            60 => Self::AlreadyStarted,
            70 => Self::NotRunning,
            80 => Self::Success,
            90 => Self::AlreadyAdded,
            91 => Self::StillRunning,
            92 => Self::CantReread,
            other => Self::Other(other),
        }
    }
}

/// Calls `method` and gives its one result.
pub(super) async fn call(
    socket: &Path,
    method: &'static str,
    params: Vec<Value>,
    within: Duration,
) -> Result<Value, SupervisorError> {
    let garbled = |why: String| SupervisorError::Garbled { method, why };
    let name = method.into();
    let xml = MethodCall { name, params }
        .to_xml()
        .map_err(|e| garbled(e.to_string()))?;
    let (status, body) = tokio::time::timeout(within, post(socket, method, xml))
        .await
        .map_err(|_| SupervisorError::Slow {
            method,
            after: within,
        })??;
    if status != StatusCode::OK {
        return Err(garbled(format!("HTTP status {status}")));
    }
    if let Ok(response) = MethodResponse::from_xml(&body) {
        return Ok(response.value);
    }
    match FaultResponse::from_xml(&body) {
        Ok(FaultResponse { fault }) => Err(SupervisorError::Refused {
            method,
            fault: fault.code().into(),
            text: fault.string().to_owned(),
        }),
        // The codec's own error would repeat the whole body.
        Err(_) => Err(garbled("it is not XML-RPC".to_owned())),
    }
}

async fn post(
    socket: &Path,
    method: &'static str,
    xml: String,
) -> Result<(StatusCode, String), SupervisorError> {
    let away = |source| SupervisorError::Away {
        socket: socket.to_owned(),
        source,
    };
    let garbled = |e: &dyn std::fmt::Display| SupervisorError::Garbled {
        method,
        why: e.to_string(),
    };
    let stream = UnixStream::connect(socket).await.map_err(away)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| away(std::io::Error::other(e)))?;
    let request = Request::post("/RPC2")
        .header(header::HOST, "supervisor")
        .header(header::CONTENT_TYPE, "text/xml")
        .header(header::CONNECTION, "close")
        .body(Full::new(Bytes::from(xml)))
        .map_err(|e| garbled(&e))?;
    let exchange = async move {
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| away(std::io::Error::other(e)))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST_ANSWER)
            .collect()
            .await
            .map_err(|e| garbled(&e))?
            .to_bytes();
        // A child's log may hold anything; what is not UTF-8 is shown as such.
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    // What the connection has to say of its end is in the exchange's own result.
    tokio::join!(connection, exchange).1
}
