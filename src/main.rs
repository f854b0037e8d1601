//! Maps results to exit codes. Everything else is in the library.

use std::process::ExitCode;

/// A request through the mesh allocates some twenty times. This makes that cheap, and gives back what a crowd needed.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    dstack_vpc::cli::main()
}
