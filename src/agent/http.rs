//! One HTTP/1.1 exchange over one connection, for answers small enough to hold.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error("the connection failed: {}", root_cause(.0))]
    Connection(#[from] hyper::Error),
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    #[error("the answer broke off: {0}")]
    BrokeOff(String),
}

/// Sends `request` and reads the answer, of which at most `limit` bytes are taken.
///
/// Nothing is spawned: dropping the future closes the connection.
pub(crate) async fn exchange<I>(
    io: I,
    request: Request<Full<Bytes>>,
    limit: usize,
) -> Result<(StatusCode, Bytes), ExchangeError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let response = exchange_whole(io, request, limit).await?;
    Ok((response.status(), response.into_body()))
}

/// [`exchange`], with the headers of the answer.
pub(crate) async fn exchange_whole<I>(
    io: I,
    request: Request<Full<Bytes>>,
    limit: usize,
) -> Result<Response<Bytes>, ExchangeError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        match Limited::new(body, limit).collect().await {
            Ok(body) => Ok(Response::from_parts(head, body.to_bytes())),
            Err(e) if e.is::<LengthLimitError>() => Err(ExchangeError::TooLong(limit)),
            Err(e) => Err(ExchangeError::BrokeOff(e.to_string())),
        }
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        result = &mut answer => result,
        // The connection may end first with the answer already handed over.
        _ = connection => answer.await,
    }
}

/// hyper's own words stop at `client error (…)`; what happened is the innermost error.
fn root_cause(error: &hyper::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
