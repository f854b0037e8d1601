//! Any sequence of events in [`View`], with time, against the simplest thing that could be right.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

use super::view::{Known, Millis, Silence, View};
use super::{Census, Node, RegistrySettings};
use crate::names::{AppId, NodeId, NodeType};
use crate::spec::Store;

#[derive(Debug, Clone)]
enum Step {
    Store {
        id: u8,
        node_type: Option<&'static str>,
        named: bool,
        silence: Option<u64>,
    },
    Heard(u8),
    /// The store's word, where it is the store that knows.
    Silent(u8),
    Remove(u8),
    /// Time passes, and what is due is done.
    Pass(Millis),
}

const TYPES: [&str; 2] = ["x", "etcd"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let id = || 0..4u8;
    let store = (
        id(),
        of(select(&TYPES[..])),
        any::<bool>(),
        of(select(&[0, 1, 5, 40][..])),
    );
    let step = prop_oneof![
        4 => store.prop_map(|(id, node_type, named, silence)| Step::Store { id, node_type, named, silence }),
        4 => id().prop_map(Step::Heard),
        1 => id().prop_map(Step::Silent),
        1 => id().prop_map(Step::Remove),
        6 => (0..8_000u64).prop_map(Step::Pass),
        1 => (8_000..90_000u64).prop_map(Step::Pass),
    ];
    vec(step, 1..60)
}

#[derive(Debug)]
struct Life {
    node: Node,
    heard: Millis,
    present: bool,
    /// When it was last named as one to be forgotten; what happens to it meanwhile has it named again.
    named: Option<Millis>,
}

struct Model {
    told_by: Silence,
    silence: Millis,
    forget_after: Millis,
    lives: BTreeMap<NodeId, Life>,
}

impl Model {
    fn silence_of(&self, node: &Node) -> Option<Millis> {
        let silence = node
            .silence
            .map_or(self.silence, |silence| silence.as_millis() as Millis);
        (silence > 0).then_some(silence)
    }

    /// Looks at everything: who left, and who is to be forgotten.
    fn expire(&mut self, now: Millis) -> Vec<NodeId> {
        let timed = self.told_by == Silence::Timed;
        let leaving: Vec<NodeId> = self
            .lives
            .iter()
            .filter(|(_, life)| {
                timed
                    && self
                        .silence_of(&life.node)
                        .is_some_and(|silence| life.heard + silence <= now)
            })
            .map(|(id, _)| id.clone())
            .collect();
        let mut forget = Vec::new();
        for (id, life) in &mut self.lives {
            if life.present && leaving.contains(id) {
                (life.present, life.named) = (false, None);
            }
            let due =
                self.forget_after > 0 && life.heard + self.forget_after <= now && (timed || !life.present);
            if due && life.named.is_none_or(|named| named + 60_000 <= now) {
                life.named = Some(now);
                forget.push(id.clone());
            }
        }
        forget
    }
}

fn id(number: u8) -> NodeId {
    format!("n{number}").parse().unwrap()
}

