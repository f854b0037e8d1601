//! `explain`: each effective value, where it comes from, and what was detected in its place.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use super::out;
use crate::desired::server_url;
use crate::facts::{Facts, Observed, Row};
use crate::spec::{Loaded, SECTIONS, about_key, did_you_mean};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A key such as mesh.client_listen, or a section [default: all of them]
    key: Option<String>,
    /// Print a list of objects as JSON
    #[arg(long)]
    json: bool,
}

/// One effective value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// `mesh.client_listen`, `backends[0].name`, or `detected.app_id`.
    pub key: String,
    /// As TOML; what was detected is plain text.
    pub value: String,
    /// `vpc.toml:3`, a variable, `default`, or who told us.
    pub source: String,
    /// What the value "auto" or "self" turned out to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detected: Option<String>,
    /// Seconds since what was detected was last heard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age: Option<u64>,
}

/// Every effective value of the configuration, then every fact about the machine; or those below `key`.
///
/// The error says that there is no such key, and which one may have been meant.
pub fn lines(loaded: &Loaded, facts: &Facts, key: Option<&str>) -> Result<Vec<Line>, String> {
    let rows = facts.rows();
    let row = |name: &str| rows.iter().find(|row| row.key == name);
    let mut all: Vec<Line> = loaded
        .spec
        .values()
        .into_iter()
        .map(|(key, value)| {
            let detected = detected_as(&key, &value).and_then(row);
            let made = (key == "server.url" && loaded.spec.role.server)
                .then(|| server_url(&loaded.spec, facts).unwrap_or_else(|note| note));
            Line {
                source: loaded.source(&key),
                detected: detected.map(|row| row.value.clone()).or(made),
                age: detected.and_then(|row| row.age).map(|age| age.as_secs()),
                key,
                value,
            }
        })
        .collect();
    all.extend(rows.iter().map(of_machine));
    let Some(wanted) = key else { return Ok(all) };
    let below = |key: &str| {
        key.strip_prefix(wanted)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    let found: Vec<Line> = all.iter().filter(|line| below(&line.key)).cloned().collect();
    if found.is_empty() && !SECTIONS.iter().any(|section| section.name == wanted) {
        let sections = SECTIONS.iter().map(|section| section.name);
        let keys = all.iter().map(|line| line.key.as_str());
        let last = |key: &str| key.rsplit('.').next() == Some(wanted);
        let begun = |key: &str| wanted.contains('.') && key.starts_with(wanted);
        let meant = |line: &&Line| last(&line.key) || begun(&line.key);
        let help = match all.iter().find(meant) {
            Some(line) => format!("did you mean `{}`?", line.key),
            None => did_you_mean(wanted, keys.chain(sections))
                .unwrap_or_else(|| "`dstack-vpc explain` lists every key".into()),
        };
        return Err(format!("there is no key `{}`; {help}", wanted.escape_debug()));
    }
    Ok(found)
}

/// The fact that stands in for a value that leaves it open.
fn detected_as(key: &str, value: &str) -> Option<&'static str> {
    match (key, value) {
        ("dstack.agent", "\"auto\"") => Some("agent"),
        ("dstack.gateway_domain", "\"auto\"") => Some("gateway"),
        ("node.server_app_id", "\"self\"") => Some("app_id"),
        ("nginx.user", "\"auto\"") => Some("host.web_user"),
        ("nginx.program", _) => Some("programs.nginx"),
        ("supervisor.program", _) => Some("programs.supervisord"),
        ("headscale.program", _) => Some("programs.headscale"),
        ("tailscale.program", _) => Some("programs.tailscaled"),
        ("tailscale.client", _) => Some("programs.tailscale"),
        _ => None,
    }
}

fn of_machine(row: &Row) -> Line {
    Line {
        key: format!("detected.{}", row.key),
        value: row.value.clone(),
        source: row.source.clone(),
        detected: None,
        age: row.age.map(|age| age.as_secs()),
    }
}

/// The lines for a person. A single key comes with what it is for and what it accepts.
pub fn text(lines: &[Line]) -> String {
    /// Longer values are cut in a table, and whole when they are asked for alone.
    const WIDEST: usize = 60;
    let dim = anstyle::Style::new().dimmed();
    let mut out = String::new();
    if lines.is_empty() {
        out.push_str("none\n");
    }
    if let [line] = lines {
        let _ = writeln!(out, "{} = {}", line.key, line.value);
        let _ = writeln!(out, "From {}.", from(line));
        let of_key = |path: &str| {
            let generic = path.split_once('[').map_or(path.to_owned(), |(list, rest)| {
                format!("{list}{}", rest.split_once(']').map_or("", |(_, key)| key))
            });
            let sections = SECTIONS
                .iter()
                .flat_map(|section| section.keys.iter().map(move |key| (section, key)));
            sections
                .into_iter()
                .find(|(section, key)| section.path(key) == generic)
        };
        if let Some((section, key)) = of_key(&line.key) {
            let _ = writeln!(out, "\n{}", about_key(section, key));
        }
        return out;
    }
    let shown: Vec<String> = lines
        .iter()
        .map(|line| match line.value.char_indices().nth(WIDEST) {
            Some((at, _)) => format!("{} = {}…", line.key, &line.value[..at]),
            None => format!("{} = {}", line.key, line.value),
        })
        .collect();
    let width = shown
        .iter()
        .map(|text| text.chars().count())
        .filter(|n| *n <= WIDEST)
        .max()
        .unwrap_or(0);
    for (text, line) in shown.iter().zip(lines) {
        let _ = writeln!(out, "{text:width$}  {dim}# {}{dim:#}", from(line));
    }
    out
}

