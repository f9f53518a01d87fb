//! The proxy's faults as the two ends of a connection see them.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{Direction, Fault, Proxy};
use crate::wait::{eventually, within};

/// Long beside what loopback needs.
const WHILE: Duration = Duration::from_millis(150);

/// A proxy, and both ends of a connection through it.
async fn through() -> (Proxy, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::before(listener.local_addr().unwrap()).await;
    let client = TcpStream::connect(proxy.address).await.unwrap();
    let (server, address) = within("the connection comes through", listener.accept()).await.unwrap();
    eventually("it is listed", async || proxy.outgoing() == [address]).await;
    (proxy, client, server)
}

async fn passes(from: &mut TcpStream, to: &mut TcpStream) -> Duration {
    let start = Instant::now();
    from.write_all(b"0123456789").await.unwrap();
    let mut buffer = [0; 10];
    within("ten bytes", to.read_exact(&mut buffer)).await.unwrap();
    assert_eq!(&buffer, b"0123456789");
    start.elapsed()
}

async fn hears_nothing(stream: &mut TcpStream) {
    assert!(timeout(WHILE, stream.read_u8()).await.is_err(), "nothing may pass");
}

#[tokio::test]
async fn a_healthy_proxy_passes_bytes_and_the_end() {
    let (proxy, mut client, mut server) = through().await;
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
    let (proxy, mut client, mut server) = through().await;
    proxy.set(Fault::Delay { least: WHILE, jitter: WHILE });
    assert!(passes(&mut client, &mut server).await >= WHILE);
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
    assert!(start.elapsed() < WHILE * 10, "pieces wait beside each other: {:?}", start.elapsed());
}

#[tokio::test]
async fn a_stall_holds_everything_and_loses_nothing() {
    let (proxy, mut client, mut server) = through().await;
    proxy.set(Fault::Stall);
    client.write_all(b"01234").await.unwrap();
    server.write_all(b"56789").await.unwrap();
    hears_nothing(&mut server).await;
    hears_nothing(&mut client).await;
    let late = TcpStream::connect(proxy.address).await;
    assert!(late.is_ok(), "a stalled server's kernel still accepts");
    assert_eq!(proxy.open(), 1);
    proxy.heal();
    let mut buffer = [0; 5];
    within("what was held", server.read_exact(&mut buffer)).await.unwrap();
    assert_eq!(&buffer, b"01234");
    within("what was held", client.read_exact(&mut buffer)).await.unwrap();
    assert_eq!(&buffer, b"56789");
}

#[tokio::test]
async fn a_black_hole_takes_one_way_and_the_end_of_the_connection() {
    let (proxy, mut client, mut server) = through().await;
    proxy.set(Fault::BlackHole(Direction::ToServer));
    passes(&mut server, &mut client).await;
    client.write_all(b"x").await.unwrap();
    drop(client);
    hears_nothing(&mut server).await;
    proxy.heal();
    assert_eq!(within("what was held", server.read_u8()).await.unwrap(), b'x');
    assert_eq!(within("the end", server.read(&mut [0; 8])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_cut_lets_exactly_so_many_bytes_pass() {
    let (proxy, mut client, mut server) = through().await;
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
async fn chopped_bytes_come_one_by_one_and_whole() {
    let (proxy, mut client, mut server) = through().await;
    proxy.set(Fault::Chop);
    passes(&mut client, &mut server).await;
    passes(&mut server, &mut client).await;
}

#[tokio::test]
async fn a_reset_is_one_for_both_ends_and_for_new_ones_while_it_lasts() {
    let (proxy, mut client, mut server) = through().await;
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
    let (mut server, _) = within("the connection comes through", listener.accept()).await.unwrap();
    passes(&mut client, &mut server).await;
}
