//! The program `fanfare`: the library's `main` on the densest allocator for many small connections.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    fanfare_gateway::main()
}
