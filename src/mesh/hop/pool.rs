//! Connections that wait for their next request: for each target a few, for few enough targets.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http2::SendRequest;
use rustls::ClientConfig;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::HOUSEKEEPING;
use super::connect::Endpoint;
use super::link::Link;
use super::upload::Upload;
use crate::mesh::tally::{Held, Meter, Pen, To};
use crate::names::HostPort;
use crate::spec::{AgentAddr, Limits};

/// So many connections a target has in each worker before a request waits for one of them.
const FEW: usize = 32;
/// How long it waits before it opens another,
const PATIENCE: Duration = Duration::from_millis(50);
/// unless so many are being opened already.
const OPENING: usize = 8;

/// How a slot's connections are made.
pub(in crate::mesh) enum Dial {
    Peer {
        endpoint: Endpoint,
        /// Offers HTTP/1.1.
        http1: Arc<ClientConfig>,
        /// Offers HTTP/2 first.
        http2: Arc<ClientConfig>,
    },
    Agent(AgentAddr),
    /// In the clear, to a backend of this machine.
    Backend(HostPort),
}

/// One target's connections.
pub(in crate::mesh) struct Slot {
    pub(in crate::mesh) dial: Dial,
    pub(in crate::mesh) meter: Meter,
    _pooled: Held,
    idle: RefCell<Vec<Idle>>,
    links: Rc<Cell<usize>>,
    opening: Rc<Cell<usize>>,
    waiting: RefCell<VecDeque<oneshot::Sender<Link>>>,
    places: Rc<Places>,
    http2: RefCell<Option<SendRequest<Upload>>>,
    /// Held while the HTTP/2 connection is being made, so that a burst of calls makes one.
    pub(in crate::mesh) connecting: tokio::sync::Mutex<()>,
    /// The peer was offered HTTP/2 and declined.
    only_http1: Cell<bool>,
    used: Cell<Instant>,
}

struct Idle {
    link: Link,
    since: Instant,
    _place: Place,
}

