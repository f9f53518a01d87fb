//! The client commands over TLS: through nginx as the repository configures it, and before servers whose certificates are
//! good or bad in one way each.

use std::path::Path;

use fanfare_tests::cluster::binary;
use fanfare_tests::nginx::{Nginx, Version};
use fanfare_tests::process::{Launch, Output, Process};
use fanfare_tests::scratch::Scratch;
use fanfare_tests::wait::{eventually, patience};
use fanfare_tests::{Cluster, http, ports};
use serde_json::json;

use crate::fixtures::one_node;

fn fanfare(args: &[&str]) -> Launch {
    Launch::new("fanfare", binary()).args(args)
}

/// A cluster of one node, nginx with TLS before it, its URL without a scheme, and the file to trust.
async fn secure_node() -> (Cluster, Nginx, String, String) {
    let cluster = one_node().await;
    let nginx = Nginx::secure_before(&cluster, Version::New).await;
    let address = nginx.secure().address.to_string();
    let trusted = nginx.secure().certificate.display().to_string();
    (cluster, nginx, address, trusted)
}

#[tokio::test]
async fn sub_and_pub_work_over_tls_with_every_transport() {
    let (cluster, _nginx, address, trusted) = secure_node().await;
    let url = format!("https://{address}");
    let scratch = Scratch::new();
    for (n, transport) in ["ws", "sse", "stream", "poll", "short-poll"].into_iter().enumerate() {
        let room = format!("room:{n}");
        // With a message of this moment a short poll comes again within seconds.
        http::post(cluster.address(0), &format!("/v1/rooms/{room}"), &json!(0)).send().await.expect(200);
        let sub = fanfare(&["sub", "--transport", transport, "--url", &url, "--ca-file", &trusted, &room]);
        let sub = sub.start(scratch.path());
        eventually("sub has joined", async || sub.log().contains(&format!("joined {room}"))).await;
        let output = fanfare(&["pub", "--url", &url, &room, r#"{"n":1}"#]).env("FANFARE_CA_FILE", &trusted).run().await;
        assert!(output.code == Some(0) && output.stdout.contains("cursor"), "{transport}: {output:?}");
        eventually("sub prints it", async || sub.log().contains(r#""data":{"n":1}"#)).await;
        assert!(!sub.log().contains("reconnecting"), "{transport}: {}", sub.log());
    }
}

#[tokio::test]
async fn bench_works_over_tls() {
    let (_cluster, _nginx, address, trusted) = secure_node().await;
    let run = ["bench", "--members", "5", "--in-flight", "1", "--seconds", "0.5", "--payload", "50000"];
    let output = fanfare(&run).args(["--url", &format!("wss://{address}"), "--ca-file", &trusted]).run().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stdout.contains(&format!("wss://{address} over WebSocket")), "{}", output.stdout);
}

#[tokio::test]
async fn an_unknown_authority_ends_every_command_with_the_flag_that_names_it() {
    let (_cluster, _nginx, address, _) = secure_node().await;
    let url = format!("https://{address}");
    for command in [
        &["sub", "--url", &url, "a"][..],
        &["sub", "--transport", "sse", "--url", &url, "a"],
        &["sub", "--transport", "poll", "--url", &url, "a"],
        &["pub", "--url", &url, "a", "1"],
        &["bench", "--url", &url],
        &["health", "--admin", &url],
    ] {
        let output = fanfare(command).run().await;
        assert_eq!(output.code, Some(1), "{command:?}: {output:?}");
        assert!(output.stderr.contains("--ca-file"), "{command:?}: {output:?}");
    }
}

/// Makes an authority, `ca.pem`, and a certificate from it for one name or address, `server.pem`, with its key.
async fn authority(directory: &Path, name: &str) {
    let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    for more in [
        &["-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem"][..],
        &["-subj", "/CN=server", "-keyout", "server.key", "-out", "server.pem", "-CA", "ca.pem", "-CAkey", "ca.key"],
    ] {
        let leaf = ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", &format!("subjectAltName={name}")]
            .map(str::to_owned);
        let leaf = if more.contains(&"-CA") { &leaf[..] } else { &[] };
        let script = "cd \"$0\" && exec openssl \"$@\"";
        let made = Launch::new("openssl", "bash").args(["-c", script]).arg(directory).args(new).args(more).args(leaf);
        let made = made.run().await;
        assert_eq!(made.code, Some(0), "{}", made.stderr);
    }
}

/// A server with the certificate in `directory` whose admin listener says that it is ready.
async fn ready_server(directory: &Scratch) -> (Process, String) {
    let _ = directory.file("readyz", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nready");
    let port = ports::free_port().to_string();
    let script = "cd \"$0\" && exec openssl s_server -HTTP -accept \"$1\" -cert server.pem -key server.key";
    let server = Launch::new("s_server", "bash").args(["-c", script]).arg(directory.path()).arg(&port);
    let server = server.start(directory.path());
    eventually("the server listens", async || {
        tokio::net::TcpStream::connect(format!("127.0.0.1:{port}")).await.is_ok()
    })
    .await;
    (server, format!("https://127.0.0.1:{port}"))
}

async fn health(url: &str, ca_file: &Path) -> Output {
    fanfare(&["health", "--admin", url, "--ca-file"]).arg(ca_file).run().await
}

#[tokio::test]
async fn a_private_authority_is_trusted_if_its_file_is_named_and_the_name_is_right() {
    let scratch = Scratch::new();
    authority(scratch.path(), "IP:127.0.0.1").await;
    let (_server, url) = ready_server(&scratch).await;
    let output = health(&url, &scratch.path().join("ca.pem")).await;
    assert_eq!((output.code, output.stdout.trim()), (Some(0), "ready"), "{output:?}");

    let other = Scratch::new();
    authority(other.path(), "DNS:example.com").await;
    let refused = health(&url, &other.path().join("ca.pem")).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("(--ca-file)"), "another authority: {refused:?}");
    let (_server, url) = ready_server(&other).await;
    let refused = health(&url, &other.path().join("ca.pem")).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("example.com"), "another name: {refused:?}");
}

#[tokio::test]
async fn a_server_without_tls_is_named_as_one() {
    let cluster = one_node().await;
    let mut sub =
        fanfare(&["sub", "--url", &format!("wss://{}", cluster.address(0)), "a"]).start(cluster.scratch().path());
    assert_eq!(sub.exit(patience()).await.code(), Some(1), "{}", sub.log());
    assert!(sub.log().contains("does not speak TLS") && sub.log().contains("ws://"), "{}", sub.log());
}
