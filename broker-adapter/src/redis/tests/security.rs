//! Redis over TLS, and with a user who has no more rights than a node needs.

use super::{Gateway, RedisConfig, Server, holds_the_contract, server::free_port, until};
use crate::{
    Broker, BrokerError, Publish, Status,
    contract::{KEEP, Seen, WAIT_MAX, message, room},
    redis::{ConnectError, RedisBroker},
};
use std::{
    path::Path,
    process::{Command, Stdio},
};

const ACL: &str = include_str!("../../../../deploy/redis/fanfare.acl");

/// Writes the ACL file that is deployed, but with the default user, who is the one that the test itself uses.
fn acl(dir: &Path) -> Vec<String> {
    let file = dir.join("users.acl");
    std::fs::write(&file, ACL.strip_prefix("user default off\n").unwrap()).unwrap();
    vec!["--aclfile".into(), file.to_str().unwrap().into()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deployed_user_has_every_right_that_is_needed() {
    let server = Server::start_with(acl).await;
    let config = RedisConfig::parse(&format!("redis://fanfare:change-me@127.0.0.1:{}", server.port)).unwrap();
    holds_the_contract(&config).await;
    let denied: Vec<redis::Value> = server.ask("ACL LOG").await;
    assert_eq!(denied, Vec::<redis::Value>::new());
}

#[tokio::test]
async fn the_deployed_user_has_no_other_rights() {
    let server = Server::start_with(acl).await;
    let url = format!("redis://fanfare:change-me@127.0.0.1:{}", server.port);
    let mut conn = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    for command in [
        "GET other",
        "PUBLISH other x",
        "KEYS *",
        "FLUSHALL",
        "CONFIG GET *",
        "SCRIPT FLUSH",
        "CLUSTER NODES",
        "ACL LIST",
    ] {
        let mut words = command.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap());
        cmd.arg(words.collect::<Vec<_>>());
        let why = cmd.query_async::<redis::Value>(&mut conn).await.err().unwrap();
        assert_eq!(why.code(), Some("NOPERM"), "{command}: {why}");
    }
    for wrong in ["redis://fanfare:wrong@", "redis://nobody:change-me@"] {
        let config = RedisConfig::parse(&format!("{wrong}127.0.0.1:{}", server.port)).unwrap();
        let why = RedisBroker::connect(config, Vec::new()).await.err().unwrap();
        assert!(matches!(why, ConnectError::Refused { .. }), "{why}");
    }
}

/// A server with the deployed ACL, a broker with that user, and one with all rights.
async fn with_rights() -> (Server, Gateway, Gateway) {
    let server = Server::start_with(acl).await;
    let limited = RedisConfig::parse(&format!("redis://fanfare:change-me@127.0.0.1:{}", server.port)).unwrap();
    let (limited, free) = (Gateway::connect(limited).await, Gateway::connect(server.config()).await);
    (server, limited, free)
}

/// The SUBSCRIBE of a whole batch was refused for one room, and ended the connection, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_may_not_be_subscribed_leaves_the_others_alone_and_comes_back_with_the_right() {
    let (server, a, other) = with_rights().await;
    let [secret, secret_too, open, open_too] = ["secret", "secret", "open", "open"].map(room);
    for room in [&secret, &open] {
        a.node.subscribe(room).await;
    }
    // Redis cuts the connections that have what is not permitted any more.
    server.command("ACL SETUSER fanfare resetchannels &fanfare:ctl &fanfare:node:* &fanfare:*:c:open*").await;
    let refused = || async {
        let reply = a.broker.subscribe(a.node.me, &secret_too, Some(KEEP));
        tokio::time::timeout(WAIT_MAX, reply).await.expect("a join is answered")
    };
    until("the refusal", WAIT_MAX, || async { refused().await == Err(BrokerError::Misconfigured) }).await;
    until("the broker to be up", WAIT_MAX, || async { a.broker.status().up }).await;
    let Status { reconnects, .. } = a.broker.status();

    assert_eq!(a.broker.subscribe(a.node.me, &open_too, None).await, Ok(None));
    for n in 1..=20 {
        assert_eq!(refused().await, Err(BrokerError::Misconfigured));
        other.node.say(&open, "hi").await;
        other.node.publish(Publish { retention: None, ..message(&open_too, "hi") }).await;
        a.node.seen.messages(&open_too, n).await;
        a.node.seen.messages(&open, n).await;
    }
    let missed = other.node.say(&secret, "missed").await;
    let Status { up, reconnects: later, .. } = a.broker.status();
    assert_eq!((up, later), (true, reconnects), "no connection ends");

    server.command("ACL SETUSER fanfare &fanfare:*").await;
    let head = |seen: &Seen| seen.heads(&secret).contains(&missed).then_some(());
    a.node.seen.wait_for("the head after what was missed", head).await;
    other.node.say(&secret, "heard").await;
    a.node.seen.messages(&secret, 1).await;
}

