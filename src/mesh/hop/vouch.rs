//! What a backend is told about who calls.

use std::net::IpAddr;

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::headers;
use crate::names::AppId;

/// Headers in which a backend is told who calls: whatever came under these names is replaced.
#[derive(Clone)]
pub(in crate::mesh) struct Vouch {
    app: HeaderValue,
    client: HeaderValue,
}

impl Vouch {
    /// For requests of `app` that come from `client`.
    pub(in crate::mesh) fn new(app: &AppId, client: IpAddr) -> Option<Self> {
        Some(Self {
            app: HeaderValue::try_from(app.to_string()).ok()?,
            client: HeaderValue::try_from(client.to_string()).ok()?,
        })
    }

    pub(super) fn stamp(&self, headers: &mut HeaderMap) {
        const APP_ID: HeaderName = HeaderName::from_static("x-dstack-app-id");
        const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
        const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
        const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
        headers::strip_claims(headers);
        headers.insert(APP_ID, self.app.clone());
        headers.insert(FOR, self.list(headers.get_all(&FOR)));
        headers.insert(PROTO, HeaderValue::from_static("https"));
        if let Some(host) = headers.get(header::HOST).cloned() {
            headers.insert(HOST, host);
        }
    }

    /// As nginx does, whoever came before stays in the list.
    fn list(&self, earlier: header::GetAll<'_, HeaderValue>) -> HeaderValue {
        let mut list = Vec::new();
        for earlier in earlier {
            list.extend_from_slice(earlier.as_bytes());
            list.extend_from_slice(b", ");
        }
        if list.is_empty() {
            return self.client.clone();
        }
        list.extend_from_slice(self.client.as_bytes());
        HeaderValue::from_maybe_shared(Bytes::from(list)).unwrap_or_else(|_| self.client.clone())
    }
}
