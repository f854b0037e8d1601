//! What `--help` says after the options: examples, and what the exit status means. `docs/errors.md` and the manual pages
//! are made from the same.

use std::fmt::Write as _;

/// The end of a command's help.
pub struct Help {
    /// The name of the command.
    pub command: &'static str,
    /// A command line, and what it is for.
    pub examples: &'static [(&'static str, &'static str)],
    /// Exit statuses of its own; those of every command are [`EVERYWHERE`].
    pub exits: &'static [(u8, &'static str)],
}

/// What any command may exit with.
pub const EVERYWHERE: &[(u8, &str)] = &[
    (0, "what was asked for was done"),
    (
        1,
        "it was not, and standard error says why; also for arguments that are not known",
    ),
    (130, "Ctrl-C"),
    (141, "nobody read the output to its end, as with `| head`"),
];

const BY_DAEMON: &[(u8, &str)] = &[
    (0, "done, and proven to serve"),
    (1, "refused or rolled back: it says why; or no daemon answers"),
];

const BY_DAEMON_OR_NOT_AWAITED: &[(u8, &str)] = &[
    BY_DAEMON[0],
    BY_DAEMON[1],
    (
        130,
        "Ctrl-C: it says what serves; the daemon goes on with it all the same",
    ),
];

/// One for each command, in the order of `--help`.
pub const ALL: &[Help] = &[
    Help {
        command: "up",
        examples: &[
            ("dstack-vpc up", "as a container starts it"),
            (
                "dstack-vpc --config vpc.toml --state-dir /tmp/vpc up",
                "on a laptop",
            ),
        ],
        exits: &[
            (0, "it was told to stop, and everything has ended"),
            (
                1,
                "it could not start, or supervisord has ended: the log says why",
            ),
        ],
    },
    Help {
        command: "run",
        examples: &[("dstack-vpc run", "as supervisord starts it")],
        exits: &[
            (0, "it was told to stop"),
            (1, "it could not start: the log says why"),
        ],
    },
    Help {
        command: "render",
        examples: &[
            ("dstack-vpc render", "every file, on standard output"),
            ("dstack-vpc render --out /tmp/new", "into a new folder"),
            (
                "dstack-vpc render --assume gateway_domain=apps.example.com",
                "as for that gateway",
            ),
        ],
        exits: &[],
    },
    Help {
        command: "plan",
        examples: &[
            ("dstack-vpc plan", "changes, whom they disturb, diffs"),
            (
                "dstack-vpc --config new.toml plan",
                "of a file that is not in its place yet",
            ),
            ("dstack-vpc plan --json | jq .disturbs", "for a pipeline"),
        ],
        exits: &[
            (0, "nothing to do"),
            (1, "the file is wrong, or something could not be looked at"),
            (2, "there are changes"),
        ],
    },
    Help {
        command: "apply",
        examples: &[
            ("dstack-vpc apply", "now, and wait for the end"),
            (
                "dstack-vpc apply --confirm 60s",
                "on trial: back in a minute if nobody confirms",
            ),
        ],
        exits: BY_DAEMON_OR_NOT_AWAITED,
    },
    Help {
        command: "confirm",
        examples: &[("dstack-vpc confirm", "after `apply --confirm`")],
        exits: BY_DAEMON,
    },
    Help {
        command: "rollback",
        examples: &[
            (
                "dstack-vpc rollback",
                "the last generation that had other settings",
            ),
            ("dstack-vpc rollback 42", "that one"),
            ("dstack-vpc apply", "ends it: the file counts again"),
        ],
        exits: BY_DAEMON_OR_NOT_AWAITED,
    },
    Help {
        command: "history",
        examples: &[
            ("dstack-vpc history", "the last 20 events"),
            ("dstack-vpc history -n 200 --json", "one JSON object a line"),
        ],
        exits: &[],
    },
    Help {
        command: "check",
        examples: &[
            ("dstack-vpc check", "the file and the environment of this machine"),
            (
                "dstack-vpc --config vpc.toml check --json",
                "for editors and pipelines",
            ),
        ],
        exits: &[
            (0, "the configuration can be used; there may be warnings"),
            (1, "it cannot"),
        ],
    },
    Help {
        command: "explain",
        examples: &[
            ("dstack-vpc explain", "everything, with what was detected"),
            ("dstack-vpc explain mesh", "one section"),
            (
                "dstack-vpc explain mesh.front",
                "one key, what it is for and what it accepts",
            ),
        ],
        exits: &[(1, "there is no such key, or the configuration cannot be used")],
    },
    Help {
        command: "status",
        examples: &[
            ("dstack-vpc status", "what is wrong first"),
            ("dstack-vpc status --watch", "and again as it changes"),
            ("dstack-vpc status --json | jq .conditions", "for scripts"),
        ],
        exits: &[
            (0, "as configured, and all is well"),
            (1, "degraded, starting, or no daemon answers"),
        ],
    },
    Help {
        command: "nodes",
        examples: &[
            (
                "dstack-vpc nodes",
                "on a server: who has joined, and who is silent",
            ),
            ("dstack-vpc nodes --json | jq '.[].name'", "for scripts"),
        ],
        exits: &[
            (0, "the registry could be read, with or without nodes in it"),
            (1, "it could not, or this machine is no server"),
        ],
    },
    Help {
        command: "doctor",
        examples: &[
            ("dstack-vpc doctor", "what is wrong, and what mends it"),
            ("dstack-vpc doctor --verbose", "and what is well"),
            (
                "sudo dstack-vpc doctor --load-modules",
                "with kernel modules of your own",
            ),
        ],
        exits: &[
            (0, "no error; there may be warnings"),
            (1, "something will not work"),
        ],
    },
    Help {
        command: "healthcheck",
        examples: &[("dstack-vpc healthcheck", "as a container's HEALTHCHECK calls it")],
        exits: &[
            (0, "`Ready`"),
            (1, "not ready, starting, or no daemon answers within 5 s"),
        ],
    },
    Help {
        command: "renew",
        examples: &[("dstack-vpc renew", "ask the guest agent now")],
        exits: &[
            (0, "the daemon asks for one; `status` shows it when it is there"),
            (1, "no daemon answers"),
        ],
    },
    Help {
        command: "init",
        examples: &[
            ("dstack-vpc init > vpc.toml", "a mesh machine"),
            (
                "dstack-vpc init --role server+node > vpc.toml",
                "every key of those roles",
            ),
            (
                "dstack-vpc init --from-env > vpc.toml",
                "what the variables of an app compose say",
            ),
        ],
        exits: &[],
    },
    Help {
        command: "schema",
        examples: &[(
            "dstack-vpc schema > vpc.schema.json",
            "beside vpc.toml, for the editor",
        )],
        exits: &[],
    },
    Help {
        command: "dev-agent",
        examples: &[
            ("dstack-vpc dev-agent", "at http://127.0.0.1:8090"),
            ("dstack-vpc dev-agent --listen unix:/tmp/a.sock", "at a socket"),
            (
                "dstack-vpc dev-agent --root-dir /tmp/root",
                "with a root that stays",
            ),
            ("dstack-vpc dev-agent --no-kms", "as where there is no KMS"),
        ],
        exits: &[],
    },
    Help {
        command: "completions",
        examples: &[
            (
                "dstack-vpc completions bash > /etc/bash_completion.d/dstack-vpc",
                "",
            ),
            (
                "dstack-vpc completions zsh > /usr/local/share/zsh/site-functions/_dstack-vpc",
                "",
            ),
            (
                "dstack-vpc completions fish > ~/.config/fish/completions/dstack-vpc.fish",
                "",
            ),
        ],
        exits: &[],
    },
];

