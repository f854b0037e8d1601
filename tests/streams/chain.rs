//! Two machines with a gateway between them that passes TLS through, as the platform's does.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::common::machine::Plan;
use crate::common::pair::Pair;

/// A pair of machines that reach each other through a [`Gateway`].
pub(crate) struct Chain {
    pub(crate) pair: Pair,
    pub(crate) gateway: Gateway,
}

impl Chain {
    /// `backends` are (name, Host, upstream) beside those that every [`Pair`] has.
    pub(crate) async fn start(backends: &[(&str, &str, SocketAddr)]) -> Self {
        Self::start_with(backends, |_, _| {}).await
    }

    pub(crate) async fn start_with(
        backends: &[(&str, &str, SocketAddr)],
        change: impl FnOnce(&mut Plan, &mut Plan),
    ) -> Self {
        let any_port = (Ipv4Addr::LOCALHOST, 0).into();
        Self::start_on(any_port, backends, change).await
    }

    /// With the gateway at this address. If that is an IPv6 one, `change` has the server listen there, too.
    pub(crate) async fn start_on(
        gateway: SocketAddr,
        backends: &[(&str, &str, SocketAddr)],
        change: impl FnOnce(&mut Plan, &mut Plan),
    ) -> Self {
        let listener = TcpListener::bind(gateway).await.expect("a port");
        let at = listener.local_addr().expect("an address");
        let mut gateway = None;
        let pair = Pair::start_with(|client, server| {
            for (name, host, upstream) in backends {
                server.toml += &format!(
                    "\n[[backends]]\nname = \"{name}\"\nserver_name = \"{host}\"\nupstream = \"{upstream}\"\n"
                );
            }
            let direct = format!("fixed/{}", server.ports.https);
            client.toml = client.toml.replace(&direct, &format!("fixed/{at}"));
            change(client, server);
            gateway = Some(Gateway::start(
                listener,
                (at.ip(), server.ports.https.number()).into(),
            ));
        });
        Self {
            pair: pair.await,
            gateway: gateway.expect("made with the pair"),
        }
    }

    /// Where a local app reaches the outbound proxy without nginx.
    pub(crate) fn proxy(&self) -> SocketAddr {
        self.pair.client.ports.client.addr()
    }
}

/// Passes TCP connections on to one address.
pub(crate) struct Gateway {
    opened: Arc<AtomicUsize>,
    _connections: JoinSet<()>,
}

impl Gateway {
    fn start(listener: TcpListener, to: SocketAddr) -> Self {
        let opened = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&opened);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                connections.spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(to).await {
                        let _ = near.set_nodelay(true).and(far.set_nodelay(true));
                        // How a connection ends is the affair of its two ends.
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            opened,
            _connections: tasks,
        }
    }

    /// Connections that came here so far.
    pub(crate) fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}
