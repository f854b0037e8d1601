//! What is edited: from which state to which.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use dstack_vpc::desired::{Desired, Launch, Templates, desired};
use dstack_vpc::facts::{DerpMap, Fact, Facts, Installed, assume};
use dstack_vpc::paths::StateDir;
use dstack_vpc::reconcile::Source;
use dstack_vpc::spec::{Loaded, Spec};

/// All that a desired state depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wish<'a> {
    pub text: &'a str,
    /// How often the certificate was renewed.
    pub renewed: u32,
    /// Whether a template is overridden.
    pub overridden: bool,
}

impl<'a> Wish<'a> {
    pub const fn new(text: &'a str) -> Self {
        Self {
            text,
            renewed: 0,
            overridden: false,
        }
    }
}

/// One way to change a machine.
#[derive(Debug, Clone, Copy)]
pub struct Edit {
    pub name: &'static str,
    /// What was wished before, oldest first; nothing at the first start.
    pub before: &'static [Wish<'static>],
    pub wish: Wish<'static>,
    /// The kept generation to go back to.
    pub again: Option<u32>,
}

const fn edit(name: &'static str, before: &'static [Wish<'static>], wish: Wish<'static>) -> Edit {
    Edit {
        name,
        before,
        wish,
        again: None,
    }
}

pub const PLAIN: Wish<'static> = Wish::new("");
pub const BACKEND: Wish<'static> = Wish::new("[[backends]]\nname = \"db\"\nupstream = \"127.0.0.1:27017\"\n");
pub const LIST: Wish<'static> = Wish::new(
    "[[backends]]\nname = \"db\"\nupstream = \"127.0.0.1:27017\"\n\
     allowed_apps = [\"aa00000000000000000000000000000000000002\"]\n",
);
pub const PORT: Wish<'static> = Wish::new("[mesh]\nhttp_listen = \"0.0.0.0:81\"\n");
pub const LOCAL: Wish<'static> = Wish::new("[mesh]\nhttp_listen = \"127.0.0.1:81\"\n");
/// nginx listens elsewhere, and is ended otherwise.
pub const PATIENT: Wish<'static> =
    Wish::new("[mesh]\nhttp_listen = \"127.0.0.1:81\"\ndrain_timeout = \"5m\"\n");
pub const SERVER: Wish<'static> = Wish::new("role = \"server\"\nallowed_apps = \"any\"\n");
pub const DOMAIN: Wish<'static> =
    Wish::new("role = \"server\"\nallowed_apps = \"any\"\n[vpn]\nbase_domain = \"other.internal\"\n");
pub const NODE: Wish<'static> = Wish::new("role = \"node\"\n[node]\nname = \"n\"\n");
pub const RENEWED: Wish<'static> = Wish {
    renewed: 1,
    ..BACKEND
};
pub const OVERRIDDEN: Wish<'static> = Wish {
    overridden: true,
    ..BACKEND
};

/// Every wish, for those that go from any to any.
pub const WISHES: &[Wish<'static>] = &[
    PLAIN, BACKEND, LIST, PORT, LOCAL, PATIENT, SERVER, DOMAIN, NODE, RENEWED, OVERRIDDEN,
];

pub const EDITS: &[Edit] = &[
    edit("first start", &[], BACKEND),
    edit("a backend is added", &[PLAIN], BACKEND),
    edit("an allow-list changes", &[BACKEND], LIST),
    edit("a port moves", &[PLAIN], PORT),
    edit("a port stays and its address does not", &[PORT], LOCAL),
    edit("nginx is run otherwise, too", &[PORT], PATIENT),
    edit("mesh becomes server", &[PLAIN], SERVER),
    edit("server becomes node", &[SERVER], NODE),
    edit("node becomes mesh", &[NODE], PLAIN),
    edit("node becomes server", &[NODE], SERVER),
    edit("server becomes mesh", &[SERVER], PLAIN),
    edit("the VPN's domain changes", &[SERVER], DOMAIN),
    edit("the certificate is renewed", &[BACKEND], RENEWED),
    edit("a template is overridden", &[BACKEND], OVERRIDDEN),
    Edit {
        again: Some(1),
        ..edit("a rollback", &[PLAIN, SERVER, BACKEND], PLAIN)
    },
    edit("nothing changes", &[BACKEND], BACKEND),
];

