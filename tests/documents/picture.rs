//! `make picture`: records the picture in the README, from a real session with a real machine.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::pty::{Winsize, openpty};

use super::common::agent::Agent;
use super::common::backend::Backend;
use super::common::machine::{Machine, Plan};
use super::common::{SERVER_APP, binary, run};
use super::root;

/// Columns of the terminal.
const COLUMNS: u16 = 100;

#[test]
#[ignore = "it records the picture: make picture"]
fn record() {
    let session = run(async {
        let agent = Agent::start().await;
        let orders = Backend::start("orders").await;
        let backends = [("orders", "orders.example.com", orders.addr())];
        let mut plan = Plan::new(&agent.socket(SERVER_APP), orders.addr(), &backends);
        plan.dir = tempfile::Builder::new()
            .prefix("orders")
            .rand_bytes(0)
            .tempdir()
            .expect("a folder");
        let machine = plan.start().await;
        let mut session = String::new();
        // A slip of the hand: it is refused, and what served goes on serving.
        machine
            .edit(|toml| toml + "allowd_apps = [\"c11e000000000000000000000000000000000001\"]\n")
            .await;
        session += &typed(&machine, "dstack-vpc check");
        machine
            .edit(|toml| toml.replace("allowd_apps", "allowed_apps"))
            .await;
        session += &typed(&machine, "VPC__MESH__HTTP_LISTEN=127.0.0.1:18080 dstack-vpc plan");
        session
    });
    let picture = anstyle_svg::Term::new().render_svg(session.trim_end());
    fs::write(root().join("docs/terminal.svg"), picture).expect("written");
}

/// What a terminal shows when this line is typed on that machine.
fn typed(machine: &Machine, line: &str) -> String {
    let size = Winsize {
        ws_row: 40,
        ws_col: COLUMNS,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(&size, None).expect("a terminal");
    let slave = || -> OwnedFd { pty.slave.try_clone().expect("a terminal") };
    let path = std::env::var("PATH").unwrap_or_default();
    let here = binary();
    let here = here.parent().and_then(Path::to_str).expect("a folder");
    let mut shell = Command::new("bash");
    shell
        .args(["--norc", "-c", line])
        .env_clear()
        .env("PATH", format!("{here}:{path}"))
        .env("TERM", "xterm-256color")
        .env("DSTACK_VPC_CONFIG", &machine.config)
        .env("DSTACK_VPC_STATE_DIR", machine.state.root())
        .stdin(Stdio::null())
        .stdout(slave())
        .stderr(slave());
    let mut child = shell.spawn().expect("bash");
    drop((shell, pty.slave));
    let mut shown = Vec::new();
    // A terminal that nobody writes to any more ends with an error.
    let _ = File::from(pty.master).read_to_end(&mut shown);
    child.wait().expect("its end");
    let shown = String::from_utf8(shown).expect("text").replace('\r', "");
    format!("\x1b[1m$ {line}\x1b[0m\n{}\n\n", shown.trim_end())
}
