//! The commands: one file each, thin. What they print is for people unless `--json` says otherwise.

mod apply;
mod check;
pub mod check_report;
mod completions;
mod confirm;
pub mod dev_agent;
mod doctor;
pub mod explain;
mod healthcheck;
pub mod help;
mod history;
pub mod init;
mod limits;
mod nodes;
mod out;
mod plan;
mod progress;
mod render;
mod renew;
mod rollback;
mod run;
pub mod schema;
mod screen;
mod status;
mod up;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::apply::Real;
use crate::apply::format::{self, FormatError};
use crate::desired::Launch;
use crate::facts::{self, Observed};
use crate::paths::StateDir;
use crate::reconcile::Source;
use crate::spec::{Loaded, Spec};

const CONFIG: &str = "/etc/dstack-vpc/vpc.toml";
const STATE_DIR: &str = "/var/lib/dstack-vpc";
/// What a shell calls the end of a program by SIGPIPE.
const READER_GONE: u8 = 141;
/// And by SIGINT.
const INTERRUPTED: u8 = 130;

/// One vpc.toml, reconciled into a mesh, a VPN and an API for Confidential VMs.
#[derive(Debug, Parser)]
#[command(name = "dstack-vpc", version, disable_help_subcommand = true)]
struct Cli {
    /// The configuration file [default: /etc/dstack-vpc/vpc.toml if it exists, else the environment alone]
    #[arg(long, value_name = "PATH", env = "DSTACK_VPC_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Everything that is written lies below this folder
    #[arg(long, value_name = "PATH", env = "DSTACK_VPC_STATE_DIR", default_value = STATE_DIR, global = true)]
    state_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Container entry point: first reconcile, then hand over to supervisord
    Up,
    /// The daemon: listeners, watch, reconcile (supervisord runs this)
    Run,
    /// Dry run: print, or write to a folder, everything that would be written
    Render(render::Args),
    /// What would change, whom it would disturb, and which action each change causes
    Plan(plan::Args),
    /// One reconcile now: live and proven, or rolled back
    Apply(apply::Args),
    /// Keep what `apply --confirm` made live
    Confirm,
    /// Serve the settings of an earlier generation, until the configuration changes
    Rollback(rollback::Args),
    /// What was applied, refused and rolled back, when, why and by whom
    History(history::Args),
    /// Validate vpc.toml and the environment: all problems at once
    Check(check::Args),
    /// Each effective value and where it comes from
    Explain(explain::Args),
    /// What the daemon says of itself, what is wrong first
    Status(status::Args),
    /// The nodes that this server knows, as a table
    Nodes(nodes::Args),
    /// What will not work on this machine, why, and how to mend it
    Doctor(doctor::Args),
    /// For containers: does it serve, and is every service healthy
    Healthcheck,
    /// Fetch a new certificate now, without waiting until it is due
    Renew,
    /// Print a commented starter vpc.toml
    Init(init::Args),
    /// JSON schema of vpc.toml, for editors
    Schema,
    /// A stand-in guest agent for laptops: nothing it says is attested
    DevAgent(dev_agent::DevAgentArgs),
    /// Shell completions
    Completions(completions::Args),
}

/// Everything that can stand on the command line, and what `--help` says of it.
pub fn command() -> clap::Command {
    let all = Cli::command().after_help(help::examples(help::FIRST_STEPS));
    help::ALL.iter().fold(all, |all, help| {
        all.mut_subcommand(help.command, |one| one.after_help(help.text()))
    })
}

/// The program, from its arguments to its exit code.
pub fn main() -> ExitCode {
    limits::no_core_files();
    let matches = command().try_get_matches();
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(said) => {
            // `--help` is such an error, too. Who does not read it to its end has read enough.
            let _ = said.print();
            // Not clap's 2: for `plan` that is "there are changes".
            return ExitCode::from(u8::from(said.use_stderr()));
        }
    };
    let context = match Context::new(&cli) {
        Ok(context) => context,
        Err(error) => return fail(&error),
    };
    if let Err(error) = mind_the_format(&cli.command, &context.state) {
        return fail(&error.to_string());
    }
    let result = match cli.command {
        Command::Up => up::up(&context),
        Command::Run => run::run(&context),
        Command::Render(args) => render::render(&context, &args),
        Command::Plan(args) => plan::plan(&context, &args),
        Command::Apply(args) => apply::apply(&context, &args),
        Command::Confirm => confirm::confirm(&context),
        Command::Rollback(args) => rollback::rollback(&context, &args),
        Command::History(args) => history::history(&context, &args),
        Command::Check(args) => check::check(&context, &args),
        Command::Explain(args) => context.load().and_then(|loaded| {
            let seen = block_on(context.look(&loaded.spec))?;
            explain::explain(&loaded, &seen, &args)
        }),
        Command::Status(args) => status::status(&context, &args),
        Command::Nodes(args) => nodes::nodes(&context, &args),
        Command::Doctor(args) => doctor::doctor(&context, &args),
        Command::Healthcheck => healthcheck::healthcheck(&context),
        Command::Renew => renew::renew(&context),
        Command::Init(args) => init::init(&context.env, &args),
        Command::Schema => schema::schema(),
        Command::DevAgent(args) => dev_agent::dev_agent(args),
        Command::Completions(args) => completions::completions(&args),
    };
    result.unwrap_or_else(|error| {
        if error.is::<out::ReaderGone>() {
            ExitCode::from(READER_GONE)
        } else if error.is::<out::Interrupted>() {
            ExitCode::from(INTERRUPTED)
        } else {
            fail(&chain(&error))
        }
    })
}