/// What each wish comes to.
pub struct Desires<'a> {
    state: StateDir,
    made: BTreeMap<Wish<'a>, Made>,
}

/// One wish, and what follows from it.
pub struct Made {
    /// Its file, read.
    pub source: Source,
    pub loaded: Arc<Loaded>,
    pub facts: Facts,
    pub desired: Desired,
}

impl Desires<'static> {
    /// For all tests of this process: rendering takes longer than all else.
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<Desires<'static>> = LazyLock::new(|| Desires::new(WISHES));
        &SHARED
    }
}

impl<'a> Desires<'a> {
    pub fn new(wishes: &[Wish<'a>]) -> Self {
        let state = StateDir::new("/s");
        let made = wishes.iter().map(|wish| (*wish, make(*wish, &state)));
        Self {
            made: made.collect(),
            state,
        }
    }

    pub fn of(&self, wish: Wish<'_>) -> &Desired {
        &self.made(wish).desired
    }

    pub fn made(&self, wish: Wish<'_>) -> &Made {
        let mut all = self.made.iter();
        let (_, made) = all.find(|(key, _)| **key == wish).expect("a wish that was made");
        made
    }

    pub fn state(&self) -> &StateDir {
        &self.state
    }
}

pub fn make(wish: Wish<'_>, state: &StateDir) -> Made {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(wish.text.as_bytes()).expect("a write");
    let mut source = Source::new(Some(file.path().to_owned()), BTreeMap::new());
    let loaded = source.now();
    let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}\n{}", wish.text));
    let facts = facts(&loaded.spec, wish, state);
    let desired = render(&loaded.spec, &facts, wish, state);
    Made {
        source,
        loaded,
        facts,
        desired,
    }
}

/// What the machine says of itself; the programs are where they are looked for.
fn facts(spec: &Spec, wish: Wish<'_>, state: &StateDir) -> Facts {
    let pairs = [
        ("app_id", "aa00000000000000000000000000000000000001"),
        ("gateway_domain", "apps.example.com:443"),
    ];
    let pairs = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut facts = assume(&pairs, spec, state).expect("facts");
    let identity = facts.identity.as_mut().expect("a certificate");
    identity.value.dir = state.identity().join(format!("{:06}", 1 + wish.renewed));
    let programs = &mut facts.programs;
    for (program, place) in [
        (&mut programs.nginx, &spec.nginx.program),
        (&mut programs.headscale, &spec.headscale.program),
        (&mut programs.tailscaled, &spec.tailscale.program),
        (&mut programs.tailscale, &spec.tailscale.client),
    ] {
        found_at(program, place);
    }
    let map = r#"{"Regions": {"1": {"RegionID": 1, "RegionCode": "nyc", "RegionName": "New York City", "Nodes": [
        {"Name": "1a", "RegionID": 1, "HostName": "derp.example.com", "IPv4": "192.0.2.1"}]}}}"#;
    let map = DerpMap::parse(map.as_bytes()).expect("a map of relays");
    facts.derp_map = Some(Fact::now(Arc::new(map), "test"));
    facts
}

fn found_at(program: &mut Option<Fact<Installed>>, place: &Path) {
    if let Some(fact) = program.as_mut().filter(|_| place.is_absolute()) {
        fact.value.path = PathBuf::from(place);
    }
}

/// Other settings, with all else as it is for `wish`.
pub fn render(spec: &Spec, facts: &Facts, wish: Wish<'_>, state: &StateDir) -> Desired {
    static BUILT_IN: LazyLock<Templates> = LazyLock::new(Templates::builtin);
    static OVERRIDDEN: LazyLock<Templates> = LazyLock::new(|| {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let odd = format!("{}\n# odd\n", include_str!("../../templates/nginx.conf.tera"));
        std::fs::write(folder.path().join("nginx.conf.tera"), odd).expect("a template");
        Templates::with_overrides(folder.path()).expect("templates")
    });
    let launch = Launch {
        exe: "/usr/bin/dstack-vpc".into(),
        config: None,
    };
    let templates = if wish.overridden { &OVERRIDDEN } else { &BUILT_IN };
    desired(spec, facts, state, &launch, templates).expect("a desired state")
}
