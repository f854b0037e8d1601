//! Headscale's own command line, which makes API keys over its socket: whoever may open the socket may make one.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use super::wire::prefix_of;
use super::{Access, HeadscaleError, Secret};
use crate::words;

/// It is a program of 60 MB that has to start, on a machine that may be busy.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Makes an API key, which only Headscale's answer holds: it stands in no argument and in no variable.
pub(super) async fn create_api_key(access: &Access) -> Result<Secret, HeadscaleError> {
    let failed = |why: String| HeadscaleError::Command {
        program: access.program.clone(),
        why,
    };
    let mut command = Command::new(&access.program);
    command
        .arg("--config")
        .arg(&access.config)
        .args(["apikeys", "create", "--output", "json", "--expiration"])
        .arg(format!("{}s", access.key_lifetime.as_secs().max(1)))
        // These would send it to another Headscale.
        .env_remove("HEADSCALE_CLI_ADDRESS")
        .env_remove("HEADSCALE_CLI_API_KEY")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(TIMEOUT, command.output())
        .await
        .map_err(|_| failed(format!("it took longer than {}s", TIMEOUT.as_secs())))?
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let words = words::quoted(&String::from_utf8_lossy(&output.stderr));
        return Err(failed(format!("{words} ({})", output.status)));
    }
    parse(&output.stdout).ok_or_else(|| failed("its answer holds no API key".to_owned()))
}

/// A JSON string in all versions so far; one in an object, or bare, would do as well.
fn parse(stdout: &[u8]) -> Option<Secret> {
    let text = str::from_utf8(stdout).ok()?.trim();
    let key = match serde_json::from_str(text) {
        Ok(Value::String(key)) => key,
        Ok(Value::Object(object)) => object.values().find_map(Value::as_str)?.to_owned(),
        _ => text.to_owned(),
    };
    let key = Secret::new(key);
    let is_one_word = key.expose().bytes().all(|b| b.is_ascii_graphic());
    (is_one_word && prefix_of(&key).is_some()).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_what_versions_print() {
        let new = format!("hskey-api-abcdefghijkl-{}", "s".repeat(64));
        for (printed, key) in [
            ("\"abcdefg.0123456789\"\n".to_owned(), "abcdefg.0123456789"),
            (format!("\"{new}\"\n"), new.as_str()),
            (format!("{{\"apiKey\": \"{new}\"}}"), new.as_str()),
            (format!("{new}\n"), new.as_str()),
        ] {
            assert_eq!(parse(printed.as_bytes()).unwrap().expose(), key);
        }
        for junk in ["", "{}", "\"\"", "Usage of it", "a. b", "hskey-api-short", "null"] {
            assert!(parse(junk.as_bytes()).is_none(), "{junk}");
        }
    }
}
