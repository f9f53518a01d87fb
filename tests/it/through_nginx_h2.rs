//! TLS and HTTP/2 through a real nginx, with both of the repository's configurations; above all server-sent events,
//! which browsers need HTTP/2 for. The client is curl, and knows no more than a browser would.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use fanfare_tests::nginx::{Nginx, Version, certify};
use fanfare_tests::process::{Launch, Output, Process};
use fanfare_tests::scratch::Scratch;
use fanfare_tests::wait::{eventually, patience};
use fanfare_tests::{Client, Cluster, http};
use futures_util::future::join_all;
use serde_json::{Value, json};

/// More than a browser's six connections to an origin, and fewer than nginx's 128 streams of a connection.
const STREAMS: usize = 50;

fn curl(nginx: &Nginx) -> Launch {
    Launch::new("curl", "curl")
        .args(["--silent", "--show-error", "--no-buffer", "--cacert"])
        .arg(&nginx.secure().certificate)
}

fn url(nginx: &Nginx, path: &str) -> String {
    format!("https://{}{path}", nginx.secure().address)
}

/// One request, and the reply with its head.
async fn ask(nginx: &Nginx, flags: &[&str], path: &str) -> Output {
    curl(nginx).args(flags).arg("--include").arg(url(nginx, path)).run().await
}

/// A stream that goes on; its log is what it has received so far.
fn follow(nginx: &Nginx, flags: &[&str], path: &str, scratch: &Scratch) -> Process {
    curl(nginx).args(flags).arg(url(nginx, path)).start(scratch.path())
}

/// What the stream number `n` has received so far.
fn came(scratch: &Scratch, n: usize) -> String {
    std::fs::read_to_string(scratch.path().join(format!("stream_{n}"))).unwrap_or_default()
}

/// The `data` of the unnamed events of a stream.
fn messages(text: &str) -> Vec<Value> {
    let blocks = text.split("\n\n").filter(|block| !block.lines().any(|line| line.starts_with("event:")));
    let data = blocks.flat_map(str::lines).filter_map(|line| line.strip_prefix("data:"));
    data.map(|data| serde_json::from_str(data).expect("data is JSON")).collect()
}

async fn sessions(nginx: &Nginx, room: usize) -> Value {
    http::get(nginx.address, &format!("/v1/rooms/room:{room}")).send().await.json()["sessions"].clone()
}

async fn fifty_streams_share_one_connection(version: Version) {
    let cluster = Cluster::over_redis(3).start().await;
    let nginx = Nginx::secure_before(&cluster, version).await;
    let scratch = Scratch::new();
    let rooms = format!("/v1/rooms/room:[1-{STREAMS}]/sse");
    let stream = scratch.path().join("stream_#1");
    let running = curl(&nginx)
        .args(["--http2", "--parallel", "--parallel-max", "100", "--output"])
        .arg(stream)
        .arg(url(&nginx, &rooms))
        .start(scratch.path());
    for n in 1..=STREAMS {
        eventually("the stream has joined", async || came(&scratch, n).contains("event:joined")).await;
    }
    for n in 1..=STREAMS {
        http::post(nginx.address, &format!("/v1/rooms/room:{n}"), &json!({"n": n})).send().await.expect(200);
    }
    for n in 1..=STREAMS {
        eventually("the message has come", async || !messages(&came(&scratch, n)).is_empty()).await;
        let messages = messages(&came(&scratch, n));
        assert_eq!((messages.len(), &messages[0]["data"]), (1, &json!({"n": n})), "{messages:?}");
        assert_eq!(sessions(&nginx, n).await, 1);
    }
    drop(running);
    for n in 1..=STREAMS {
        eventually("nginx has told the node that the client is gone", async || sessions(&nginx, n).await == 0).await;
    }
    let of_streams = |nginx: &Nginx| -> Vec<[String; 3]> {
        nginx.connections().into_iter().filter(|[_, _, path]| path.ends_with("/sse")).collect()
    };
    eventually("nginx has logged them", async || of_streams(&nginx).len() == STREAMS).await;
    let connections: BTreeSet<_> =
        of_streams(&nginx).into_iter().map(|[number, protocol, _]| (number, protocol)).collect();
    assert!(
        connections.len() == 1 && connections.iter().all(|(_, protocol)| protocol == "HTTP/2.0"),
        "{connections:?}"
    );
}

