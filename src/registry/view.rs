//! Nodes in memory: by id, by type, and by the moment at which something is due. No clock, no I/O.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sha2::{Digest, Sha256};
use slab::Slab;
use tokio::sync::Notify;

use super::{Census, Node, RegistrySettings};
use crate::names::{NodeId, NodeType};

/// Milliseconds since the registry was opened.
pub(super) type Millis = u64;

/// Of this type only the newest node is discovered.
const ONLY_THE_NEWEST: &str = "etcd";

/// Who knows that a node is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// We do, by the time since it was last heard.
    Timed,
    /// The store does: it calls [`View::silent`].
    Told,
}

#[derive(Debug)]
pub(super) struct View {
    told_by: Silence,
    silence: Option<Millis>,
    forget_after: Option<Millis>,
    slots: Slab<Slot>,
    ids: BTreeMap<NodeId, Key>,
    types: HashMap<NodeType, Group>,
    /// When to look at a slot again. Hearing from a node only moves its moment away, so it is not written here each
    /// time: what comes up too early goes back.
    due: BinaryHeap<Reverse<(Millis, Key)>>,
    present: usize,
    waiting: HashMap<NodeType, Arc<Notify>>,
}

/// Into `View::slots`; 32 bits keep a million nodes small.
type Key = u32;

#[derive(Debug)]
struct Slot {
    node: Arc<Node>,
    heard: Millis,
    /// The one entry in `View::due` that counts.
    due: Millis,
    /// When the store last said that it lives; 0 is never.
    told: Millis,
    stored: Revision,
    present: bool,
}

/// The nodes of one type that can be discovered.
#[derive(Debug, Default)]
struct Group {
    members: BTreeMap<NodeId, Key>,
    index: OnceLock<u64>,
}

/// Where the store has its record; of no meaning here.
pub(super) type Revision = u64;

/// What is known of a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) node: &'a Arc<Node>,
    pub(super) stored: Revision,
    pub(super) told: Millis,
    pub(super) heard: Millis,
    pub(super) present: bool,
}

impl View {
    pub(super) fn new(settings: &RegistrySettings, told_by: Silence) -> Self {
        Self {
            told_by,
            silence: patience(settings.silence),
            forget_after: patience(settings.forget_after),
            slots: Slab::new(),
            ids: BTreeMap::new(),
            types: HashMap::new(),
            due: BinaryHeap::new(),
            present: 0,
            waiting: HashMap::new(),
        }
    }

