//! Maps results to exit codes. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    dstack_vpc::cli::main()
}