/// The only node is killed: its streams end, and new ones are told to retry until the node is back.
async fn a_stream_is_told_to_retry_while_the_only_node_is_away(version: Version) {
    let mut cluster = Cluster::embedded().start().await;
    let nginx = Nginx::secure_before(&cluster, version).await;
    let scratch = Scratch::new();
    let mut stream = follow(&nginx, &["--http2"], "/v1/rooms/a/sse", &scratch);
    eventually("the stream has joined", async || stream.log().contains("event:joined")).await;
    cluster.nodes[0].kill();
    stream.exit(patience()).await;
    for (protocol, path) in [
        ("--http2", "/v1/rooms/a,b/sse?since=Epoch000.1~"),
        ("--http2", "/v1/rooms//sse?room=a%2Cb"),
        ("--http1.1", "/v1/rooms/a%2Fb/sse"),
    ] {
        let answer = ask(&nginx, &[protocol], path).await;
        assert_eq!(answer.code, Some(0), "{answer:?}");
        let (head, body) = answer.stdout.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.lines().next().is_some_and(|status| status.contains(" 200")), "{head}");
        assert!(head.to_lowercase().contains("content-type: text/event-stream"), "{head}");
        let ms: u64 = body.trim().strip_prefix("retry: ").and_then(|ms| ms.parse().ok()).expect("a retry and no more");
        assert!((2_000..15_000).contains(&ms), "{body}");
    }
    cluster.nodes[0].restart().await;
    let stream = follow(&nginx, &["--http2"], "/v1/rooms/a/sse", &scratch);
    eventually("the stream is served again", async || stream.log().matches("event:joined").count() == 2).await;
}

/// While one of three nodes drains, the others serve all new streams at once.
async fn new_streams_avoid_a_draining_node(version: Version) {
    let cluster = Cluster::over_redis(3).drain(8).start().await;
    let nginx = Nginx::secure_before(&cluster, version).await;
    // Clients that never close hold it in its drain.
    let silent = join_all((0..10).map(|_| Client::connect(cluster.address(0)))).await;
    cluster.nodes[0].terminate();
    let admin = cluster.nodes[0].admin;
    eventually("the node drains", async || http::get(admin, "/readyz").send().await.status == 503).await;
    let scratch = Scratch::new();
    let streams: Vec<Process> = (0..9)
        .map(|n| {
            let flags = ["--http2", "--output"];
            let launch = curl(&nginx).args(flags).arg(scratch.path().join(format!("stream_{n}")));
            launch.arg(url(&nginx, "/v1/rooms/a/sse")).start(scratch.path())
        })
        .collect();
    for n in 0..streams.len() {
        eventually("the stream has joined", async || came(&scratch, n).contains("event:joined")).await;
    }
    assert_eq!(http::get(admin, "/readyz").send().await.status, 503, "it still drains");
    drop(silent);
}

/// Only event streams get a 200 in place of a failure; the address of these publishes ends like that of a stream.
async fn a_publish_to_a_room_that_ends_like_a_transport_sees_its_failure(version: Version) {
    let mut cluster = Cluster::embedded().start().await;
    let nginx = Nginx::before(&cluster, version).await;
    cluster.nodes[0].kill();
    for room in ["a%2Fsse", "a%2Fpoll", "a%2Fstream", "sse"] {
        let reply = http::post(nginx.address, &format!("/v1/rooms/{room}"), &json!(1)).send().await;
        assert_eq!(reply.header("content-type"), "application/problem+json", "{room}: {reply:?}");
        assert!(reply.status == 503 && reply.json()["retryable"] == true, "{room}: {reply:?}");
    }
}

/// A session's address and its `?session=` are secrets: with one a reader of the logs could act as that session.
async fn no_secret_is_in_a_log(version: Version) {
    let mut cluster = Cluster::embedded().start().await;
    let nginx = Nginx::before(&cluster, version).await;
    cluster.nodes[0].kill();
    http::post(nginx.address, "/v1/sessions/secret", &json!({"type": "ping"})).send().await.problem(503);
    http::get(nginx.address, "/v1/rooms/a/poll?session=secret").send().await.problem(503);
    http::get(nginx.address, "/v1/rooms/a").send().await.problem(503);
    eventually("nginx has logged them", async || nginx.access_log().lines().count() >= 3).await;
    eventually("nginx has logged a fault", async || nginx.error_log().contains("/v1/rooms/a")).await;
    for log in [nginx.access_log(), nginx.error_log()] {
        assert!(!log.contains("secret"), "{log}");
    }
}

