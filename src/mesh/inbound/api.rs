//! The VPC API, which is in this process: nothing is connected to, and nobody names the caller but its certificate.

use std::io;

use axum::body::to_bytes;
use hyper::{Request, Response};

use super::Inbound;
use crate::mesh::hop::{Failure, Upload, address, headers};
use crate::mesh::reply::Body;
use crate::names::AppId;

impl Inbound {
    /// Answers a request of `app`, as the API does over its own listener.
    pub(super) async fn api(
        &self,
        request: &mut Request<Upload>,
        app: AppId,
    ) -> Result<Response<Body>, Failure> {
        let gone = || Failure::Backend(io::ErrorKind::ConnectionRefused.into());
        let api = self.shared.api.load_full().ok_or_else(gone)?;
        address(request, None)?;
        headers::strip_request(request.headers_mut());
        request.extensions_mut().clear();
        let upload = request.body().progress();
        if let Some(upload) = &upload {
            // The API reads whatever comes.
            upload.go_on();
        }
        let answer = api.answer(app, std::mem::take(request)).await;
        let (head, body) = answer.ok_or_else(gone)?.into_parts();
        // It is in memory already.
        let bytes = to_bytes(body, usize::MAX).await.map_err(|_| Failure::Internal)?;
        self.meter
            .sent(upload.map_or(0, |upload| upload.bytes() as usize));
        self.meter.received(bytes.len());
        let body = Body::Own((!bytes.is_empty()).then_some(bytes));
        Ok(Response::from_parts(head, body))
    }
}
