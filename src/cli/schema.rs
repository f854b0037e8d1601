//! `schema`: prints the JSON schema of vpc.toml.

use std::process::ExitCode;

/// Prints it.
pub fn schema() -> anyhow::Result<ExitCode> {
    println!("{:#}", crate::spec::schema());
    Ok(ExitCode::SUCCESS)
}
