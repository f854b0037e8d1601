//! Maps results to exit codes. Everything else is in the library.

use std::process::ExitCode;

/// A request through the mesh allocates some twenty times; this is what makes that cheap.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    dstack_vpc::cli::main()
}
