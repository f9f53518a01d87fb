//! A DNS server that knows one set of addresses and gives it for every name. Called by the tests of nginx with nodes
//! that it finds by name; the addresses can be changed while it runs.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::wait::eventually;

/// A running server; dropping it ends it.
#[derive(Debug)]
pub struct Dns {
    /// Where it takes questions.
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Zone {
    addresses: Vec<Ipv4Addr>,
    /// How often these addresses were given.
    given: u64,
}

impl Dns {
    /// Starts one.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start(addresses: &[Ipv4Addr]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port is free");
        let address = socket.local_addr().expect("a socket has an address");
        let zone = Arc::new(Mutex::new(Zone { addresses: addresses.to_vec(), given: 0 }));
        let task = tokio::spawn(serve(socket, Arc::clone(&zone)));
        Self { address, zone, task }
    }

    /// Gives other addresses from now on, and returns once the client uses them: it asks for the second time after it
    /// has taken in the first answer.
    pub async fn change(&self, addresses: &[Ipv4Addr]) {
        *lock(&self.zone) = Zone { addresses: addresses.to_vec(), given: 0 };
        eventually("the new addresses were looked up", async || lock(&self.zone).given >= 2).await;
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(zone: &Mutex<Zone>) -> MutexGuard<'_, Zone> {
    zone.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(socket: UdpSocket, zone: Arc<Mutex<Zone>>) {
    let mut question = [0; 512];
    while let Ok((length, client)) = socket.recv_from(&mut question).await {
        let answer = {
            let mut zone = lock(&zone);
            zone.given += 1;
            answer(&question[..length], &zone.addresses)
        };
        let _ = socket.send_to(&answer, client).await;
    }
}

/// The answer to a question for addresses (RFC 1035, section 4): the question again, then an A record per address.
fn answer(question: &[u8], addresses: &[Ipv4Addr]) -> Vec<u8> {
    const HEADER: usize = 12;
    /// A response without error to a recursive question; one question, and the counts of the other sections follow.
    const FLAGS: [u8; 4] = [0x81, 0x80, 0, 1];
    /// The name of the question; type A, class IN, valid for 1 s, 4 bytes.
    const RECORD: [u8; 12] = [0xC0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4];
    let count = u16::try_from(addresses.len()).expect("a test has few addresses").to_be_bytes();
    let mut answer = [&question[..2], &FLAGS, &count, &[0; 4], &question[HEADER..]].concat();
    for address in addresses {
        answer.extend(RECORD);
        answer.extend(address.octets());
    }
    answer
}
