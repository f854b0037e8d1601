//! A real browser without a window, led by its own protocol for developers.
//! <https://chromedevtools.github.io/devtools-protocol/>

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::common::{poll, process};

/// For one answer, on a machine that does other things meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// With one page.
pub(super) struct Browser {
    child: Child,
    profile: TempDir,
    socket: WebSocketStream<TcpStream>,
    session: Option<String>,
    calls: u64,
    /// What it told of since the page was last opened: name and fields.
    events: Vec<(String, Json)>,
}

impl Browser {
    pub(super) async fn start() -> Self {
        let profile = tempfile::Builder::new().prefix("vpc-browser-").tempdir();
        let profile = profile.expect("a temporary directory");
        let child = Command::new(program())
            .args([
                "--headless",
                "--remote-debugging-port=0",
                "--no-first-run",
                "--disable-gpu",
            ])
            // Tests run as root as well; what it sees is our own page.
            .args(["--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"])
            .args(["--disable-background-networking", "--disable-component-update"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the browser");
        let told = poll(PATIENCE, async || {
            let told = fs::read_to_string(profile.path().join("DevToolsActivePort")).ok()?;
            let (port, path) = told.split_once('\n')?;
            Some((port.parse::<u16>().ok()?, path.to_owned()))
        });
        let (port, path) = told.await.expect("the browser opens its port");
        let stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("the browser");
        let url = format!("ws://127.0.0.1:{port}{path}");
        let (socket, _) = tokio_tungstenite::client_async(url, stream)
            .await
            .expect("a socket");
        let mut browser = Self {
            child,
            profile,
            socket,
            session: None,
            calls: 0,
            events: Vec::new(),
        };
        let page = browser
            .call("Target.createTarget", json!({ "url": "about:blank" }))
            .await;
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach).await;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Network", "Log", "Runtime", "Accessibility"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        browser
    }

    /// A window of that size, or a phone's whole screen, by day or by night.
    pub(super) async fn look(&mut self, (width, height): (u32, u32), phone: bool, dark: bool) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone });
        self.call("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", media).await;
    }

    /// Goes there, and waits until all of it is there.
    pub(super) async fn open(&mut self, url: &str) {
        self.events.clear();
        let opened = self.call("Page.navigate", json!({ "url": url })).await;
        assert!(opened["errorText"].is_null(), "{url}: {opened}");
        let end = Instant::now() + PATIENCE;
        while self.told("Page.loadEventFired").is_empty() {
            assert!(Instant::now() < end, "{url} does not load");
            self.hear().await;
        }
    }

    /// What a script says that runs beside the page; `None` while the page is just being replaced.
    pub(super) async fn ask(&mut self, script: &str) -> Option<Json> {
        let script = json!({ "expression": script, "returnByValue": true });
        let answer = self.send("Runtime.evaluate", script).await.ok()?;
        assert!(answer["exceptionDetails"].is_null(), "{answer}");
        Some(answer["result"]["value"].clone())
    }

    /// The page as a screen reader gets it: the role and the name of each thing, and its level.
    pub(super) async fn heard(&mut self) -> Vec<Heard> {
        let tree = self.call("Accessibility.getFullAXTree", json!({})).await;
        let nodes = tree["nodes"].as_array().cloned().unwrap_or_default();
        let heard = nodes.iter().filter(|node| node["ignored"] != true).map(|node| {
            let word = |field: &str| node[field]["value"].as_str().unwrap_or_default().to_owned();
            let properties = node["properties"].as_array().into_iter().flatten();
            let level = properties.filter(|property| property["name"] == "level");
            Heard {
                role: word("role"),
                name: word("name"),
                level: level.filter_map(|level| level["value"]["value"].as_u64()).next(),
            }
        });
        heard.collect()
    }

    /// What the window shows, as PNG in base64.
    pub(super) async fn picture(&mut self) -> String {
        let picture = self
            .call("Page.captureScreenshot", json!({ "format": "png" }))
            .await;
        picture["data"].as_str().expect("a picture").to_owned()
    }

    /// The events of that name since the page was opened.
    pub(super) fn told(&self, name: &str) -> Vec<&Json> {
        let named = self.events.iter().filter(|(event, _)| event == name);
        named.map(|(_, fields)| fields).collect()
    }

    async fn call(&mut self, method: &str, params: Json) -> Json {
        let answer = self.send(method, params).await;
        answer.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    async fn send(&mut self, method: &str, params: Json) -> Result<Json, Json> {
        self.calls += 1;
        let mut call = json!({ "id": self.calls, "method": method, "params": params });
        if let Some(session) = &self.session {
            call["sessionId"] = session.as_str().into();
        }
        let sent = self.socket.send(Message::text(call.to_string())).await;
        sent.expect("the browser listens");
        loop {
            if let Some(answer) = self.hear().await.filter(|answer| answer["id"] == self.calls) {
                return match answer.get("error") {
                    Some(error) => Err(error.clone()),
                    None => Ok(answer["result"].clone()),
                };
            }
        }
    }

    /// The next answer; an event is kept.
    async fn hear(&mut self) -> Option<Json> {
        let next = tokio::time::timeout(PATIENCE, self.socket.next()).await;
        let next = next
            .expect("the browser answers")
            .expect("it goes on")
            .expect("a message");
        let message: Json = serde_json::from_str(next.to_text().ok()?).ok()?;
        match message["method"].as_str() {
            Some(name) => {
                self.events.push((name.to_owned(), message["params"].clone()));
                None
            }
            None => Some(message),
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        process::kill_tree(self.child.id() as i32, self.profile.path());
        let _ = self.child.wait();
    }
}

/// One thing on a page.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) role: String,
    pub(super) name: String,
    pub(super) level: Option<u64>,
}

fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path)
        .flat_map(|dir| ["chromium-headless-shell", "chromium"].map(|name| dir.join(name)));
    places
        .find(|place| place.exists())
        .expect("Chromium is missing: run `make setup`")
}
