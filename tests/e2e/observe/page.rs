//! The status page, asked over HTTP and looked at in a browser.

use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::Empty;
use hyper::Method;
use serde_json::Value as Json;

use super::Alone;
use super::browser::Browser;
use crate::common::http::{self, Reply, With, get, request};
use crate::common::ports::Port;
use crate::common::secrets::Secrets;
use crate::common::{CLIENT_APP, OTHER_APP, poll, run};

/// A server that calls itself, with two nodes, and its page.
struct Shown {
    alone: Alone,
    page: Port,
    _ports: [Port; 2],
}

impl Shown {
    async fn start() -> Self {
        let (page, api, headscale) = (Port::reserve(), Port::reserve(), Port::reserve());
        let alone = Alone::start(|plan| {
            let role = format!("role = \"server\"\nallowed_apps = [\"{CLIENT_APP}\"]");
            plan.toml = plan.toml.replace("role = \"mesh\"", &role);
            plan.toml += &format!(
                "\n[server]\nurl = \"http://{headscale}\"\nheadscale_listen = \"{headscale}\"\napi_listen = \"{api}\"\n\
                 \n[vpn]\nprefix = \"100.64.0.0/16\"\nderp = \"embedded\"\n\n[status]\nlisten = \"{page}\"\n"
            );
        })
        .await;
        for (name, kind) in [("db-1", "mongodb"), ("web-1", "web")] {
            let update = format!(
                "/api/nodes/update?uuid={name}&node_type={kind}&tailscale_ip=100.64.0.7&hostname={name}.dstack.internal"
            );
            let announced = http::post(&update, "").with("x-dstack-app-id", CLIENT_APP);
            let reply = http::send(api.addr(), announced).await.expect("an answer");
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
        for (app, calls) in [(CLIENT_APP, 7), (OTHER_APP, 3)] {
            for _ in 0..calls {
                alone.proxy(get("/x").to_app(app)).await;
            }
        }
        Self {
            alone,
            page,
            _ports: [api, headscale],
        }
    }

    async fn ask(&self, method: Method, path: &str, host: &str) -> Reply {
        ask(&self.page, method, path, host).await
    }

    /// The page, once it says so.
    async fn says(&self, what: &str) -> String {
        let mut page = String::new();
        let said = poll(Duration::from_secs(30), async || {
            page = self.ask(Method::GET, "/", "localhost").await.text();
            page.contains(what).then_some(())
        });
        assert!(said.await.is_some(), "{what} is not in\n{page}");
        page
    }
}

async fn ask(port: &Port, method: Method, path: &str, host: &str) -> Reply {
    let asked = request(method, path, Empty::<bytes::Bytes>::new()).with("host", host);
    http::send(port.addr(), asked).await.expect("an answer")
}

#[test]
fn the_page_tells_how_the_machine_is_and_nothing_secret() {
    run(async {
        let shown = Shown::start().await;
        shown.says("<strong>ready</strong>").await;
        let page = shown.ask(Method::GET, "/", "127.0.0.1:1").await;
        assert_eq!(page.status, 200, "{}", page.text());
        assert_eq!(page.all("content-type"), ["text/html; charset=utf-8"]);
        let text = page.text();
        for part in [
            "db-1.dstack.internal",
            "mongodb",
            CLIENT_APP,
            "identity_mismatch 3",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(text.contains("http-equiv=\"refresh\""));
        let still = shown.ask(Method::GET, "/?still", "localhost").await.text();
        assert!(still.contains("<h1>dstack-vpc</h1>") && !still.contains("http-equiv=\"refresh\""));

        // Nothing but to look, and only under names that lead here and nowhere else.
        let head = shown.ask(Method::HEAD, "/", "localhost").await;
        assert_eq!((head.status, head.body.len()), (200, 0));
        let others = [
            (Method::POST, "/", "localhost", 405),
            (Method::DELETE, "/", "localhost", 405),
            (Method::OPTIONS, "/", "localhost", 405),
            (Method::GET, "/status", "localhost", 404),
            (Method::GET, "/", "status.example.com", 421),
            (Method::GET, "/nothing", "status.example.com", 421),
        ];
        for (method, path, host, status) in others {
            let reply = shown.ask(method.clone(), path, host).await;
            assert_eq!(reply.status, status, "{method} {path} {host}");
            let policy = reply.all("content-security-policy");
            assert!(
                policy[0].starts_with("default-src 'none'; style-src 'sha256-"),
                "{policy:?}"
            );
            assert_eq!(reply.all("x-content-type-options"), ["nosniff"]);
            assert!(!reply.text().contains(CLIENT_APP), "{}", reply.text());
        }

        // An edit, and what it changed; then one that is refused, in its own hostile words.
        let named = |toml: String| toml.replace("[status]\n", "[status]\nnames = [\"status.example.com\"]\n");
        shown.alone.machine.edit(named).await;
        assert_eq!(
            shown.ask(Method::GET, "/", "status.example.com").await.status,
            200
        );
        let text = shown.says("<ins>+names").await;
        assert!(text.contains("daemon/vpc.toml: changed"), "{text}");
        let hostile = |toml: String| toml + "\n[\"<img src=x onerror=alert(1)>\"]\n";
        shown.alone.machine.edit(hostile).await;
        let text = shown.says("<strong>degraded</strong>").await;
        assert!(text.contains("&lt;img src=x") && !text.contains("<img"), "{text}");

        let secrets = Secrets::of(shown.alone.machine.state.root());
        let leaks = secrets.in_text("the status page", &text);
        assert!(leaks.is_empty(), "{leaks:?}");
    });
}

#[test]
fn the_page_opens_moves_and_closes_while_everything_runs() {
    run(async {
        let (first, second) = (Port::reserve(), Port::reserve());
        let on = format!("listen = \"{first}\"");
        let alone = Alone::start(|plan| plan.toml += &format!("\n[status]\n{on}\n")).await;
        let machine = &alone.machine;
        let to = |from: &str, to: &str| {
            let (from, to) = (from.to_owned(), to.to_owned());
            move |toml: String| toml.replace(&from, &to)
        };
        let taken = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a listener");
        let holder = format!("listen = \"{}\"", taken.local_addr().expect("its address"));
        let status = machine.edit(to(&on, &holder)).await;
        let error = status.last_error.expect("refused").message;
        assert!(
            error.contains("status.listen") && error.contains("taken"),
            "{error}"
        );
        assert_eq!(ask(&first, Method::GET, "/", "localhost").await.status, 200);

        let open = format!("listen = \"0.0.0.0:{}\"", second.number());
        let status = machine.edit(to(&holder, &open)).await;
        let error = status.last_error.expect("refused").message;
        assert!(error.contains("public = true"), "{error}");
        machine.edit(to(&open, &format!("{open}\npublic = true"))).await;
        assert_eq!(ask(&second, Method::GET, "/", "localhost").await.status, 200);
        let closed = async |port: &Port| {
            let closing = poll(Duration::from_secs(10), async || {
                tokio::net::TcpStream::connect(port.addr())
                    .await
                    .is_err()
                    .then_some(())
            });
            closing.await.is_some()
        };
        assert!(closed(&first).await, "where it was, nobody listens");
        machine.edit(to(&open, "listen = \"\"")).await;
        assert!(closed(&second).await, "it is closed");
    });
}

/// What is wide, what is dark, and which text stands out too little (WCAG 1.4.3), with all that can be opened open.
const LOOK: &str = r"(() => {
    document.querySelectorAll('details').forEach(details => details.open = true);
    const parts = colour => colour.match(/[\d.]+/g).map(Number);
    const bright = colour => {
        const [r, g, b] = colour.map(part => part / 255)
            .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = element => {
        for (; element; element = element.parentElement) {
            const colour = parts(getComputedStyle(element).backgroundColor);
            if (colour.length < 4 || colour[3] > 0) return bright(colour);
        }
        return 1;
    };
    const pale = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const text = texts.currentNode.data.trim(), element = texts.currentNode.parentElement;
        if (!text) continue;
        const [light, dark] = [bright(parts(getComputedStyle(element).color)), behind(element)].sort((a, b) => b - a);
        const contrast = (light + 0.05) / (dark + 0.05);
        if (contrast < 4.5) pale.push(`${text}: ${contrast.toFixed(2)}`);
    }
    const page = document.documentElement;
    return { over: page.scrollWidth - page.clientWidth, dark: behind(document.body) < 0.1, texts: pale };
})()";

