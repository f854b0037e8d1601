//! From the text of a value to the value, and what may help where it is none.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use url::Url;

use super::suggest::did_you_mean;
use super::values::{AgentChoice, Gateway, GatewayChoice};
use crate::names::{DnsName, Host, HostPort, parse_port};

/// `None` for the one word that stands for it.
pub(super) fn unless<T>(
    word: &str,
    s: &str,
    parse: fn(&str) -> Result<T, Option<String>>,
) -> Result<Option<T>, Option<String>> {
    if s == word { Ok(None) } else { parse(s).map(Some) }
}

pub(super) fn underscore_help(s: &str) -> Option<String> {
    let repaired = s.trim().replace(['_', ' '], "-");
    (repaired != s && repaired.parse::<DnsName>().is_ok()).then(|| format!("did you mean `{repaired}`?"))
}

pub(super) fn parse_listen(s: &str) -> Result<SocketAddr, Option<String>> {
    match s.parse::<SocketAddr>() {
        Ok(addr) if addr.port() != 0 => Ok(addr),
        Ok(_) => Err(Some("the port is from 1 to 65535".into())),
        Err(_) => Err(
            if let Some(port) = s.strip_prefix(':').and_then(|port| parse_port(port).ok()) {
                Some(format!("did you mean `0.0.0.0:{port}` (all addresses)?"))
            } else if let Ok(port) = parse_port(s) {
                Some(format!("did you mean `127.0.0.1:{port}`?"))
            } else if let Some(port) = s
                .strip_prefix("localhost:")
                .and_then(|port| parse_port(port).ok())
            {
                Some(format!("did you mean `127.0.0.1:{port}`?"))
            } else if let Ok(ip) = s.parse::<IpAddr>() {
                Some(format!("add a port, as in `{}`", SocketAddr::new(ip, 8081)))
            } else {
                None
            },
        ),
    }
}

pub(super) fn host_port_help(s: &str) -> Option<String> {
    let bare = s.trim();
    let bare = bare
        .strip_prefix("http://")
        .or_else(|| bare.strip_prefix("https://"))
        .unwrap_or(bare);
    let bare = bare.trim_end_matches('/');
    if let Ok(port) = parse_port(bare.trim_start_matches(':')) {
        Some(format!("did you mean `127.0.0.1:{port}`?"))
    } else if bare != s && bare.parse::<HostPort>().is_ok() {
        Some(format!("did you mean `{bare}`?"))
    } else if bare.parse::<Host>().is_ok() {
        Some(format!("add the port, as in `{bare}:8081`"))
    } else {
        None
    }
}

pub(super) fn parse_agent(s: &str) -> Result<AgentChoice, Option<String>> {
    if s == "auto" {
        return Ok(AgentChoice::Auto);
    }
    s.parse().map(AgentChoice::At).map_err(|_| {
        if s.starts_with('/') {
            Some(format!("did you mean `unix:{s}`?"))
        } else if s.starts_with("https://") {
            Some("the guest agent speaks plain HTTP inside the machine".into())
        } else if s.parse::<HostPort>().is_ok() {
            Some(format!("did you mean `http://{s}`?"))
        } else if s
            .strip_prefix("http://")
            .is_some_and(|host| host.parse::<DnsName>().is_ok())
        {
            Some(format!("add the port: `{s}:8090`"))
        } else {
            did_you_mean(s, ["auto"])
        }
    })
}

pub(super) fn parse_gateway(s: &str) -> Result<GatewayChoice, Option<String>> {
    if s == "auto" {
        return Ok(GatewayChoice::Auto);
    }
    let host = s.rsplit_once(':').map_or(s, |(host, _)| host);
    if host.parse::<IpAddr>().is_ok() || host.starts_with('[') {
        return Err(Some(format!(
            "an address has no names below it; to send every call there, write `fixed/{s}`"
        )));
    }
    s.parse().map(GatewayChoice::Is).map_err(|_| {
        if let Some(at) = s.strip_prefix("fixed/") {
            return host_port_help(at).map(|help| format!("after `fixed/`: {help}"));
        }
        let bare = s.strip_prefix("https://").or_else(|| s.strip_prefix("http://"))?;
        let bare = bare.trim_end_matches('/');
        bare.parse::<Gateway>()
            .ok()
            .map(|_| format!("did you mean `{bare}`?"))
    })
}

/// `http(s)://host[:port]` and nothing after it.
pub(super) fn parse_url(s: &str, usual_scheme: &str) -> Result<Url, Option<String>> {
    let url = parse_web(s, usual_scheme)?;
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(Some("leave out everything after the host and port".into()));
    }
    Ok(url)
}

/// `http(s)://host[:port]/path?query`
pub(super) fn parse_page(s: &str) -> Result<Url, Option<String>> {
    let url = parse_web(s, "https")?;
    match url.fragment() {
        Some(_) => Err(Some("leave out what follows the `#`".into())),
        None => Ok(url),
    }
}

/// A URL with nobody's password in it.
fn parse_web(s: &str, usual_scheme: &str) -> Result<Url, Option<String>> {
    let bare = s.parse::<HostPort>().is_ok() || s.parse::<DnsName>().is_ok();
    let completed = || bare.then(|| format!("did you mean `{usual_scheme}://{s}`?"));
    let url = Url::parse(s).map_err(|_| completed())?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(completed().or(Some("the scheme is http or https".into())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Some("a user and password do not belong in this file".into()));
    }
    match url.host_str().map(str::parse::<Host>) {
        Some(Ok(_)) if url.port() != Some(0) => Ok(url),
        _ => Err(None),
    }
}

pub(super) fn show_url(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

pub(super) fn printable(s: &str) -> Result<PathBuf, Option<String>> {
    match s.chars().any(char::is_control) {
        _ if s.is_empty() => Err(None),
        true => Err(Some("it holds a control character".into())),
        false => Ok(Path::new(s).to_owned()),
    }
}

pub(super) fn absolute(s: &str) -> Result<PathBuf, Option<String>> {
    if s.starts_with('/') {
        printable(s)
    } else {
        Err(Some("start it with `/`".into()))
    }
}