    pub(super) fn get(&self, id: &NodeId) -> Option<Known<'_>> {
        Some(self.slots[*self.ids.get(id)? as usize].known())
    }

    /// In the order of their ids.
    pub(super) fn all(&self) -> impl Iterator<Item = Known<'_>> {
        self.ids.values().map(|key| self.slots[*key as usize].known())
    }

    pub(super) fn census(&self) -> Census {
        Census {
            nodes: self.slots.len(),
            present: self.present,
        }
    }

    /// The nodes that are discovered under `node_type`, in the order of their ids.
    pub(super) fn discover(&self, node_type: &NodeType) -> Vec<Known<'_>> {
        let Some(group) = self.types.get(node_type) else {
            return Vec::new();
        };
        let members = group
            .members
            .values()
            .map(|key| self.slots[*key as usize].known());
        if node_type.as_str() == ONLY_THE_NEWEST {
            let newest = members.max_by_key(|known| (known.node.typed, &known.node.id));
            return newest.into_iter().collect();
        }
        members.collect()
    }

    /// [`super::Listing::index`]
    pub(super) fn index(&self, node_type: &NodeType) -> u64 {
        match self.types.get(node_type) {
            Some(group) => *group.index.get_or_init(|| digest(&self.discover(node_type))),
            None => digest(&[]),
        }
    }

    /// How long this node may be silent; `None` is for ever.
    pub(super) fn silence_of(&self, node: &Node) -> Option<Millis> {
        node.silence.map_or(self.silence, patience)
    }

    /// The record is this from now on. Says nothing about the node's life, except that a new one was just heard of.
    pub(super) fn store(&mut self, mut node: Node, stored: Revision, now: Millis) {
        if let Some(known) = node
            .node_type
            .as_ref()
            .and_then(|name| self.types.get_key_value(name))
        {
            node.node_type = Some(known.0.clone());
        }
        // The store says nothing of nodes that may be silent for ever.
        let always = self.told_by == Silence::Told && self.silence_of(&node).is_none();
        let node = Arc::new(node);
        let key = match self.ids.get(&node.id).copied() {
            Some(key) => key,
            None => {
                let key = self.slots.insert(Slot {
                    node: Arc::clone(&node),
                    heard: now,
                    due: Millis::MAX,
                    told: 0,
                    stored,
                    present: false,
                }) as Key;
                self.ids.insert(node.id.clone(), key);
                key
            }
        };
        self.change(key, |slot| {
            slot.node = node;
            slot.stored = stored;
            slot.present |= always;
        });
    }

    /// The node lives. False: it is not known.
    pub(super) fn heard(&mut self, id: &NodeId, now: Millis) -> bool {
        let Some(key) = self.ids.get(id).copied() else {
            return false;
        };
        let slot = &mut self.slots[key as usize];
        slot.heard = now;
        match slot.present {
            true => self.plan(key),
            false => self.change(key, |slot| slot.present = true),
        }
        true
    }

    /// The node lives, as the store says.
    pub(super) fn told(&mut self, id: &NodeId, now: Millis) {
        if self.heard(id, now)
            && let Some(key) = self.ids.get(id)
        {
            self.slots[*key as usize].told = now.max(1);
        }
    }

    /// The node is silent for too long, as the store says.
    pub(super) fn silent(&mut self, id: &NodeId) {
        if let Some(key) = self.ids.get(id).copied() {
            let stays = self.silence_of(&self.slots[key as usize].node).is_none();
            self.change(key, |slot| slot.present = stays);
        }
    }

    pub(super) fn remove(&mut self, id: &NodeId) -> Option<Arc<Node>> {
        let key = self.ids.get(id).copied()?;
        self.change(key, |slot| slot.present = false);
        self.ids.remove(id);
        Some(self.slots.remove(key as usize).node)
    }

    /// When [`View::expire`] has something to do.
    pub(super) fn next_due(&self) -> Option<Millis> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }

    /// Lets nodes leave that are silent for too long, and names those that are to be forgotten. Those are named again
    /// after a while if they are still there then.
    pub(super) fn expire(&mut self, now: Millis) -> Vec<NodeId> {
        const AGAIN: Millis = 60_000;
        let mut forget = Vec::new();
        while let Some(Reverse((at, key))) = self.due.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.due.pop();
            let Some(slot) = self.slots.get_mut(key as usize).filter(|slot| slot.due == at) else {
                continue; // Superseded, or the slot is another node's by now.
            };
            slot.due = Millis::MAX;
            if self.leaves_at(key).is_some_and(|at| at <= now) {
                // And so it is planned anew.
                self.change(key, |slot| slot.present = false);
                continue;
            }
            match self.forgotten_at(key) {
                Some(at) if at <= now => {
                    forget.push(self.slots[key as usize].node.id.clone());
                    let again = now + AGAIN;
                    self.look_again(key, self.leaves_at(key).map_or(again, |at| at.min(again)));
                }
                _ => self.plan(key),
            }
        }
        forget
    }

    /// To be told of every change of what is discovered under `node_type`.
    pub(super) fn wait(&mut self, node_type: &NodeType) -> Arc<Notify> {
        let notify = self.waiting.entry(node_type.clone()).or_default();
        Arc::clone(notify)
    }

    /// The other end of [`View::wait`].
    pub(super) fn wait_no_more(&mut self, node_type: &NodeType, notify: Arc<Notify>) {
        drop(notify);
        if self
            .waiting
            .get(node_type)
            .is_some_and(|left| Arc::strong_count(left) == 1)
        {
            self.waiting.remove(node_type);
        }
    }

    /// Every change of a slot that others can see goes through here.
    fn change(&mut self, key: Key, change: impl FnOnce(&mut Slot)) {
        let was = self.unlist(key);
        let slot = &mut self.slots[key as usize];
        let was_present = slot.present;
        change(slot);
        self.present = self.present + usize::from(slot.present) - usize::from(was_present);
        let is = self.list(key);
        if was != is {
            self.wake(was);
        }
        self.wake(is);
        self.plan(key);
    }

    fn unlist(&mut self, key: Key) -> Option<NodeType> {
        let node = Arc::clone(&self.slots[key as usize].node);
        let node_type = node.node_type.as_ref()?;
        let group = self.types.get_mut(node_type)?;
        group.members.remove(&node.id)?;
        if group.members.is_empty() {
            self.types.remove(node_type);
        } else {
            group.index.take();
        }
        Some(node_type.clone())
    }

    fn list(&mut self, key: Key) -> Option<NodeType> {
        let slot = &self.slots[key as usize];
        let node_type = slot.node.node_type.as_ref()?;
        if !slot.present || slot.node.hostname.is_none() {
            return None;
        }
        let group = self.types.entry(node_type.clone()).or_default();
        group.members.insert(slot.node.id.clone(), key);
        group.index.take();
        Some(node_type.clone())
    }

    fn wake(&self, node_type: Option<NodeType>) {
        if let Some(notify) = node_type.and_then(|name| self.waiting.get(&name)) {
            notify.notify_waiters();
        }
    }

    /// `None`: not by itself, or it has left already.
    fn leaves_at(&self, key: Key) -> Option<Millis> {
        let slot = &self.slots[key as usize];
        if !slot.present || self.told_by == Silence::Told {
            return None;
        }
        Some(slot.heard.saturating_add(self.silence_of(&slot.node)?))
    }

    /// `None`: never, or it is there and the store would tell.
    fn forgotten_at(&self, key: Key) -> Option<Millis> {
        let slot = &self.slots[key as usize];
        if slot.present && self.told_by == Silence::Told {
            return None;
        }
        Some(slot.heard.saturating_add(self.forget_after?))
    }

    fn plan(&mut self, key: Key) {
        if let Some(at) = [self.leaves_at(key), self.forgotten_at(key)]
            .into_iter()
            .flatten()
            .min()
        {
            self.look_again(key, at);
        }
    }

    fn look_again(&mut self, key: Key, at: Millis) {
        let slot = &mut self.slots[key as usize];
        if at < slot.due {
            slot.due = at;
            self.due.push(Reverse((at, key)));
        }
    }
}

impl Slot {
    fn known(&self) -> Known<'_> {
        Known {
            node: &self.node,
            stored: self.stored,
            told: self.told,
            heard: self.heard,
            present: self.present,
        }
    }
}

/// Zero is for ever.
fn patience(duration: Duration) -> Option<Millis> {
    (!duration.is_zero()).then(|| duration.as_millis().try_into().unwrap_or(Millis::MAX))
}

/// 53 bits that are never 0.
fn digest(nodes: &[Known<'_>]) -> u64 {
    let mut sha = Sha256::new();
    for Known { node, .. } in nodes {
        // None of these texts has a line break in it, so no two listings are written alike.
        sha.update(node.id.as_str());
        sha.update("\n");
        sha.update(node.hostname.as_ref().map_or("", |name| name.as_str()));
        sha.update("\n");
        sha.update(node.ip.map_or(String::new(), |ip| ip.to_string()));
        sha.update("\n");
    }
    let digest = sha.finalize();
    let bits = digest
        .iter()
        .take(8)
        .fold(0, |bits, byte| bits << 8 | u64::from(*byte));
    (bits >> 11).max(1)
}
