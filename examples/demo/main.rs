//! `make demo`: two machines side by side, and what dstack-vpc does for them, told in six steps. With `FRONT=builtin`
//! they need no nginx.

#[path = "../../tests/common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;
mod story;
mod vpn;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use common::http::{Reply, With, get, post};
use common::load::Load;
use common::machine::{Machine, front, holds};
use common::pair::{Pair, REPORTS};
use common::ports::Port;
use common::{CLIENT_APP, OTHER_APP, SERVER_APP, poll};
use dstack_vpc::reconcile::status::{ConditionKind::Configured, Status};
use tokio::signal::unix::{SignalKind, signal};

use story::{aside, chapter, good, quote, say};
use vpn::Vpn;

#[tokio::main]
async fn main() -> ExitCode {
    let interrupted = async {
        let mut terminate = signal(SignalKind::terminate()).expect("a signal handler");
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    };
    // Whichever way the story ends, its machines end with it.
    let told = tokio::select! {
        told = tell() => told,
        () = interrupted => {
            say("Interrupted. Everything that was started is ended.");
            return ExitCode::from(130);
        }
    };
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("The demo failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn tell() -> Result<()> {
    say(
        "Two Confidential VMs, played by this computer. The app \"shop\" runs in one, the app \"orders\" in the",
    );
    say("other. Both trust the same key service, here a stand-in that attests nothing.");
    let vpn = Vpn::look();
    let pair = starting(&vpn).await?;
    calling(&pair).await?;
    editing(&pair).await?;
    refusing(&pair).await?;
    mistaken(&pair).await?;
    chapter(6, "The VPN");
    vpn.tell(&pair).await?;
    say("");
    good("That was all. Both machines are ended and their directories removed.");
    Ok(())
}

async fn starting(vpn: &Vpn) -> Result<Pair> {
    chapter(1, "Starting");
    let begin = Instant::now();
    let pair = Pair::start_with(|shop, orders| vpn.make(shop, orders)).await;
    vpn.introduce();
    for (name, app, machine) in [
        ("shop", CLIENT_APP, &pair.client),
        ("orders", SERVER_APP, &pair.server),
    ] {
        say(&format!("{name:<7} app id {app}"));
        aside(&format!("        configuration   {}", machine.config.display()));
        aside(&format!(
            "        other machines  https://{}",
            machine.ports.https
        ));
        aside(&format!("        local apps      http://{}", machine.ports.http));
        aside(&format!("        processes       {}", programs(machine)));
    }
    good(&format!(
        "Both serve, {:.1} s after their start.",
        begin.elapsed().as_secs_f64()
    ));
    Ok(pair)
}

/// The programs below a machine, each with its number of processes.
fn programs(machine: &Machine) -> String {
    let processes = machine.processes();
    let count = |words: &str| processes.iter().filter(|p| p.command.contains(words)).count();
    let mut text = format!(
        "{} of supervisord, {} of dstack-vpc",
        count("supervisord"),
        processes.iter().filter(|p| p.command.ends_with(" run")).count(),
    );
    if front() == "nginx" {
        text += &format!(", {} of nginx", count("nginx: "));
    }
    for (program, words) in [("headscale", "headscale serve"), ("tailscaled", "tailscaled --")] {
        if count(words) > 0 {
            text += &format!(", 1 of {program}");
        }
    }
    text
}

async fn calling(pair: &Pair) -> Result<()> {
    chapter(2, "A call from shop to orders");
    let (shop, orders) = (&pair.client.ports, &pair.server.ports);
    say("An app calls by app id, with plain HTTP to its own machine:");
    quote(&format!(
        "curl -H 'x-dstack-target-app: {SERVER_APP}' http://{}/hello",
        shop.http
    ));
    say("The request goes");
    let (entrance, exit) = match front().as_str() {
        "nginx" => (
            format!("nginx {} -> proxy {}", shop.http, shop.client),
            format!(
                "nginx {}, which asks the auth service {}",
                orders.https, orders.auth
            ),
        ),
        _ => (
            format!("dstack-vpc {}", shop.http),
            format!("dstack-vpc {}", orders.https),
        ),
    };
    aside(&format!("  {entrance}"));
    aside("    -> mutual TLS, both certificates carry an app id");
    aside(&format!("    -> {exit}"));
    aside(&format!("    -> the backend {}", pair.default.addr()));
    let reply = pair.call(get("/hello")).await;
    ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
    let seen = reply.json();
    say("The backend saw");
    quote(&format!("{} {}", text(&seen["method"]), text(&seen["path"])));
    let mut caller = None;
    for header in seen["headers"].as_array().into_iter().flatten() {
        if header[0] == "x-dstack-app-id" {
            quote(&format!("x-dstack-app-id: {}", text(&header[1])));
            caller = header[1].as_str();
        }
    }
    ensure!(caller == Some(CLIENT_APP), "the backend saw {caller:?}");
    good("The backend knows who called: the app id comes out of shop's certificate.");
    Ok(())
}

async fn editing(pair: &Pair) -> Result<()> {
    chapter(3, "A live edit");
    say(&format!(
        "orders gets a second backend. Until now, calls with the Host {NEW_HOST} reach the first:"
    ));
    ensure!(which(pair).await == "default", "{}", which(pair).await);
    quote("answered by the program \"default\"");
    let more = format!(
        "\n[[backends]]\nname = \"invoices\"\nserver_name = \"{NEW_HOST}\"\nupstream = \"{}\"\n",
        pair.reports.addr()
    );
    say("Added to its vpc.toml, and saved:");
    for line in more.trim().lines() {
        quote(&format!("+ {line}"));
    }
    let load = steady(pair);
    let saved = pair.server.save(|toml| toml + &more).await;
    let live = poll(Duration::from_secs(20), async || {
        (which(pair).await == "reports").then_some(())
    });
    ensure!(
        live.await.is_some(),
        "the edit did not go live\n{}",
        pair.server.logs()
    );
    let took = saved.at.elapsed();
    quote("answered by the program \"reports\", which listens there");
    pair.server.settled(&saved).await;
    let failed = stopped(load).await?;
    good(&format!(
        "Live {} ms after it was saved. {failed}",
        took.as_millis()
    ));
    Ok(())
}

const NEW_HOST: &str = "invoices.local";

/// Which backend answers for [`NEW_HOST`].
async fn which(pair: &Pair) -> String {
    text(&pair.call(get("/which").with("host", NEW_HOST)).await.json()["backend"]).to_owned()
}

async fn refusing(pair: &Pair) -> Result<()> {
    chapter(4, "Edits that are refused, while requests go on");
    let load = steady(pair);

    say(
        "First a slip of the pen: probe_timeout = \"soon\". `dstack-vpc check` says, and so does the daemon:",
    );
    let text = std::fs::read_to_string(&pair.server.config)?;
    let status = pair
        .server
        .edit(|toml| toml.replace("probe_timeout = \"3s\"", "probe_timeout = \"soon\""))
        .await;
    ensure!(!holds(&status, Configured), "the slip was taken");
    let check = pair.server.cli(&["check"]);
    for line in String::from_utf8_lossy(&[check.stdout, check.stderr].concat())
        .trim()
        .lines()
    {
        quote(line);
    }
    ensure!(check.status.code() == Some(1), "check found nothing");
    pair.server.edit(|_| text.clone()).await;

    let taken = Port::reserve();
    let holder = std::net::TcpListener::bind(taken.addr())?;
    say("Then one that no look at the file can find: the proxy is to move to a port that somebody else has.");
    let client = pair.server.ports.client.to_string();
    let status = pair
        .server
        .edit(|toml| toml.replace(&client, &taken.to_string()))
        .await;
    ensure!(!holds(&status, Configured), "a taken port was taken for good");
    let outcome = status.history.last().map_or("nothing", |event| &event.outcome);
    say(&format!("`dstack-vpc status` says \"{outcome}\", and why:"));
    for line in reason(&status).lines() {
        quote(line);
    }
    pair.server.edit(|_| text.clone()).await;
    if text.contains("[server]") {
        rolled_back(pair, &text, &taken).await?;
    }
    drop(holder);
    let failed = stopped(load).await?;
    good(&format!(
        "The last good configuration served all the time. {failed}"
    ));
    Ok(())
}

/// An edit whose every file is right, and that fails all the same once it is live.
async fn rolled_back(pair: &Pair, text: &str, taken: &Port) -> Result<()> {
    say(
        "And one that even Headscale's own check approves: Headscale moves to that port. It stops, tries, fails,",
    );
    say("and the generation before comes back by itself:");
    let status = pair
        .server
        .edit(|toml| {
            let line = toml.lines().find(|line| line.starts_with("headscale_listen"));
            let line = line.unwrap_or_default().to_owned();
            toml.replace(&line, &format!("headscale_listen = \"{taken}\""))
        })
        .await;
    let event = status.history.last();
    ensure!(
        event.is_some_and(|event| event.outcome == "rolled back"),
        "it was not rolled back: {:?}",
        status.history
    );
    let why = reason(&status).lines().next().unwrap_or_default();
    quote(why.trim_end_matches("; it said:"));
    quote(&format!(
        "rolled back: generation {} serves again",
        status.generation.unwrap_or_default()
    ));
    pair.server.edit(|_| text.to_owned()).await;
    Ok(())
}

async fn mistaken(pair: &Pair) -> Result<()> {
    chapter(5, "Another app answers than the one that was asked for");
    say("shop asks for an app that is neither of the two, but its gateway leads to orders:");
    quote(&format!("x-dstack-target-app: {OTHER_APP}"));
    let before = pair.default.seen().len();
    let call = post("/payment", "card number").to_app(OTHER_APP);
    let reply = pair.client.call(call).await.map_err(anyhow::Error::from_boxed)?;
    quote(&format!("{} {}", reply.status, reply.text().trim()));
    ensure!(refused_for_identity(&reply), "it was not refused");
    ensure!(
        pair.default.seen().len() == before,
        "the wrong app received a request"
    );
    good("Refused inside the TLS handshake: orders received not one byte of the request.");
    Ok(())
}

fn refused_for_identity(reply: &Reply) -> bool {
    reply.status == 502 && reply.json()["code"] == "identity_mismatch"
}

fn steady(pair: &Pair) -> Load {
    Load::start(2, pair.client.ports.http.addr(), || {
        get("/steady").with("host", REPORTS).to_app(SERVER_APP)
    })
}

async fn stopped(load: Load) -> Result<String> {
    let tally = load.stop().await;
    ensure!(
        tally.failed.is_empty(),
        "{} requests failed: {:?}",
        tally.failed.len(),
        tally.failed.first()
    );
    Ok(format!("{} requests meanwhile, 0 failed.", tally.answered))
}

fn reason(status: &Status) -> &str {
    status
        .last_error
        .as_ref()
        .map_or("nothing", |error| &error.message)
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_default()
}
