//! Redis over TLS, and with a user who has no more rights than a node needs.

use super::{Gateway, RedisConfig, Server, holds_the_contract, server::free_port};
use crate::{
    contract::room,
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
    super::until("the broker to be back", crate::contract::WAIT_MAX, || async {
        a.node.try_publish(crate::contract::message(&room, "hi")).await.is_ok()
    })
    .await;
}