fn check(told_by: Silence, silence: u64, forget_after: u64, steps: Vec<Step>) {
    let mut view = View::new(
        &RegistrySettings {
            store: Store::Embedded,
            endpoints: Vec::new(),
            silence: Duration::from_secs(silence),
            forget_after: Duration::from_secs(forget_after),
        },
        told_by,
    );
    let mut model = Model {
        told_by,
        silence: silence * 1000,
        forget_after: forget_after * 1000,
        lives: BTreeMap::new(),
    };
    let mut now = 0;
    for (number, step) in steps.into_iter().enumerate() {
        match &step {
            Step::Store {
                id: which,
                node_type,
                named,
                silence,
            } => {
                let node = Node {
                    id: id(*which),
                    owner: AppId::from_bytes([1; 20]),
                    name: String::new(),
                    node_type: node_type.map(|name| name.parse().unwrap()),
                    ip: None,
                    hostname: named.then(|| format!("h{number}").parse().unwrap()),
                    registered: Timestamp::UNIX_EPOCH,
                    typed: Timestamp::from_second(number as i64 / 3).unwrap(),
                    silence: silence.map(Duration::from_secs),
                    join_keys: Vec::new(),
                };
                view.store(node.clone(), 0, now);
                let always = told_by == Silence::Told && model.silence_of(&node).is_none();
                let life = model.lives.entry(node.id.clone()).or_insert(Life {
                    node: node.clone(),
                    heard: now,
                    present: false,
                    named: None,
                });
                life.node = node;
                life.present |= always;
                life.named = None;
            }
            Step::Heard(which) => {
                let known = view.heard(&id(*which), now);
                assert_eq!(known, model.lives.contains_key(&id(*which)));
                if let Some(life) = model.lives.get_mut(&id(*which)) {
                    (life.heard, life.present, life.named) = (now, true, None);
                }
            }
            Step::Silent(which) if told_by == Silence::Told => {
                view.silent(&id(*which));
                let stays = model
                    .lives
                    .get(&id(*which))
                    .map(|life| model.silence_of(&life.node).is_none());
                if let (Some(life), Some(stays)) = (model.lives.get_mut(&id(*which)), stays) {
                    (life.present, life.named) = (stays, None);
                }
            }
            Step::Silent(_) => {}
            Step::Remove(which) => {
                let removed = view.remove(&id(*which));
                let expected = model.lives.remove(&id(*which));
                assert_eq!(removed.as_deref(), expected.as_ref().map(|life| &life.node));
            }
            Step::Pass(millis) => now += millis,
        }
        let mut forget = view.expire(now);
        forget.sort();
        assert_eq!(forget, model.expire(now), "at {now} after {step:?}");
        assert!(view.next_due().is_none_or(|due| due > now));
        compare(&view, &model);
    }
}

fn compare(view: &View, model: &Model) {
    let seen = |known: Known<'_>| (Node::clone(known.node), known.heard, known.present);
    let all: Vec<_> = view.all().map(seen).collect();
    let expected = model
        .lives
        .values()
        .map(|life| (life.node.clone(), life.heard, life.present));
    assert_eq!(all, expected.collect::<Vec<_>>());
    let present = all.iter().filter(|(_, _, present)| *present).count();
    assert_eq!(
        view.census(),
        Census {
            nodes: all.len(),
            present
        }
    );
    for name in TYPES {
        let node_type: NodeType = name.parse().unwrap();
        let nodes = all.iter().filter(|(node, _, present)| {
            *present && node.hostname.is_some() && node.node_type.as_ref() == Some(&node_type)
        });
        let nodes = nodes.map(|(node, ..)| node);
        let expected: Vec<&Node> = match name {
            "etcd" => nodes
                .max_by_key(|node| (node.typed, &node.id))
                .into_iter()
                .collect(),
            _ => nodes.collect(),
        };
        let found: Vec<Node> = view
            .discover(&node_type)
            .into_iter()
            .map(|known| Node::clone(known.node))
            .collect();
        assert_eq!(found.iter().collect::<Vec<_>>(), expected);
        // The index that is kept is the one that is right now.
        let fresh = fresh_index(&found, &node_type);
        assert_eq!(view.index(&node_type), fresh);
    }
}

/// The index of a view that never knew anything else.
fn fresh_index(nodes: &[Node], node_type: &NodeType) -> u64 {
    let settings = RegistrySettings {
        store: Store::Embedded,
        endpoints: Vec::new(),
        silence: Duration::ZERO,
        forget_after: Duration::ZERO,
    };
    let mut view = View::new(&settings, Silence::Timed);
    for node in nodes {
        view.store(node.clone(), 0, 0);
        view.heard(&node.id, 0);
    }
    view.index(node_type)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn timed_lives_are_right(silence in select(&[0, 3, 20][..]), forget in select(&[0, 10, 30][..]), steps in steps()) {
        check(Silence::Timed, silence, forget, steps);
    }

    #[test]
    fn told_lives_are_right(silence in select(&[0, 3, 20][..]), forget in select(&[0, 10, 30][..]), steps in steps()) {
        check(Silence::Told, silence, forget, steps);
    }
}
