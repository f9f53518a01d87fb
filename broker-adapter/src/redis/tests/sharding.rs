//! Several independent Redis servers: each has a part of the rooms.

use super::{Gateway, RedisConfig, Server, holds_the_contract, room_where, until};
use crate::{
    Broker, BrokerError, NodeTarget, PresenceDetail, PresenceUpdate, RoomQuery, SessionId,
    contract::{WAIT_MAX, message},
};
use bytes::Bytes;

fn both(servers: &[Server; 2]) -> RedisConfig {
    RedisConfig::parse(&servers.each_ref().map(|server| format!("redis://127.0.0.1:{}", server.port)).join(","))
        .unwrap()
}

fn names(servers: &[Server; 2]) -> [String; 2] {
    servers.each_ref().map(|server| format!("127.0.0.1:{}", server.port))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_two_servers_the_contract_holds() {
    let servers = [Server::start().await, Server::start().await];
    holds_the_contract(&both(&servers)).await;
    for server in &servers {
        let keys: u64 = server.ask("DBSIZE").await;
        assert!(keys > 10, "both have a part of the rooms: {keys}");
    }
}

#[tokio::test]
async fn if_one_of_two_servers_is_away_only_its_rooms_are_affected() {
    let mut servers = [Server::start().await, Server::start().await];
    let (a, b) = (Gateway::connect(both(&servers)).await, Gateway::connect(both(&servers)).await);
    let names = names(&servers);
    let rooms = [0, 1].map(|at| room_where("away", |partition| partition.choose(&names) == at));
    let enter = PresenceUpdate::Enter { session: SessionId([1; 12]), user: None, info: None, announce: true };
    for room in &rooms {
        b.node.subscribe(room).await;
        a.broker.update_presence(room, enter.clone()).await.unwrap();
    }
    let query = || RoomQuery { prefix: "away:".into(), after: None, limit: 10 };
    assert_eq!(a.broker.rooms(query()).await.unwrap().rooms.len(), 2);

    servers[0].kill();
    until("the loss to be noticed", WAIT_MAX, || async { !a.broker.status().up && !b.broker.status().up }).await;
    assert_eq!(a.node.try_publish(message(&rooms[0], "lost")).await, Err(BrokerError::Unavailable));
    a.node.say(&rooms[1], "kept").await;
    b.node.seen.messages(&rooms[1], 1).await;
    assert_eq!(a.broker.presence(&rooms[1], PresenceDetail::Counts).await.unwrap().sessions, 1);
    assert!(a.broker.rooms(query()).await.is_err(), "half of a list would look complete");
    // A control message still arrives: it goes over the other server.
    a.broker.send_control(NodeTarget::One(b.broker.status().node), Bytes::from_static(b"kick")).await.unwrap();
    b.node
        .seen
        .wait_for("the control message", |seen| seen.controls.contains(&Bytes::from_static(b"kick")).then_some(()))
        .await;

    servers[0].run().await;
    until("both to be back", WAIT_MAX, || async { a.broker.status().up && b.broker.status().up }).await;
    a.node.say(&rooms[0], "again").await;
    let there = || async { a.broker.presence(&rooms[0], PresenceDetail::Counts).await.is_ok_and(|p| p.sessions == 1) };
    until("the member from before the empty restart", WAIT_MAX, there).await;
}
