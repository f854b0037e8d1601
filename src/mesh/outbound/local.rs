//! Requests without a target: for this machine's guest agent, and for us.

use hyper::header::{HOST, HeaderValue};
use hyper::{Request, StatusCode, Uri};

use super::{Outbound, Route};
use crate::mesh::MeshSettings;
use crate::mesh::hop::{Dial, Failure, Far, Hop};
use crate::mesh::reply;
use crate::spec::AgentAddr;

impl Outbound {
    pub(super) fn local<B>(
        &self,
        request: &mut Request<B>,
        settings: &MeshSettings,
    ) -> Result<Route, Failure> {
        match request.uri().path() {
            "/health" => return Ok(Route::Here(reply::text("OK"))),
            "/gateway" => {
                let domain = settings.gateway.as_ref().map(ToString::to_string);
                let domain = serde_json::json!({ "gateway_domain": domain });
                return Ok(Route::Here(reply::json(StatusCode::OK, &domain)));
            }
            _ => {}
        }
        let agent = settings.agent.as_ref().ok_or(Failure::NoAgent)?;
        let host = match agent {
            AgentAddr::Unix(_) => Ok(HeaderValue::from_static("localhost")),
            AgentAddr::Http(at) => HeaderValue::try_from(at.to_string()),
        };
        *request.uri_mut() =
            method_uri(request.uri()).ok_or(Failure::BadRequest("the path is not a method's"))?;
        request
            .headers_mut()
            .insert(HOST, host.map_err(|_| Failure::Internal)?);
        Ok(Route::Over(Hop {
            far: Far::Agent,
            slot: self
                .agents
                .slot(agent, || Ok((Dial::Agent(agent.clone()), self.pen.agent())))?,
            connect_timeout: settings.connect_timeout,
            response_timeout: settings.agent_timeout,
            idle_timeout: settings.idle_timeout,
            limits: settings.limits.clone(),
            vouch: None,
        }))
    }
}

/// The agent's method that a path means: its last segment in `PascalCase`, with the query as it is.
fn method_uri(uri: &Uri) -> Option<Uri> {
    let segment = uri.path().rsplit('/').next().unwrap_or("");
    let mut text = String::from("/");
    for word in segment.split('_') {
        let mut letters = word.chars();
        text.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        text.push_str(letters.as_str());
    }
    if let Some(query) = uri.query() {
        text.push('?');
        text.push_str(query);
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_methods() {
        for (path, expected) in [
            ("/info", "/Info"),
            ("/get_tls_key", "/GetTlsKey"),
            ("/GetTlsKey", "/GetTlsKey"),
            ("/get_tls_key?a_b=c_d&x=%2F", "/GetTlsKey?a_b=c_d&x=%2F"),
            ("/prpc/get_quote", "/GetQuote"),
            ("/_x__y_", "/XY"),
            ("/a%2fb", "/A%2fb"),
            ("http://elsewhere/info", "/Info"),
            ("/", "/"),
        ] {
            assert_eq!(method_uri(&path.parse().unwrap()).unwrap().to_string(), expected);
        }
    }
}
