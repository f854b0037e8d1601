//! What a guest agent answers.

use std::time::{Duration, SystemTime};

use rustls_pki_types::UnixTime;

use super::{AgentClient, AgentError, TlsKey};
use crate::facts::fuzz::object;
use crate::identity;
use crate::ratls::{self, Purpose, fuzz::only_app_id};
use crate::words;

/// `data` is an answer: each method reads it for its own. A chain that is taken leads to its root, and names one app.
pub(crate) fn agent_answers(data: &[u8]) {
    let agent = AgentClient::new("unix:/a".parse().unwrap(), Duration::ZERO);
    match agent.read_info(data) {
        Err(error) => told(&error),
        Ok(info) => {
            if let Some(said) = object(data) {
                let text = |name: &str| said[name].as_str().unwrap_or("").to_ascii_lowercase();
                assert_eq!(text("app_id"), info.app_id.to_string());
                let instance = info.instance_id.map_or(String::new(), |id| id.to_string());
                assert_eq!(text("instance_id"), instance);
            }
        }
    }
    match agent.read::<TlsKey>("GetTlsKey", data) {
        Err(error) => told(&error),
        Ok(answer) => certificate(&answer),
    }
    let said = words::told(data);
    assert!(
        (1..=300).contains(&said.chars().count()) && !said.contains(char::is_control),
        "{said:?}"
    );
}

fn certificate(answer: &TlsKey) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_893_456_000);
    let time = UnixTime::since_unix_epoch(Duration::from_secs(1_893_456_000));
    let chain = answer.certificate_chain.join("\n");
    match identity::check(&answer.key, &chain, None, now) {
        Err(error) => {
            let words = error.to_string();
            assert!(
                words.len() < 4000 && !words.contains(char::is_control),
                "{words:?}"
            );
        }
        Ok(checked) => {
            assert!(checked.not_after > now);
            assert_eq!(
                only_app_id(&checked.chain[0]),
                checked.app_id.map(|id| id.to_string())
            );
            if let Some(app) = checked.app_id {
                let peer = ratls::verify_chain(&checked.chain, &checked.root, time, Purpose::Client);
                assert_eq!(peer.unwrap().app_id, app);
            }
        }
    }
}

/// An answer can hold a key, so none of it is quoted.
fn told(error: &AgentError) {
    let words = error.to_string();
    assert!(words.len() < 200, "{words}");
}
