//! What is edited: from which state to which.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use dstack_vpc::desired::{Desired, Launch, Templates, desired};
use dstack_vpc::facts::assume;
use dstack_vpc::paths::StateDir;
use dstack_vpc::spec::{ConfigText, load};

/// All that a desired state depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wish {
    pub text: &'static str,
    /// How often the certificate was renewed.
    pub renewed: u32,
    /// Whether a template is overridden.
    pub overridden: bool,
}

impl Wish {
    pub const fn new(text: &'static str) -> Self {
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
    pub before: &'static [Wish],
    pub wish: Wish,
    /// The kept generation to go back to.
    pub again: Option<u32>,
}

const fn edit(name: &'static str, before: &'static [Wish], wish: Wish) -> Edit {
    Edit {
        name,
        before,
        wish,
        again: None,
    }
}

pub const PLAIN: Wish = Wish::new("");
pub const BACKEND: Wish = Wish::new("[[backends]]\nname = \"db\"\nupstream = \"127.0.0.1:27017\"\n");
pub const LIST: Wish = Wish::new(
    "[[backends]]\nname = \"db\"\nupstream = \"127.0.0.1:27017\"\n\
     allowed_apps = [\"aa00000000000000000000000000000000000002\"]\n",
);
pub const PORT: Wish = Wish::new("[mesh]\nhttp_listen = \"0.0.0.0:81\"\n");
pub const SERVER: Wish = Wish::new("role = \"server\"\nallowed_apps = \"any\"\n");
pub const DOMAIN: Wish =
    Wish::new("role = \"server\"\nallowed_apps = \"any\"\n[vpn]\nbase_domain = \"other.internal\"\n");
pub const NODE: Wish = Wish::new("role = \"node\"\n[node]\nname = \"n\"\n");
pub const RENEWED: Wish = Wish {
    renewed: 1,
    ..BACKEND
};
pub const OVERRIDDEN: Wish = Wish {
    overridden: true,
    ..BACKEND
};

/// Every wish, for those that go from any to any.
pub const WISHES: &[Wish] = &[
    PLAIN, BACKEND, LIST, PORT, SERVER, DOMAIN, NODE, RENEWED, OVERRIDDEN,
];

pub const EDITS: &[Edit] = &[
    edit("first start", &[], BACKEND),
    edit("a backend is added", &[PLAIN], BACKEND),
    edit("an allow-list changes", &[BACKEND], LIST),
    edit("a port moves", &[PLAIN], PORT),
    edit("mesh becomes server", &[PLAIN], SERVER),
    edit("server becomes node", &[SERVER], NODE),
    edit("node becomes mesh", &[NODE], PLAIN),
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
pub struct Desires {
    state: StateDir,
    made: BTreeMap<Wish, Desired>,
}

impl Desires {
    /// For all tests of this process: rendering takes longer than all else.
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<Desires> = LazyLock::new(|| Desires::new(&StateDir::new("/s")));
        &SHARED
    }

    fn new(state: &StateDir) -> Self {
        let made = WISHES.iter().map(|wish| (*wish, render(*wish, state))).collect();
        Self {
            state: state.clone(),
            made,
        }
    }

    pub fn of(&self, wish: Wish) -> &Desired {
        &self.made[&wish]
    }

    pub fn state(&self) -> &StateDir {
        &self.state
    }
}

pub fn render(wish: Wish, state: &StateDir) -> Desired {
    let text = ConfigText::new("vpc.toml", wish.text);
    let spec = load(Some(&text), &BTreeMap::new()).expect("a right file").spec;
    let app = "aa00000000000000000000000000000000000001".to_owned();
    let pairs = [
        ("app_id".to_owned(), app),
        ("gateway_domain".to_owned(), "apps.example.com:443".to_owned()),
    ];
    let mut facts = assume(&pairs, &spec, state).expect("facts");
    let identity = facts.identity.as_mut().expect("a certificate");
    identity.value.dir = state.identity().join(format!("{:06}", 1 + wish.renewed));
    let folder = tempfile::tempdir().expect("a temporary directory");
    if wish.overridden {
        let odd = format!("{}\n# odd\n", include_str!("../../templates/nginx.conf.tera"));
        std::fs::write(folder.path().join("nginx.conf.tera"), odd).expect("a template");
    }
    let launch = Launch {
        exe: "/usr/bin/dstack-vpc".into(),
        config: None,
    };
    let templates = Templates::with_overrides(folder.path()).expect("templates");
    desired(&spec, &facts, state, &launch, &templates).expect("a desired state")
}
