//! `schema`: prints the JSON schema of vpc.toml.

use std::process::ExitCode;

/// Prints it.
pub fn schema() -> anyhow::Result<ExitCode> {
    super::out::line(format_args!("{:#}", crate::spec::schema()))?;
    Ok(ExitCode::SUCCESS)
}