/// A browser that speaks HTTP/2 opens its WebSockets over HTTP/1.1 on the same port.
async fn a_websocket_opens_beside_http2(version: Version) {
    let cluster = Cluster::embedded().start().await;
    let nginx = Nginx::secure_before(&cluster, version).await;
    let scratch = Scratch::new();
    let upgrade = ["--http1.1", "--include", "-H", "connection: upgrade", "-H", "upgrade: websocket"];
    let key = ["-H", "sec-websocket-version: 13", "-H", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="];
    let origin = format!("origin: https://{}", nginx.secure().address);
    let flags: Vec<&str> = upgrade.into_iter().chain(key).chain(["-H", &origin]).collect();
    let socket = follow(&nginx, &flags, "/ws?room=a", &scratch);
    eventually("the socket is open", async || socket.log().contains(r#""type":"joined""#)).await;
    assert!(socket.log().starts_with("HTTP/1.1 101"), "{}", socket.log());
}

/// nginx accepts the files as they are shipped, without TLS and with it.
async fn nginx_accepts_the_shipped_files(version: Version) {
    let scratch = Scratch::new();
    let here = scratch.path();
    let [top, tls] = version.files();
    shipped_files(version, &scratch).await;
    let test = Launch::new("nginx", version.binary()).args(["-t", "-e"]).arg(here.join("error.log"));
    let test = test.arg("-p").arg(here).arg("-c").arg(here.join(top));
    let plain = test.run().await;
    assert_eq!(plain.code, Some(0), "{}", plain.stderr);
    std::fs::copy(shipped().join(tls), here.join("tls").join(tls)).expect("the TLS server is shipped");
    let without = test.run().await;
    assert!(without.code == Some(1) && without.stderr.contains("fullchain.pem"), "{}", without.stderr);
    certify(&here.join("certificates")).await;
    let secure = test.run().await;
    assert_eq!((secure.code, secure.stderr.contains("[warn]")), (Some(0), false), "{}", secure.stderr);
}

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../nginx")
}

/// Copies the top file and what it includes into a directory, with empty directories for TLS. Only `/tmp` is replaced.
async fn shipped_files(version: Version, scratch: &Scratch) {
    let [top, _] = version.files();
    let copy = Launch::new("cp", "cp").arg("-r").arg(shipped().join("fanfare")).arg(shipped().join("nodes-1.22.conf"));
    assert_eq!(copy.arg(scratch.path()).run().await.code, Some(0));
    let text = std::fs::read_to_string(shipped().join(top)).expect("the top file is shipped");
    let _ = scratch.file(top, &text.replace("/tmp/", &format!("{}/", scratch.path().display())));
    for directory in ["tls", "certificates"] {
        std::fs::create_dir(scratch.path().join(directory)).expect("a directory can be made");
    }
}

/// docker-compose.tls.yml's script: nginx would not start at all with a certificate that it cannot use.
#[tokio::test]
async fn a_wrong_certificate_switches_tls_off_and_leaves_plain_http_on() {
    let scratch = Scratch::new();
    let here = scratch.path();
    let certificates = here.join("certificates");
    shipped_files(Version::New, &scratch).await;
    let script = shipped().join("switch-tls-on.sh");
    // The script calls nginx without arguments, as the image does.
    let nginx = format!(
        "#!/bin/sh\nexec {} -e {here}/error.log -p {here} -c {here}/nginx.conf \"$@\"\n",
        Version::New.binary().display(),
        here = here.display()
    );
    let nginx = scratch.file("nginx", &nginx);
    std::fs::set_permissions(&nginx, Permissions::from_mode(0o755)).expect("a file can be made executable");
    let path = format!("{}:{}", here.display(), std::env::var("PATH").unwrap_or_default());
    let directory = here.display().to_string();
    let script = Launch::new("switch-tls-on.sh", script).env("PATH", &path).env("NGINX_DIRECTORY", &directory);
    let switched = async || {
        let output = script.run().await;
        assert_eq!(output.code, Some(0), "{output:?}");
        let reason = std::fs::read_to_string(here.join("tls/reason.txt")).ok();
        assert_eq!(reason.as_ref(), Some(&output.stderr).filter(|text| !text.is_empty()), "the log has the reason too");
        let is_on = here.join("tls/tls.conf").exists();
        let start = Launch::new("nginx", &nginx).arg("-t").run().await;
        assert_eq!((is_on, start.code), (reason.is_none(), Some(0)), "{}", start.stderr);
        reason
    };
    std::fs::copy(shipped().join("tls.conf"), here.join("tls.conf")).expect("the TLS server is shipped");
    let reason = switched().await.expect("there is no certificate");
    assert!(reason.contains("fullchain.pem") && reason.contains("chown"), "{reason}");
    certify(&certificates).await;
    assert_eq!(switched().await, None);
    let _ = scratch.file("certificates/privkey.pem", "no key");
    let reason = switched().await.expect("the key is wrong");
    assert!(reason.contains("privkey.pem"), "{reason}");
}

for_each! {
    nginx_1_22(Version::Old), nginx_new(Version::New):
    fifty_streams_share_one_connection,
    a_stream_is_told_to_retry_while_the_only_node_is_away,
    a_publish_to_a_room_that_ends_like_a_transport_sees_its_failure,
    new_streams_avoid_a_draining_node,
    no_secret_is_in_a_log,
    a_websocket_opens_beside_http2,
    nginx_accepts_the_shipped_files,
}