/// One of a slot's connections, for as long as it exists, or is being opened.
pub(in crate::mesh) struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn new(all: &Rc<Cell<usize>>) -> Self {
        all.set(all.get() + 1);
        Self(Rc::clone(all))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// How many idle connections there are in a whole pool, and may be.
struct Places {
    taken: Cell<usize>,
    most: Cell<usize>,
    most_in_slot: Cell<usize>,
    pen: Pen,
    to: To,
}

/// One of them, for as long as it exists.
struct Place(Rc<Places>);

impl Places {
    fn limit(&self, limits: &Limits) {
        self.most.set(limits.idle_connections.into());
        self.most_in_slot.set(limits.idle_per_target.into());
    }

    /// For a slot that has this many.
    fn take(self: &Rc<Self>, in_slot: usize) -> Option<Place> {
        let taken = self.taken.get();
        (taken < self.most.get() && in_slot < self.most_in_slot.get()).then(|| {
            self.taken.set(taken + 1);
            self.pen.idle(self.to).add(1);
            Place(Rc::clone(self))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let places = &self.0;
        places.taken.set(places.taken.get() - 1);
        places.pen.idle(places.to).sub(1);
    }
}

impl Slot {
    fn new(dial: Dial, meter: Meter, places: Rc<Places>) -> Self {
        Self {
            dial,
            _pooled: meter.pooled(),
            meter,
            idle: RefCell::default(),
            links: Rc::default(),
            opening: Rc::default(),
            waiting: RefCell::default(),
            places,
            http2: RefCell::default(),
            connecting: tokio::sync::Mutex::default(),
            only_http1: Cell::new(false),
            used: Cell::new(Instant::now()),
        }
    }

    /// The connection that was used last, so that the others may grow old.
    pub(in crate::mesh) fn take(&self, idle_timeout: Duration) -> Option<Link> {
        let now = Instant::now();
        self.used.set(now);
        let idle = self.idle.borrow_mut().pop()?;
        if now - idle.since < idle_timeout {
            return Some(idle.link);
        }
        // The others are older still.
        self.idle.borrow_mut().clear();
        None
    }

    /// The next connection that somebody is done with. `None` when another one should be opened: there are few, or
    /// nobody was done in time. While many are being opened this takes up to `longest`.
    ///
    /// That costs the work of many requests, and each connection costs memory at both ends.
    pub(in crate::mesh) async fn wait(&self, longest: Duration) -> Option<Link> {
        if self.links.get() < FEW {
            return None;
        }
        let mut receiver = self.queue();
        let begun = Instant::now();
        loop {
            if let Ok(link) = timeout(PATIENCE, &mut receiver).await {
                return link.ok();
            }
            if self.opening.get() < OPENING || begun.elapsed() >= longest {
                return None;
            }
        }
    }

    fn queue(&self) -> oneshot::Receiver<Link> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.borrow_mut();
        // Where no connection ever comes back, nobody else takes out who has given up.
        while waiting.front().is_some_and(oneshot::Sender::is_closed) {
            waiting.pop_front();
        }
        waiting.push_back(sender);
        receiver
    }

    /// Connections in use.
    fn busy(&self) -> usize {
        self.links.get().saturating_sub(self.idle.borrow().len())
    }

    /// Counts a connection, from before it is there.
    pub(in crate::mesh) fn count(&self) -> Counted {
        Counted::new(&self.links)
    }

    /// Counts one that is being opened.
    pub(in crate::mesh) fn opening(&self) -> Counted {
        Counted::new(&self.opening)
    }

    /// Gives a connection to whoever waits for one, or keeps it, if there is room for it.
    pub(in crate::mesh) fn put(&self, mut link: Link) {
        while let Some(waiting) = self.waiting.borrow_mut().pop_front() {
            match waiting.send(link) {
                Ok(()) => return,
                Err(unsent) => link = unsent,
            }
        }
        let mut idle = self.idle.borrow_mut();
        if let Some(_place) = self.places.take(idle.len()) {
            let since = Instant::now();
            idle.push(Idle { link, since, _place });
        }
    }

    /// The HTTP/2 connection, if there is one and it lives.
    pub(in crate::mesh) fn http2(&self) -> Option<SendRequest<Upload>> {
        self.used.set(Instant::now());
        self.http2.borrow().clone().filter(|sender| !sender.is_closed())
    }

    pub(in crate::mesh) fn set_http2(&self, sender: &SendRequest<Upload>) {
        *self.http2.borrow_mut() = Some(sender.clone());
    }

    /// The peer is about to end its HTTP/2 connection: what runs on it ends there, what comes next gets another.
    pub(in crate::mesh) fn leave_http2(&self) {
        self.http2.borrow_mut().take();
    }

    pub(in crate::mesh) fn only_http1(&self) -> bool {
        self.only_http1.get()
    }

    pub(in crate::mesh) fn set_only_http1(&self) {
        self.only_http1.set(true);
    }

    /// Drops what the peer closed and what is too old. Returns since when the oldest waits that is left; `None`: nothing is
    /// worth keeping.
    fn sweep(&self, now: Instant, idle_timeout: Duration) -> Option<Instant> {
        let young = |since: &Instant| now - *since < idle_timeout;
        let mut idle = self.idle.borrow_mut();
        idle.retain_mut(|idle| young(&idle.since) && idle.link.look());
        let used = Some(self.used.get()).filter(young);
        idle.iter().map(|idle| idle.since).chain(used).min()
    }
}

/// Slots by target.
pub(in crate::mesh) struct Pool<K> {
    slots: RefCell<HashMap<K, Rc<Slot>>>,
    places: Rc<Places>,
    most: Cell<usize>,
}

impl<K: Eq + Hash + Clone> Pool<K> {
    /// `to`: where its connections lead.
    pub(in crate::mesh) fn new(limits: &Limits, pen: Pen, to: To) -> Self {
        let pool = Self {
            slots: RefCell::default(),
            places: Rc::new(Places {
                taken: Cell::new(0),
                most: Cell::new(0),
                most_in_slot: Cell::new(0),
                pen,
                to,
            }),
            most: Cell::new(0),
        };
        pool.limit(limits);
        pool
    }

    fn limit(&self, limits: &Limits) {
        self.places.limit(limits);
        self.most.set(limits.targets.into());
    }

    /// The target's slot, made by `dial` when there is none.
    pub(in crate::mesh) fn slot<E>(
        &self,
        key: &K,
        dial: impl FnOnce() -> Result<(Dial, Meter), E>,
    ) -> Result<Rc<Slot>, E> {
        let mut slots = self.slots.borrow_mut();
        if let Some(slot) = slots.get(key) {
            return Ok(Rc::clone(slot));
        }
        if slots.len() >= self.most.get() {
            evict(&mut slots);
        }
        let (dial, meter) = dial()?;
        let slot = Rc::new(Slot::new(dial, meter, Rc::clone(&self.places)));
        slots.insert(key.clone(), Rc::clone(&slot));
        Ok(slot)
    }

    /// Connections to a target that are in use.
    pub(in crate::mesh) fn busy(&self, key: &K) -> usize {
        self.slots.borrow().get(key).map_or(0, |slot| slot.busy())
    }

    /// Takes out what is too old, and keeps to these limits from now on. Returns when the next will be too old.
    pub(in crate::mesh) fn sweep(&self, idle_timeout: Duration, limits: &Limits) -> Option<Instant> {
        self.limit(limits);
        // What is full is for those who are called now.
        let full = self.places.taken.get() >= self.places.most.get();
        let idle_timeout = if full {
            idle_timeout.min(HOUSEKEEPING)
        } else {
            idle_timeout
        };
        let now = Instant::now();
        let mut oldest = None;
        self.slots.borrow_mut().retain(|_, slot| {
            let since = slot.sweep(now, idle_timeout);
            oldest = oldest.into_iter().chain(since).min();
            since.is_some()
        });
        oldest.map(|since| since + idle_timeout)
    }
}

/// Makes room for many at once, so that a run through ever new targets does not sort for each. A request that still
/// uses a forgotten slot holds it itself.
fn evict<K: Eq + Hash>(slots: &mut HashMap<K, Rc<Slot>>) {
    let mut times: Vec<_> = slots.values().map(|slot| slot.used.get()).collect();
    let (_, median, _) = times.select_nth_unstable(slots.len() / 4);
    let oldest = *median;
    slots.retain(|_, slot| slot.used.get() > oldest);
}