fn from(line: &Line) -> String {
    let mut out = line.source.clone();
    if let Some(detected) = &line.detected {
        let _ = write!(out, ", here {detected}");
    }
    if out.is_empty() {
        return "not known".into();
    }
    if let Some(age) = line.age {
        let _ = write!(out, ", {age} s ago");
    }
    out
}

/// Prints what was asked for.
pub fn explain(loaded: &Loaded, seen: &Observed, args: &Args) -> anyhow::Result<ExitCode> {
    let key = args.key.as_deref();
    let lines = lines(loaded, &seen.facts, key).map_err(anyhow::Error::msg)?;
    match args.json {
        true => out::line(serde_json::to_string_pretty(&lines)?)?,
        // A table may be wider: its lines are for `grep`.
        false if lines.len() > 1 => out::print(text(&lines))?,
        false => out::prose(&text(&lines))?,
    }
    // Why something is not known, beside the output: that may be read by a machine.
    for problem in &seen.problems {
        let what = problem.what.name();
        if key.is_none_or(|key| key.contains(what)) {
            out::aside(format_args!("note: {what}: {}", problem.message));
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::facts::assume;
    use crate::paths::StateDir;
    use crate::spec::{ConfigText, load};

    fn example() -> (Loaded, Facts) {
        let file = ConfigText::new(
            "vpc.toml",
            "[mesh]\nfront = \"nginx\"\n\n[[backends]]\nupstream = \"a:1\"\n",
        );
        let env = BTreeMap::from([("VPC__LOG__LEVEL".to_owned(), "debug".to_owned())]);
        let loaded = load(Some(&file), &env).unwrap();
        let assumed = [("gateway_domain".to_owned(), "apps.example.com".to_owned())];
        let facts = assume(&assumed, &loaded.spec, &StateDir::new("/state")).unwrap();
        (loaded, facts)
    }

    fn said(key: Option<&str>) -> String {
        let (loaded, facts) = example();
        anstream::adapter::strip_str(&text(&lines(&loaded, &facts, key).unwrap())).to_string()
    }

    #[test]
    fn each_value_comes_with_its_source() {
        let all = said(None);
        for line in [
            "mesh.front = \"nginx\"  # vpc.toml:2",
            "mesh.http_listen = \"0.0.0.0:80\"  # default",
            "log.level = \"debug\"  # VPC__LOG__LEVEL",
            "backends[0].upstream = [\"a:1\"]  # vpc.toml:5",
            "dstack.gateway_domain = \"auto\"  # default, here apps.example.com:443, 0 s ago",
            "detected.app_id = unknown  # not known",
        ] {
            let found = all
                .lines()
                .any(|said| said.split_whitespace().eq(line.split_whitespace()));
            assert!(found, "{line}\n{all}");
        }
        assert!(!all.contains("…"), "{all}");
    }

    #[test]
    fn the_public_url_of_a_server_is_made_of_what_was_detected() {
        let env = BTreeMap::from([
            ("VPC_SERVER_ENABLED".to_owned(), "true".to_owned()),
            ("VPC_ALLOWED_APPS".to_owned(), "any".to_owned()),
        ]);
        let loaded = load(None, &env).unwrap();
        let app = "aa00000000000000000000000000000000000001";
        let assumed = [("gateway_domain", "apps.example.com"), ("app_id", app)];
        let assumed = assumed.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let facts = assume(&assumed, &loaded.spec, &StateDir::new("/state")).unwrap();
        let found = lines(&loaded, &facts, Some("server.url")).unwrap();
        assert_eq!(found[0].value, "\"auto\"");
        assert_eq!(
            found[0].detected,
            Some(format!("https://{app}-8080.apps.example.com"))
        );
    }

    #[test]
    fn a_section_a_list_or_one_key() {
        assert_eq!(said(Some("log")).lines().count(), 2);
        assert_eq!(said(Some("backends")).lines().count(), 6);
        assert_eq!(said(Some("backends[0]")).lines().count(), 6);
        let one = said(Some("log.level"));
        assert!(
            one.starts_with("log.level = \"debug\"\nFrom VPC__LOG__LEVEL.\n"),
            "{one}"
        );
        assert!(one.contains("Accepts \"error\", \"warn\","), "{one}");
        assert!(said(Some("backends[0].name")).contains("Names the backend"));
    }

    #[test]
    fn an_unknown_key_is_answered_with_a_near_one() {
        let (loaded, facts) = example();
        let error = |key| lines(&loaded, &facts, Some(key)).unwrap_err();
        assert_eq!(
            error("mesh.frnt"),
            "there is no key `mesh.frnt`; did you mean `mesh.front`?"
        );
        assert_eq!(
            error("http_listen"),
            "there is no key `http_listen`; did you mean `mesh.http_listen`?"
        );
        assert_eq!(
            error("mesh.http"),
            "there is no key `mesh.http`; did you mean `mesh.http_listen`?"
        );
        assert_eq!(error("loog"), "there is no key `loog`; did you mean `log`?");
        assert_eq!(
            error("zzz"),
            "there is no key `zzz`; `dstack-vpc explain` lists every key"
        );
    }
}
