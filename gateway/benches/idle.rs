//! Measures what an idle WebSocket connection keeps on the heap: `cargo bench -p fanfare --bench idle`. A whole node
//! runs in this process, on its own threads; the clients are bare sockets of the main thread, which own no heap. The
//! allocator counts bytes that were asked for and not freed. So the figures contain neither the kernel's share (4.3
//! KiB) nor what the allocator loses by rounding.
//!
//! The figures are the growth over the second half of the connections. So they do not contain what a node allocates
//! once.

use fanfare_gateway::bench;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::{
    alloc::System,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CONNECTIONS: usize = 1_000;
const PATIENCE: Duration = Duration::from_secs(20);
/// The figure counts as settled when it has not changed for this long: the last tasks of the handshakes have ended
/// then.
const QUIET: Duration = Duration::from_millis(300);
const UPGRADE: &[u8] = b"HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Bytes and blocks that are allocated and not freed.
fn live() -> (isize, isize) {
    let stats = ALLOCATOR.stats();
    let bytes = stats.bytes_allocated as isize - stats.bytes_deallocated as isize;
    (bytes, stats.allocations as isize - stats.deallocations as isize)
}

/// [`live`], once it no longer changes.
fn settled() -> (isize, isize) {
    let (begun, mut seen, mut since) = (Instant::now(), live(), Instant::now());
    while since.elapsed() < QUIET && begun.elapsed() < PATIENCE {
        std::thread::park_timeout(Duration::from_millis(10));
        let now = live();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
    seen
}

/// Connects one client, and reads until `last` has come.
fn connect(address: SocketAddr, path: &str, last: &[u8]) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(b"GET ")?;
    socket.write_all(path.as_bytes())?;
    socket.write_all(b" ")?;
    socket.write_all(UPGRADE)?;
    let (mut answer, mut filled) = ([0; 2048], 0);
    while !answer[..filled].windows(last.len()).any(|part| part == last) {
        match socket.read(&mut answer[filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => filled += n,
        }
    }
    Ok(socket)
}

/// Bytes and blocks per connection of one kind; `#` in the path stands for the connection's number.
fn measure(address: SocketAddr, path: &str, last: &[u8]) -> io::Result<(f64, f64)> {
    let mut clients = Vec::with_capacity(CONNECTIONS);
    let open = |clients: &mut Vec<TcpStream>, to: usize| -> io::Result<(isize, isize)> {
        while clients.len() < to {
            clients.push(connect(address, &path.replace('#', &clients.len().to_string()), last)?);
        }
        Ok(settled())
    };
    let half = open(&mut clients, CONNECTIONS / 2)?;
    let all = open(&mut clients, CONNECTIONS)?;
    let per = |all: isize, half: isize| (all - half) as f64 / (CONNECTIONS - CONNECTIONS / 2) as f64;
    Ok((per(all.0, half.0), per(all.1, half.1)))
}

/// The node's public address, once it serves.
fn address(ready_file: &Path) -> io::Result<SocketAddr> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let text = std::fs::read_to_string(ready_file).unwrap_or_default();
        if let Some(address) = text.split('"').nth(3) {
            return address.parse().map_err(io::Error::other);
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn main() -> io::Result<()> {
    let ready_file = std::env::temp_dir().join(format!("fanfare-idle-{}.ready", std::process::id()));
    let ready = ready_file.display().to_string();
    std::thread::spawn(move || {
        let flags = [("listen", "127.0.0.1:0"), ("admin", "127.0.0.1:0"), ("shards", "1"), ("ready_file", &ready)];
        if let Err(why) = bench::serve(&flags) {
            eprintln!("the node ended: {why}");
            std::process::exit(1);
        }
    });
    let address = address(&ready_file)?;
    std::fs::remove_file(&ready_file)?;
    let kinds = [
        ("in no room", "/ws", r#""type":"welcome""#),
        ("in one room of all", "/ws?room=all", r#""type":"joined""#),
        ("in a room of its own", "/ws?room=own:#", r#""type":"joined""#),
    ];
    for (name, path, last) in kinds {
        let (bytes, blocks) = measure(address, path, last.as_bytes())?;
        println!("idle/heap per connection {name:22} {bytes:7.0} bytes in {blocks:4.1} blocks");
    }
    Ok(())
}
