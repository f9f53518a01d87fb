//! Free ports for servers that cannot listen on "port 0". Called by everything that starts a server. The ports lie
//! outside the ephemeral range, so that no outgoing connection takes the port of a server that is being restarted.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 20_000;
/// Ends below 32768, from which Linux picks ports for outgoing connections (`net.ipv4.ip_local_port_range`).
const COUNT: u32 = 12_000;

/// A port on 127.0.0.1 that is free now and that this process has not returned recently.
///
/// # Panics
/// If all of them are in use.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Two test processes on one machine start at different ports.
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + start.wrapping_add(step) % COUNT;
        let port = u16::try_from(port).expect("the range lies below 65536");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}