/// The connection ended, again and again, and the log did not say why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_may_not_subscribe_its_own_channels_is_down_and_serves_its_rooms() {
    let (server, a, other) = with_rights().await;
    let room = room("own");
    a.node.subscribe(&room).await;
    server.command("ACL SETUSER fanfare resetchannels &fanfare:ctl &fanfare:*:c:*").await;
    until("the broker to be down", WAIT_MAX, || async { !a.broker.status().up }).await;
    until("deliveries", WAIT_MAX, || async {
        other.node.say(&room, "hi").await;
        !a.node.seen.now().messages(&room).is_empty()
    })
    .await;
    until("the connections to be back", WAIT_MAX, || async { a.broker.availability(&room).is_ok() }).await;
    assert!(!a.broker.status().up);

    let config = RedisConfig::parse(&format!("redis://fanfare:change-me@127.0.0.1:{}", server.port)).unwrap();
    let why = RedisBroker::connect(config, Vec::new()).await.err().unwrap().to_string();
    assert!(why.contains("NOPERM"), "{why}");

    server.command("ACL SETUSER fanfare &fanfare:*").await;
    until("the broker to be up", WAIT_MAX, || async { a.broker.status().up }).await;
}

fn openssl(dir: &Path, words: &str) {
    let done = Command::new("openssl").args(words.split(' ')).current_dir(dir).stderr(Stdio::null()).status().unwrap();
    assert!(done.success(), "openssl {words}");
}

/// Makes an authority, and a certificate for the loopback that it has signed.
fn certificates(dir: &Path) {
    openssl(dir, "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem");
    openssl(dir, "req -newkey rsa:2048 -nodes -subj /CN=redis -keyout redis.key -out redis.csr");
    std::fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
    openssl(
        dir,
        "x509 -req -in redis.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out redis.pem",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_the_contract_holds_and_certificates_are_checked() {
    let port = free_port();
    let server = Server::start_with(|dir| {
        certificates(dir);
        let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let words = ["--tls-port", &port.to_string(), "--tls-auth-clients", "no"].map(String::from);
        let files = ["--tls-cert-file", "--tls-key-file", "--tls-ca-cert-file"].map(String::from);
        let files = files.into_iter().zip([file("redis.pem"), file("redis.key"), file("ca.pem")]);
        words.into_iter().chain(files.flat_map(|(option, file)| [option, file])).collect()
    })
    .await;
    let mut config = RedisConfig::parse(&format!("rediss://127.0.0.1:{port}")).unwrap();
    let why = RedisBroker::connect(config.clone(), Vec::new()).await.err().unwrap();
    assert!(why.to_string().contains("UnknownIssuer"), "{why}");
    config.trust(&std::fs::read(server.dir.join("ca.pem")).unwrap()).unwrap();
    holds_the_contract(&config).await;

    let a = Gateway::connect(config.clone()).await;
    let room = room("tls");
    a.node.subscribe(&room).await;
    server.command("CLIENT KILL TYPE normal SKIPME yes").await;
    until("the broker to be back", WAIT_MAX, || async { a.node.try_publish(message(&room, "hi")).await.is_ok() }).await;
}
