//! The faults of the proxy, seen from the two ends of a connection.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{Direction, Fault, Proxy};
use crate::wait::{eventually, within};

/// A long time for bytes on the loopback interface.
const LONG: Duration = Duration::from_millis(150);

/// A proxy and both ends of a connection through it.
async fn connected() -> (Proxy, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::before(listener.local_addr().unwrap()).await;
    let client = TcpStream::connect(proxy.address).await.unwrap();
    let (server, address) = within("the connection arrives", listener.accept()).await.unwrap();
    eventually("the connection is listed", async || proxy.outgoing() == [address]).await;
    (proxy, client, server)
}

/// Sends ten bytes and returns how long they took.
async fn passes(from: &mut TcpStream, to: &mut TcpStream) -> Duration {
    let start = Instant::now();
    from.write_all(b"0123456789").await.unwrap();
    let mut buffer = [0; 10];
    within("ten bytes", to.read_exact(&mut buffer)).await.unwrap();
    assert_eq!(&buffer, b"0123456789");
    start.elapsed()
}

async fn receives_nothing(stream: &mut TcpStream) {
    assert!(timeout(LONG, stream.read_u8()).await.is_err(), "bytes have passed");
}

#[tokio::test]
async fn a_healthy_proxy_passes_bytes_and_the_end() {
    let (proxy, mut client, mut server) = connected().await;
    passes(&mut client, &mut server).await;
    passes(&mut server, &mut client).await;
    client.shutdown().await.unwrap();
    assert_eq!(within("the end", server.read(&mut [0; 8])).await.unwrap(), 0);
    passes(&mut server, &mut client).await;
    drop(server);
    assert_eq!(within("the other end", client.read(&mut [0; 8])).await.unwrap(), 0);
    eventually("the connection is gone", async || proxy.open() == 0).await;
}

#[tokio::test]
async fn a_delay_is_kept_and_does_not_add_up() {
    let (proxy, mut client, mut server) = connected().await;
    proxy.set(Fault::Delay { least: LONG, jitter: LONG });
    assert!(passes(&mut client, &mut server).await >= LONG);
    let start = Instant::now();
    let both = async {
        for _ in 0..20 {
            client.write_all(b"0123456789").await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut buffer = [0; 200];
        within("all of it", server.read_exact(&mut buffer)).await.unwrap();
    };
    both.await;
    assert!(start.elapsed() < LONG * 20, "the delays of pieces must overlap: {:?}", start.elapsed());
}

#[tokio::test]
async fn a_stall_holds_everything_and_loses_nothing() {
    let (proxy, mut client, mut server) = connected().await;
    proxy.set(Fault::Stall);
    client.write_all(b"01234").await.unwrap();
    server.write_all(b"56789").await.unwrap();
    receives_nothing(&mut server).await;
    receives_nothing(&mut client).await;
    let late = TcpStream::connect(proxy.address).await;
    assert!(late.is_ok(), "a stalled server's kernel still accepts");
    assert_eq!(proxy.open(), 1);
    proxy.heal();
    let mut buffer = [0; 5];
    within("the bytes that were held back", server.read_exact(&mut buffer)).await.unwrap();
    assert_eq!(&buffer, b"01234");
    within("the bytes that were held back", client.read_exact(&mut buffer)).await.unwrap();
    assert_eq!(&buffer, b"56789");
}

#[tokio::test]
async fn a_black_hole_holds_one_direction_and_the_end_of_the_connection() {
    let (proxy, mut client, mut server) = connected().await;
    proxy.set(Fault::BlackHole(Direction::ToServer));
    passes(&mut server, &mut client).await;
    client.write_all(b"x").await.unwrap();
    drop(client);
    receives_nothing(&mut server).await;
    proxy.heal();
    assert_eq!(within("the bytes that were held back", server.read_u8()).await.unwrap(), b'x');
    assert_eq!(within("the end", server.read(&mut [0; 8])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_cut_lets_exactly_its_number_of_bytes_pass() {
    let (proxy, mut client, mut server) = connected().await;
    passes(&mut client, &mut server).await;
    proxy.set(Fault::CutAfter(13));
    passes(&mut client, &mut server).await;
    client.write_all(b"0123456789").await.unwrap();
    let mut buffer = [0; 3];
    within("the last bytes", server.read_exact(&mut buffer)).await.unwrap();
    assert_eq!(&buffer, b"012");
    assert!(within("the cut", server.read_u8()).await.is_err());
    assert!(within("the cut", client.read_u8()).await.is_err());
}

#[tokio::test]
async fn chopped_bytes_all_arrive() {
    let (proxy, mut client, mut server) = connected().await;
    proxy.set(Fault::Chop);
    passes(&mut client, &mut server).await;
    passes(&mut server, &mut client).await;
}

#[tokio::test]
async fn a_reset_reaches_both_ends_and_new_connections_while_it_lasts() {
    let (proxy, mut client, mut server) = connected().await;
    proxy.reset();
    for stream in [&mut client, &mut server] {
        let error = within("the reset", stream.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::before(listener.local_addr().unwrap()).await;
    proxy.set(Fault::Reset);
    let mut refused = TcpStream::connect(proxy.address).await.unwrap();
    assert!(within("the reset", refused.read_u8()).await.is_err());
    proxy.heal();
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    let (mut server, _) = within("the connection arrives", listener.accept()).await.unwrap();
    passes(&mut client, &mut server).await;
}
