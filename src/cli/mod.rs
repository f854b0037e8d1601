//! One file a command, thin.

pub mod check_report;
pub mod dev_agent;
pub mod explain;
pub mod init;
pub mod schema;
