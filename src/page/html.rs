//! The page as HTML, and what a browser may do with it.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use tera::{Context, Tera};

use super::view::View;

/// How often an open page asks again, in seconds.
const REFRESH: u32 = 10;

const NAME: &str = "page.html";
const STYLE: &str = include_str!("page.css");

static ENGINE: LazyLock<Tera> = LazyLock::new(|| {
    let mut tera = Tera::new();
    tera.autoescape_on([".html"]);
    let parsed = tera.add_raw_template(NAME, include_str!("page.html"));
    parsed.expect("the template in this binary parses: a test draws it");
    tera
});

/// Nothing is loaded, run, sent or framed; the one style is known by its digest.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let style = STANDARD.encode(Sha256::digest(STYLE));
    format!(
        "default-src 'none'; style-src 'sha256-{style}'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    )
});

/// The `Content-Security-Policy`.
pub(super) fn policy() -> &'static str {
    &POLICY
}

/// Draws it; one that is `still` does not ask again.
pub(super) fn page(view: &View, still: bool) -> Result<String, tera::Error> {
    let mut context = Context::from_serialize(view)?;
    context.insert("style", STYLE);
    context.insert("refresh", &(!still).then_some(REFRESH));
    ENGINE.render(NAME, &context)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::super::rates::{Callers, Mesh, Sessions, Target};
    use super::*;
    use crate::node::{NodeStatus, Path, Peer, Step};
    use crate::reconcile::status::{Event, Status};

    const HOSTILE: &str = "<script>alert('x')</script>&\"";

    /// With every part there is, and somebody's own words wherever they can come to stand.
    fn hostile() -> View {
        let at = Timestamp::UNIX_EPOCH;
        let event = Event {
            at,
            generation: Some(1),
            outcome: "refused".to_owned(),
            cause: HOSTILE.to_owned(),
            detail: HOSTILE.to_owned(),
            stage_ms: 0,
            act_ms: 0,
        };
        let peer = Peer {
            name: HOSTILE.to_owned(),
            address: None,
            online: true,
            path: Path::Relayed(HOSTILE.to_owned()),
        };
        let status = Status {
            role: HOSTILE.to_owned(),
            problems: vec![HOSTILE.to_owned()],
            notes: vec![HOSTILE.to_owned()],
            node: Some(NodeStatus {
                step: Step::Joined,
                problem: Some(HOSTILE.to_owned()),
                peers: vec![peer],
                ..NodeStatus::default()
            }),
            history: vec![event],
            ..Status::default()
        };
        let mesh = Mesh {
            over: std::time::Duration::from_secs(60),
            targets: vec![Target {
                name: "agent".to_owned(),
                requests: 120,
                errors: 3,
                request_rate: 2.0,
                error_rate: 0.05,
                failed: vec![("response_timeout", 3)],
                sent: 2048,
                received: 1,
            }],
            callers: vec![Callers {
                backend: HOSTILE.to_owned(),
                allowed: 4,
                refused: vec![("expired", 1)],
            }],
            sessions: vec![Sessions {
                kind: "forward",
                name: HOSTILE.to_owned(),
                open: 1,
                ended: Vec::new(),
                received: 0,
                sent: 0,
            }],
        };
        View::new(&status, Some(Err(HOSTILE.to_owned())), mesh, &BTreeMap::new(), at)
    }

    #[test]
    fn nobodys_words_become_a_part_of_the_page() {
        let html = page(&hostile(), false).unwrap();
        assert!(
            !html.contains("<script") && !html.contains("alert('x')"),
            "{html}"
        );
        let escaped = html.matches("&lt;script").count();
        assert!(escaped >= 11, "{escaped} times\n{html}");
    }

    #[test]
    fn what_is_counted_is_told() {
        let html = page(&hostile(), true).unwrap();
        for part in [
            "the guest agent",
            ">120<",
            ">2.0<",
            ">0.05<",
            "response_timeout 3",
            "2.0 KiB",
            "expired 1",
            "last 60s",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
        // What is wrong is marked where it stands, and nowhere else.
        let errors = "<td class=\"bad number\">3 <span class=\"heard\">and more are coming</span></td>";
        assert!(html.contains(errors), "{html}");
        assert_eq!(html.matches("bad number").count(), 1, "{html}");
    }
}