/// What is marked as wrong: the heads of the columns, and whether it stands out by more than its colour.
const MARKED: &str = r"[...document.querySelectorAll('td.bad')].map(cell => {
    const beside = cell.closest('table').querySelectorAll('thead th')[cell.cellIndex];
    const [mark, weight] = [getComputedStyle(cell, '::before').content, getComputedStyle(cell).fontWeight];
    return [beside.textContent, mark.includes('!') && weight > 400];
})";

#[test]
fn people_can_read_the_page_on_a_phone_in_the_dark_and_by_ear() {
    run(async {
        let shown = Shown::start().await;
        let named = |toml: String| toml.replace("[status]\n", "[status]\nnames = [\"status.example.com\"]\n");
        shown.alone.machine.edit(named).await;
        shown.says("<ins>+names").await;
        shown.says("<strong>ready</strong>").await;
        let url = format!("http://{}/", shown.page);
        let mut browser = Browser::start().await;
        // One more that fails, just now.
        shown.alone.proxy(get("/x").to_app(OTHER_APP)).await;
        for (size, phone) in [((1100, 900), false), ((360, 740), true)] {
            for dark in [false, true] {
                browser.look(size, phone, dark).await;
                browser.open(&format!("{url}?still")).await;
                let seen = browser.ask(LOOK).await.expect("a page that stands still");
                let wanted = serde_json::json!({ "over": 0, "dark": dark, "texts": [] });
                assert_eq!(seen, wanted, "{size:?}");
                // Nothing is fetched but the page itself, and the policy has nothing to forbid.
                let fetched = browser.told("Network.requestWillBeSent");
                let fetched: Vec<_> = fetched.iter().map(|it| it["request"]["url"].as_str()).collect();
                assert_eq!(fetched, [Some(format!("{url}?still").as_str())]);
                assert_eq!(browser.told("Log.entryAdded"), Vec::<&Json>::new());
                let marked = browser.ask(MARKED).await.expect("a page that stands still");
                assert_eq!(marked, serde_json::json!([["Errors", true]]));
            }
        }

        let heard = browser.heard().await;
        let named = |role: &str| {
            let found = heard.iter().filter(|it| it.role == role);
            found.map(|it| it.name.as_str()).collect::<Vec<_>>()
        };
        for landmark in ["banner", "main", "status"] {
            assert_eq!(named(landmark).len(), 1, "{landmark}: {heard:#?}");
        }
        let headings = heard.iter().filter(|it| it.role == "heading");
        let headings: Vec<_> = headings
            .map(|it| (it.level.unwrap_or_default(), it.name.as_str()))
            .collect();
        let sections = headings.iter().filter(|(level, _)| *level < 3);
        let sections: Vec<_> = sections.copied().collect();
        assert_eq!(
            sections,
            [
                (1, "dstack-vpc"),
                (2, "Machine"),
                (2, "Nodes"),
                (2, "Mesh"),
                (2, "History")
            ]
        );
        assert!(
            headings
                .iter()
                .all(|(level, name)| (1..=3).contains(level) && !name.is_empty())
        );
        assert_eq!(
            named("table")
                .iter()
                .map(|name| name.split(',').next().unwrap_or_default())
                .collect::<Vec<_>>(),
            ["Conditions", "Programs", "2 known", "Calls", "Callers"]
        );
        let columns = named("columnheader");
        assert!(
            columns.contains(&"Seen") && columns.iter().all(|name| !name.is_empty()),
            "{columns:?}"
        );
        let cells = named("cell");
        let wrong = cells.iter().filter(|name| name.ends_with(" and more are coming"));
        assert_eq!(wrong.count(), 1, "{cells:?}");
        let rows = named("rowheader");
        assert!(rows.contains(&"db-1") && rows.contains(&CLIENT_APP), "{rows:?}");
        for role in ["region", "link", "DisclosureTriangle"] {
            let names = named(role);
            assert!(
                !names.is_empty() && names.iter().all(|name| !name.is_empty()),
                "{role}: {heard:#?}"
            );
        }

        // It follows by itself.
        browser.open(&url).await;
        until_titled(&mut browser, "ready: dstack-vpc, server").await;
        shown.alone.machine.edit(|toml| toml + "\n[nonsense]\n").await;
        until_titled(&mut browser, "degraded: dstack-vpc, server").await;
    });
}

