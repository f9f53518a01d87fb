//! Free ports for servers that cannot be told "port 0". Called by `redis` and `nginx`; it never hands out a port of
//! the ephemeral range, so that no outgoing connection takes the place of a server that is being restarted.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 20_000;
/// Linux picks outgoing ports from 32768 upward (`net.ipv4.ip_local_port_range`).
const COUNT: u32 = 12_000;

/// A port on 127.0.0.1 on which nobody listens now, and which this process has not handed out for a long time.
///
/// # Panics
/// When all of them are taken.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Two test processes on one machine start at different places.
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
