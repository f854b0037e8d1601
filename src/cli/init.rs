//! `init`: prints a starter vpc.toml.

use std::collections::BTreeMap;
use std::process::ExitCode;

use super::out;
use crate::spec::{Role, starter};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What the machine is
    #[arg(long, value_parser = roles())]
    role: Option<String>,
    /// Write down what the environment of this process sets
    #[arg(long)]
    from_env: bool,
}

fn roles() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(Role::WORDS.iter().map(|(word, _)| *word))
}

/// Prints the file; an environment that cannot be used is an error.
pub fn init(env: &BTreeMap<String, String>, args: &Args) -> anyhow::Result<ExitCode> {
    let role = Role::WORDS
        .iter()
        .find(|(word, _)| Some(*word) == args.role.as_deref())
        .map(|(_, role)| *role);
    let text = starter(role, args.from_env.then_some(env)).map_err(anyhow::Error::msg)?;
    out::print(text)?;
    Ok(ExitCode::SUCCESS)
}
