//! Free ports for servers that are restarted under the same address. Called by everything that starts one. No other process
//! takes such a port while its server is down: it lies below the range of outgoing connections, and test processes that run
//! at the same time have different blocks of ports.

use std::fs::File;
use std::net::TcpListener;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

/// The tests of the broker have the ports below. Linux picks outgoing ports from 32768 upward
/// (`net.ipv4.ip_local_port_range`).
const FIRST: u16 = 20_000;
/// More than any test process asks for while one of its servers is down.
const BLOCK: u16 = 1_000;
const BLOCKS: u16 = 12;

/// A port on 127.0.0.1 on which no server listens now, and which this process has not handed out for a long time.
///
/// # Panics
/// When all ports of the block are taken, or all blocks.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = FIRST + BLOCK * block();
    for _ in 0..BLOCK {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % BLOCK;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {first} on");
}

/// This process's own block: its lock file is locked until the process ends.
fn block() -> u16 {
    static OWN: OnceLock<(u16, File)> = OnceLock::new();
    let own = OWN.get_or_init(|| {
        let lock = |block: u16| {
            let file = File::create(std::env::temp_dir().join(format!("fanfare-tests-ports-{block}.lock"))).ok()?;
            file.try_lock().ok()?;
            Some((block, file))
        };
        (0..BLOCKS).find_map(lock).expect("fewer than 12 test processes run at the same time")
    });
    own.0
}
