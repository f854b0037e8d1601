//! `GET /metrics`, in the format that is asked for.

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::gather::Gather;
use super::page::Format;

/// The key of `vpc.toml` that names the address.
pub(crate) const KEY: &str = "metrics.listen";

pub(crate) fn router(gather: Gather) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(gather)
}

async fn metrics(State(gather): State<Gather>, headers: HeaderMap) -> Response {
    let format = wanted(&headers);
    match format.page(gather) {
        Ok(page) => ([(CONTENT_TYPE, format.content_type()), (VARY, "accept")], page).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Proactive negotiation (RFC 9110 §12.5.1) between the two: OpenMetrics where it is named and not liked less.
fn wanted(headers: &HeaderMap) -> Format {
    let accepted = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let (mut open, mut plain) = (0.0_f32, 0.0_f32);
    for range in accepted.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut version, mut weight) = (None, 1.0);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                "version" => version = Some(value.trim().trim_matches('"')),
                // A weight that is no number is nobody's wish.
                "q" => weight = value.trim().parse().unwrap_or(0.0),
                _ => {}
            }
        }
        match (kind.as_str(), version) {
            ("application/openmetrics-text", None | Some("1.0.0")) => open = open.max(weight),
            ("text/plain" | "text/*" | "*/*", None | Some("0.0.4")) => plain = plain.max(weight),
            _ => {}
        }
    }
    match open > 0.0 && open >= plain {
        true => Format::OpenMetrics,
        false => Format::Prometheus,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_is_asked_for() {
        use Format::{OpenMetrics, Prometheus};
        let of = |values: &[&str]| {
            let values = values.iter().map(|value| (ACCEPT, value.parse().unwrap()));
            wanted(&values.collect())
        };
        assert_eq!(of(&[]), Prometheus);
        for (accept, format) in [
            ("*/*", Prometheus),
            ("text/html, */*;q=0.1", Prometheus),
            ("text/plain;version=0.0.4", Prometheus),
            ("application/openmetrics-text", OpenMetrics),
            (
                "Application/OpenMetrics-Text; Version=\"1.0.0\"; charset=utf-8",
                OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=0.0.1,text/plain;q=0.5",
                Prometheus,
            ),
            ("application/openmetrics-text;q=0", Prometheus),
            ("application/openmetrics-text;q=many", Prometheus),
            ("application/openmetrics-text;q=0.2,text/plain;q=0.3", Prometheus),
            ("application/json", Prometheus),
            // Prometheus 2 and 3.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                OpenMetrics,
            ),
        ] {
            assert_eq!(of(&[accept]), format, "{accept}");
        }
        assert_eq!(
            of(&["application/openmetrics-text;q=0.5", "text/plain"]),
            Prometheus
        );
        assert_eq!(
            of(&["text/plain;q=0.5", "application/openmetrics-text"]),
            OpenMetrics
        );
    }
}