/// Without being led anywhere.
async fn until_titled(browser: &mut Browser, title: &str) {
    let titled = poll(Duration::from_secs(60), async || {
        let now = browser.ask("document.title").await?;
        (now == title).then_some(())
    });
    assert!(titled.await.is_some(), "it is not drawn anew: {title}");
}

#[test]
#[ignore = "writes docs/status-*.png: `make screenshots`"]
fn screenshots() {
    run(async {
        let shown = Shown::start().await;
        let listed = |toml: String| {
            let private = format!("allowed_apps = [\"{OTHER_APP}\"]");
            toml.replace(
                &private,
                &format!("allowed_apps = [\"{OTHER_APP}\", \"{CLIENT_APP}\"]"),
            )
        };
        shown.alone.machine.edit(listed).await;
        shown.says("<ins>").await;
        let mut browser = Browser::start().await;
        let url = format!("http://{}/?still", shown.page);
        let history = "document.querySelectorAll('details').forEach(details => details.open = true);
            document.querySelector('#history').scrollIntoView()";
        for (name, size, phone, dark, show) in [
            ("light", (1000, 1330), false, false, ""),
            ("history", (1000, 640), false, true, history),
            ("phone", (390, 844), true, false, ""),
        ] {
            browser.look(size, phone, dark).await;
            browser.open(&url).await;
            browser.ask(show).await;
            let picture = STANDARD.decode(browser.picture().await).expect("base64");
            let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
            fs::write(docs.join(format!("status-{name}.png")), picture).expect("a file");
            if name == "history" {
                shown
                    .alone
                    .machine
                    .edit(|toml| toml.replace("role = \"server\"", "role = \"sever\""))
                    .await;
                shown.says("<strong>degraded</strong>").await;
            }
        }
    });
}
