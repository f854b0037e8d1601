//! What all comparisons stand on, and the same hop by everybody.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::common::agent::Agent;
use crate::common::machine::{Machine, Plan};
use crate::common::ports::Port;
use crate::common::{CLIENT_APP, SERVER_APP};
use crate::peers::{Answers, Files, Hop, Part, Peer};
use crate::shared::host;

pub(crate) const OURS: &str = "dstack-vpc";

/// One KMS, and one mTLS server that answers by itself.
pub(crate) struct Stage {
    pub(crate) agent: Agent,
    pub(crate) files: Files,
    pub(crate) server: Answers,
    /// Ours, and perhaps another of ours to compare it with.
    binaries: Vec<(&'static str, PathBuf)>,
}

impl Stage {
    pub(crate) async fn set() -> Result<Self> {
        let agent = Agent::start().await;
        let files = Files::new(&agent)?;
        let server = Answers::start(&files).await?;
        Ok(Self {
            agent,
            files,
            server,
            binaries: binaries()?,
        })
    }

    /// A machine that serves, with `backend` behind it.
    pub(crate) async fn serving(&self, backend: SocketAddr) -> Result<Machine> {
        self.serving_with("nginx", backend).await
    }

    /// The same behind a front of this kind.
    pub(crate) async fn serving_with(&self, front: &str, backend: SocketAddr) -> Result<Machine> {
        let nowhere = Port::reserve();
        let backends = [("default", "_", backend)];
        let plan = Plan::new(&self.agent.socket(SERVER_APP), nowhere.addr(), &backends);
        host::start(with_front(plan, front), &self.binaries[0].1).await
    }

    /// A machine that calls through a front of this kind.
    pub(crate) async fn calling_through(&self, front: &str, server: SocketAddr) -> Result<Machine> {
        let plan = Plan::new(&self.agent.socket(CLIENT_APP), server, &[]);
        host::start(with_front(plan, front), &self.binaries[0].1).await
    }

    /// A machine that calls: everything it sends goes to `server`.
    pub(crate) async fn calling(&self, server: SocketAddr) -> Result<Machine> {
        self.calling_with(&self.binaries[0].1, server).await
    }

    /// A machine with a forward, one with the TCP backend that it leads to, and where the forward is.
    pub(crate) async fn streaming(&self, upstream: SocketAddr) -> Result<(Machine, Machine, Port)> {
        let (nowhere, backend, forward) = (Port::reserve(), Port::reserve(), Port::reserve());
        let mut plan = Plan::new(&self.agent.socket(SERVER_APP), nowhere.addr(), &[]);
        plan.toml += &format!(
            "\n[[backends]]\nname = \"bench\"\nprotocol = \"tcp\"\nlisten = \"{backend}\"\nupstream = \"{upstream}\"\n"
        );
        let server = host::start(plan, &self.binaries[0].1).await?;
        let mut plan = Plan::new(&self.agent.socket(CLIENT_APP), backend.addr(), &[]);
        plan.toml += &format!(
            "\n[[forwards]]\nname = \"bench\"\nlisten = \"{forward}\"\ntarget_app = \"{SERVER_APP}\"\ntarget_port = {}\n",
            backend.number()
        );
        let client = host::start(plan, &self.binaries[0].1).await?;
        Ok((client, server, forward))
    }

    async fn calling_with(&self, binary: &Path, server: SocketAddr) -> Result<Machine> {
        let plan = Plan::new(&self.agent.socket(CLIENT_APP), server, &[]);
        host::start(plan, binary).await
    }

    /// Everybody's hop to `server`, freshly started.
    pub(crate) async fn hops(&self, server: SocketAddr) -> Result<Hops> {
        let mut machines = Vec::new();
        for (name, binary) in &self.binaries {
            machines.push((*name, self.calling_with(binary, server).await?));
        }
        Ok(Hops {
            machines,
            nginx: Hop::nginx(&self.files, server).await?,
            haproxy: Hop::haproxy(&self.files, server).await?,
        })
    }
}

fn with_front(mut plan: Plan, front: &str) -> Plan {
    plan.toml = plan
        .toml
        .replace("front = \"nginx\"", &format!("front = \"{front}\""));
    plan
}

/// The same hop by everybody. Dropping it ends their processes.
pub(crate) struct Hops {
    machines: Vec<(&'static str, Machine)>,
    nginx: Hop,
    haproxy: Hop,
}

impl Hops {
    /// Each with what is behind it.
    pub(crate) fn peers(&self, behind: &[Part]) -> Vec<Peer> {
        let peer = |name, addr, part| Peer {
            name,
            addr,
            parts: [&[part], behind].concat(),
        };
        let ours = self.machines.iter().map(|(name, machine)| {
            let part = Part::daemon("hop", machine);
            peer(name, machine.ports.client.addr(), part)
        });
        let others = [("nginx", &self.nginx), ("haproxy", &self.haproxy)];
        let others = others.map(|(name, hop)| peer(name, hop.port.addr(), hop.program.part("hop")));
        ours.chain(others).collect()
    }
}

/// What ships, or what the environment names, and perhaps another of ours.
fn binaries() -> Result<Vec<(&'static str, PathBuf)>> {
    let before = std::env::var_os("BENCH_BEFORE").map(|path| ("before", path.into()));
    let binaries: Vec<_> = [(OURS, host::shipped()?)].into_iter().chain(before).collect();
    match binaries
        .iter()
        .find(|(_, binary): &&(_, PathBuf)| !binary.exists())
    {
        None => Ok(binaries),
        Some((_, missing)) => bail!("{} is missing", missing.display()),
    }
}