/// Of the program as a whole.
pub(super) const FIRST_STEPS: &[(&str, &str)] = &[
    (
        "dstack-vpc init --role mesh > vpc.toml",
        "a starter file with every key",
    ),
    (
        "dstack-vpc --config vpc.toml check",
        "is it right, and if not, where and why",
    ),
    (
        "dstack-vpc --config vpc.toml render",
        "what would be written; touches nothing",
    ),
    (
        "dstack-vpc --config vpc.toml up",
        "run it (the container's entry point)",
    ),
    ("dstack-vpc status", "what serves, and what is wrong"),
    ("dstack-vpc doctor", "what will not work, and what mends it"),
];

impl Help {
    /// As it stands below the options.
    pub(super) fn text(&self) -> String {
        let mut out = examples(self.examples);
        if !self.exits.is_empty() {
            let _ = write!(out, "\n\n{}", heading("Exit status:"));
            let widest = self
                .exits
                .iter()
                .map(|(status, _)| status.to_string().len())
                .max();
            let width = widest.unwrap_or_default();
            for (status, when) in self.exits {
                let _ = write!(out, "\n  {status:<width$}  {when}");
            }
        }
        out
    }
}

/// Command lines with what they are for beside them, or below where that would be too wide.
pub(super) fn examples(examples: &[(&str, &str)]) -> String {
    /// Of a manual page, where each line is indented.
    const WIDTH: usize = 72;
    let column = examples.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
    let beside = examples.iter().all(|(_, what)| column + what.len() + 4 <= WIDTH);
    let mut out = heading("Examples:");
    for (line, what) in examples {
        let _ = match (what.is_empty(), beside) {
            (true, _) => write!(out, "\n  {line}"),
            (false, true) => write!(out, "\n  {line:column$}  {what}"),
            (false, false) => write!(out, "\n  {line}\n      {what}"),
        };
    }
    out
}

/// As clap's own.
fn heading(text: &str) -> String {
    let styles = clap::builder::Styles::styled();
    let style = styles.get_header();
    format!("{style}{text}{style:#}")
}