/// A state directory of a later version is left alone by what would change it; what only reads it says so, and goes on.
fn mind_the_format(command: &Command, state: &StateDir) -> Result<(), FormatError> {
    let error = match format::check(&Real::new(state, None), state) {
        // Who may not read the file is told so by what needs it.
        Ok(_) | Err(FormatError::Disk(_)) => return Ok(()),
        Err(error) => error,
    };
    match command {
        Command::Up
        | Command::Run
        | Command::Plan(_)
        | Command::Apply(_)
        | Command::Confirm
        | Command::Rollback(_)
        | Command::Renew => Err(error),
        Command::Status(_)
        | Command::Nodes(_)
        | Command::History(_)
        | Command::Explain(_)
        | Command::Healthcheck => {
            let style = anstyle::AnsiColor::Yellow.on_default().bold();
            anstream::eprintln!("{style}warning{style:#}: {error}");
            Ok(())
        }
        // `doctor` has a finding of it, and the others do not look there.
        _ => Ok(()),
    }
}

/// The error and its causes, each said once: some errors repeat their cause in their own sentence.
fn chain(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .fold(String::new(), |text, cause| match text.contains(&cause) {
            true => text,
            false if text.is_empty() => cause,
            false => format!("{text}: {cause}"),
        })
}

fn fail(message: &str) -> ExitCode {
    let style = anstyle::AnsiColor::Red.on_default().bold();
    let message = message.strip_prefix("error: ").unwrap_or(message);
    out::aside(format_args!("{style}error{style:#}: {message}"));
    ExitCode::FAILURE
}

/// What every command starts from.
pub struct Context {
    /// As given, or the default file where it exists.
    pub config: Option<PathBuf>,
    pub state: StateDir,
    pub env: BTreeMap<String, String>,
}

impl Context {
    fn new(cli: &Cli) -> Result<Self, String> {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path)
                .map_err(|error| format!("{} is not a usable path: {error}", path.display()))
        };
        // A variable that is set and empty is a variable that is not set.
        let given = cli.config.as_ref().filter(|path| !path.as_os_str().is_empty());
        let config = match given {
            Some(path) => Some(absolute(path)?),
            None => Some(PathBuf::from(CONFIG)).filter(|path| path.exists()),
        };
        let state = match cli.state_dir.as_os_str().is_empty() {
            true => PathBuf::from(STATE_DIR),
            false => absolute(&cli.state_dir)?,
        };
        Ok(Self {
            config,
            state: StateDir::new(state),
            // Values that are not text cannot be ours; their names still may be, so they are kept readable.
            env: std::env::vars_os()
                .map(|(name, value)| {
                    (
                        name.to_string_lossy().into_owned(),
                        value.to_string_lossy().into_owned(),
                    )
                })
                .collect(),
        })
    }

    /// Where the configuration comes from.
    pub fn source(&self) -> Source {
        Source::new(self.config.clone(), self.env.clone())
    }

    /// The configuration, or everything that is wrong with it.
    fn load(&self) -> anyhow::Result<Loaded> {
        self.source().load().map_err(anyhow::Error::msg)
    }

    /// How supervisord will start the daemon.
    fn launch(&self) -> anyhow::Result<Launch> {
        let exe =
            std::env::current_exe().map_err(|error| anyhow::anyhow!("this program has no path: {error}"))?;
        Ok(Launch {
            exe,
            config: self.config.clone(),
        })
    }

    /// Looks at the machine and changes nothing.
    async fn look(&self, spec: &Spec) -> Observed {
        facts::look(spec, &self.state, std::time::Duration::from_secs(5)).await
    }
}

/// Commands other than the daemon need one thread only.
fn block_on<F: Future>(future: F) -> anyhow::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(future))
}

/// As [`block_on`], but Ctrl-C ends it in order: what the command made for itself is put away.
fn until_ctrl_c<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    block_on(async {
        tokio::select! {
            // What comes at the same time is not what was asked for any more.
            biased;
            pressed = tokio::signal::ctrl_c() => Err(pressed.map_or_else(Into::into, |()| out::Interrupted.into())),
            done = future => done,
        }
    })?
}
