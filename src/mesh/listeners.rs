//! Where the mesh listens, and how that changes: new before old, all or nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::time::timeout;

use super::listener::{self, Bound, Listener};
use super::worker::Crew;
use super::{BindError, LocalAddrs, MeshSettings, Place, Role};

/// Of a listener that is not there.
const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

pub(super) struct Listeners {
    live: Vec<Listener>,
    /// Moved away from, but accepting until they are retired: whoever calls them has not followed yet.
    left: Vec<Listener>,
    /// Retired: soon serving only what they had accepted.
    draining: Vec<Listener>,
}

/// Opens all listeners, or none.
pub(super) fn bind_all(settings: &MeshSettings) -> Result<Vec<Bound>, BindError> {
    let wanted = Role::all(settings).filter_map(|role| role.place(settings).map(|place| (role, place)));
    wanted.map(|(role, place)| listener::bind(role, place)).collect()
}

/// Where a listener goes next.
pub(super) enum Move {
    /// To an address that was just opened.
    To(Bound),
    /// Back to where it still listens.
    Back(Listener),
    /// Away: whoever comes next wants its address.
    Gone(Role),
}

impl Move {
    fn role(&self) -> &Role {
        match self {
            Self::To(bound) => &bound.role,
            Self::Back(listener) => listener.role(),
            Self::Gone(role) => role,
        }
    }
}

impl Listeners {
    pub(super) fn start(bound: Vec<Bound>, crew: &Crew) -> Self {
        Self {
            live: bound
                .into_iter()
                .map(|bound| Listener::start(bound, crew))
                .collect(),
            left: Vec::new(),
            draining: Vec::new(),
        }
    }

    pub(super) fn local_addrs(&self) -> LocalAddrs {
        let at = |role: Role| {
            self.live
                .iter()
                .find(|live| *live.role() == role)
                .map(|live| live.place.addr)
        };
        LocalAddrs {
            client: at(Role::Client).unwrap_or(UNKNOWN),
            auth: at(Role::Auth),
            http: at(Role::Http),
            https: at(Role::Https),
        }
    }

    /// Opens the new addresses, all or none; after this nothing can fail.
    pub(super) async fn prepare(
        &mut self,
        old: &MeshSettings,
        new: &MeshSettings,
        crew: &Crew,
    ) -> Result<Vec<Move>, BindError> {
        let all: BTreeSet<Role> = Role::all(old).chain(Role::all(new)).collect();
        let moving: Vec<Role> = all
            .into_iter()
            .filter(|role| role.place(old) != role.place(new))
            .collect();
        let mut moves = Vec::new();
        for role in &moving {
            let Some(place) = role.place(new) else {
                moves.push(Move::Gone(role.clone()));
                continue;
            };
            match self.open(role, place, &moving).await {
                Ok(next) => moves.push(next),
                Err(error) => {
                    self.undo(moves, crew).await;
                    return Err(error);
                }
            }
        }
        Ok(moves)
    }

    async fn open(&mut self, role: &Role, place: Place, moving: &[Role]) -> Result<Move, BindError> {
        let there = |left: &Listener| left.role() == role && left.place == place && !left.is_stopped();
        if let Some(at) = self.left.iter().position(there) {
            return Ok(Move::Back(self.left.swap_remove(at)));
        }
        match listener::bind(role.clone(), place) {
            Err(BindError::Taken { .. }) => {}
            opened => return opened.map(Move::To),
        }
        // It may be held by one of ours that moved away, or is about to: then that one goes first.
        let leaving = self
            .live
            .iter()
            .filter(|listener| moving.contains(listener.role()));
        for listener in self.left.iter().chain(&self.draining).chain(leaving) {
            if listener.place.addr.port() == place.addr.port() {
                listener.stop();
                listener.closed().await;
            }
        }
        listener::bind(role.clone(), place).map(Move::To)
    }

    /// Opens again what was closed to make way.
    async fn undo(&mut self, moves: Vec<Move>, crew: &Crew) {
        for undone in moves {
            match undone {
                Move::Back(listener) => self.left.push(listener),
                Move::To(bound) => drop(bound),
                Move::Gone(_) => {}
            }
        }
        for slot in 0..self.live.len() {
            let listener = &self.live[slot];
            if listener.is_stopped() {
                match listener::bind(listener.role().clone(), listener.place) {
                    Ok(bound) => self.carry_out(vec![Move::To(bound)], crew).await,
                    Err(error) => tracing::error!(%error, "a listener that made way cannot be opened again"),
                }
            }
        }
    }

    pub(super) async fn carry_out(&mut self, moves: Vec<Move>, crew: &Crew) {
        for next in moves {
            let role = next.role().clone();
            let next = match next {
                Move::To(bound) => Some(Listener::start(bound, crew)),
                Move::Back(listener) => Some(listener),
                Move::Gone(_) => None,
            };
            let before = self.live.iter().position(|live| *live.role() == role);
            if let Some(before) = before.map(|at| self.live.swap_remove(at)) {
                // nginx asks the auth service for as long as it still has requests.
                if next.is_none() && role != Role::Auth {
                    before.stop();
                    before.closed().await;
                }
                self.left.push(before);
            }
            self.live.extend(next);
        }
        let (stopped, left) = self.left.drain(..).partition(Listener::is_stopped);
        self.left = left;
        self.draining.extend::<Vec<_>>(stopped);
        self.draining.retain(|listener| !listener.is_done());
    }

    /// What was moved away from soon accepts nothing more.
    pub(super) fn retire(&mut self) {
        self.left.iter().for_each(Listener::retire);
        self.draining.append(&mut self.left);
    }

    /// What was moved away from accepts nothing more from now on.
    pub(super) async fn make_room(&mut self) {
        self.draining.append(&mut self.left);
        for listener in &self.draining {
            listener.stop();
            listener.closed().await;
        }
    }

    /// Stops all, lets what is open go on for up to `patience`, and cuts the rest.
    pub(super) async fn close(&self, patience: Duration) {
        let all = || self.live.iter().chain(&self.left).chain(&self.draining);
        let done = async || {
            for listener in all() {
                listener.done().await;
            }
        };
        all().for_each(Listener::stop);
        if timeout(patience, done()).await.is_err() {
            all().for_each(Listener::cut);
            done().await;
        }
    }
}
