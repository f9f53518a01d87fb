//! Redis refuses a command in the middle of a script and keeps what the script wrote before it, or has keys that cannot
//! be read: no message is repeated, no offset is lost, and rooms go on as soon as they can.

use super::{
    Gateway, RedisConfig,
    faults::caught_up,
    members::{enter, hasty, leave, users},
    server::Server,
    until,
};
use crate::{
    Broker, Gap, Offset, PresenceDetail, Publish, Reply, RoomQuery, Ticket,
    contract::{WAIT_MAX, keyed, message, room, texts},
    redis::keys::{Keys, Part, Partition},
};
use std::collections::HashSet;

/// A node whose rights the test can take away.
async fn connect(server: &Server) -> Gateway {
    server.command("ACL SETUSER node on >secret ~* &* +@all").await;
    let config = RedisConfig::parse(&format!("redis://node:secret@127.0.0.1:{}", server.port)).unwrap();
    Gateway::connect(RedisConfig { heartbeat: hasty(server).heartbeat, ..config }).await
}

async fn take_away(server: &Server, right: &str) {
    server.command(&format!("ACL SETUSER node -{right}")).await;
}

async fn give_back(server: &Server) {
    server.command("ACL SETUSER node +@all").await;
}

/// The script had stored and sent the message before Redis refused one of its last commands, so every retry published it
/// once more. Or it had only taken the offset, which members then missed.
#[tokio::test]
async fn a_publish_that_was_refused_halfway_was_published_by_every_retry() {
    let server = Server::start().await;
    let a = connect(&server).await;
    for right in ["set", "xadd", "hset", "pttl", "pexpire", "publish"] {
        let room = room(right);
        let head = a.node.subscribe(&room).await;
        take_away(&server, right).await;
        let (mut kept, mut results) = (Vec::new(), Vec::new());
        for text in ["keyed", "keyed", "plain", "keyed"] {
            if text == "keyed" && results.len() == 2 {
                give_back(&server).await;
            }
            let is_plain = text == "plain";
            let publish = if is_plain { message(&room, text) } else { keyed(&room, text, "k1") };
            let result = a.node.try_publish(publish).await;
            if result.as_ref().is_ok_and(|published| !published.duplicate) {
                kept.push(text);
            }
            if !is_plain {
                results.push(result);
            }
        }
        assert!(results[2].is_ok(), "without {right}: {results:?}");
        assert_eq!(kept.iter().filter(|text| **text == "keyed").count(), 1, "without {right}: {results:?}");
        let cursors: HashSet<_> = results.iter().flatten().map(|published| published.cursor).collect();
        assert_eq!(cursors.len(), 1, "without {right}: {results:?}");
        a.node.say(&room, "end").await;
        kept.push("end");

        let (all, gap) = caught_up(&a.node, &room, head).await;
        assert_eq!((all, gap), (kept.iter().map(|text| (*text).to_owned()).collect(), None), "without {right}");
        let ended = |seen: &crate::contract::Seen| {
            let live = seen.messages(&room);
            live.iter().any(|message| &message.payload[..] == b"end").then(|| texts(&live))
        };
        let live = a.node.seen.wait_for("the end", ended).await;
        assert_eq!(live, if right == "publish" { vec!["end"] } else { kept }, "without {right}");
    }
}

#[tokio::test]
async fn a_refused_call_of_several_messages_took_their_offsets() {
    const COUNT: usize = 40;
    let server = Server::start().await;
    let a = connect(&server).await;
    let room = room("batch");
    let head = a.node.subscribe(&room).await;
    take_away(&server, "xadd").await;
    for n in 0..COUNT {
        a.node.broker.publish(message(&room, "refused"), Reply::Ticket(a.node.me, Ticket([n as u64; 3])));
    }
    let all = |seen: &crate::contract::Seen| (seen.results.len() == COUNT).then(|| seen.results.clone());
    let results = a.node.seen.wait_for("every result", all).await;
    assert!(results.iter().all(|(_, _, result)| result.is_err()), "{results:?}");
    give_back(&server).await;
    assert_eq!(a.node.say(&room, "end").await.offset, Offset(1));
    assert_eq!(caught_up(&a.node, &room, head).await, (vec!["end".to_owned()], None));
}

/// Without history a key was used up by a message that was never sent.
#[tokio::test]
async fn a_message_that_redis_refused_to_send_used_up_its_key() {
    let server = Server::start().await;
    let a = connect(&server).await;
    let room = room("once");
    a.node.broker.subscribe(a.node.me, &room, None).await.unwrap();
    let publish = || Publish { retention: None, ..keyed(&room, "once", "k1") };
    take_away(&server, "publish").await;
    assert!(a.node.try_publish(publish()).await.is_err());
    give_back(&server).await;
    let duplicates = [a.node.publish(publish()).await.duplicate, a.node.publish(publish()).await.duplicate];
    assert_eq!(duplicates, [false, true]);
    assert_eq!(texts(&a.node.seen.messages(&room, 1).await), ["once"]);
}

/// Every read, join and publish failed until the meta expired, after a day.
#[tokio::test]
async fn a_room_whose_head_could_not_be_read_was_dead() {
    let server = Server::start().await;
    let (a, b) = (Gateway::connect(server.config()).await, Gateway::connect(server.config()).await);
    let keys = Keys::new("fanfare", 0, false);
    for poison in ["s abc", "s -5", "s 1.5", "s 9223372036854775807", "e short", "e !2345678", "g \u{fffd}"] {
        let [read, joined, published] = ["read", "joined", "published"].map(room);
        for room in [&read, &joined, &published] {
            if *room == published && poison == "e !2345678" {
                continue; // has the length of an epoch: the next read or join notices it
            }
            let head = a.node.subscribe(room).await;
            a.node.say(room, "one").await;
            server.command(&format!("HSET {} {poison}", keys.of(Part::META, room))).await;
            let fresh = match room {
                _ if *room == joined => b.node.subscribe(room).await,
                _ if *room == published => b.node.say(room, "two").await,
                _ if poison == "s 9223372036854775807" => continue, // a number that can be read
                _ => b.node.since(room, head, 100).await.head,
            };
            assert_ne!(fresh.epoch, head.epoch, "{poison}");
            let next = b.node.say(room, "three").await;
            assert_eq!(next.epoch, fresh.epoch, "{poison}");
            let page = a.node.since(room, head, 100).await;
            assert_eq!(page.gap, Some(Gap { missed: None }), "{poison}");
            assert_eq!(page.publications.last().and_then(|last| last.cursor), Some(next), "{poison}");
        }
    }
}

/// Each publish was refused, and took an offset.
#[tokio::test]
async fn a_stream_with_ids_beyond_the_last_offset_refused_every_publish() {
    let server = Server::start().await;
    let a = Gateway::connect(server.config()).await;
    let keys = Keys::new("fanfare", 0, false);
    for id in ["999-0", "18446744073709551615-18446744073709551615"] {
        let room = room("beyond");
        let head = a.node.subscribe(&room).await;
        a.node.say(&room, "one").await;
        server.command(&format!("XADD {} {id} d garbage", keys.of(Part::STREAM, &room))).await;
        let first = a.node.publish(keyed(&room, "two", "k1")).await.cursor.unwrap();
        let again = a.node.publish(keyed(&room, "two", "k1")).await;
        assert_eq!((again.cursor, again.duplicate), (Some(first), true));
        assert_eq!((first.offset, first.epoch == head.epoch), (Offset(1), false));
        assert_eq!(a.node.say(&room, "three").await.offset, Offset(2));
        let (all, gap) = caught_up(&a.node, &room, head).await;
        assert_eq!((all, gap), (vec!["two".to_owned(), "three".to_owned()], Some(Gap { missed: None })));
        let expires: i64 = server.ask(&format!("PTTL {}", keys.of(Part::STREAM, &room))).await;
        assert!(expires > 0, "the new stream expires: {expires}");
    }
}

/// The session was listed but not counted, so the number of its room's users was -1 after it had left, which no node
/// could read.
#[tokio::test]
async fn an_enter_or_leave_that_was_refused_halfway_made_the_counts_wrong() {
    let server = Server::start().await;
    let a = connect(&server).await;
    let rights = ["persist", "zadd", "hsetnx", "publish", "hset", "hincrby", "exists", "zrem", "hdel", "pexpire"];
    for right in rights {
        let room = room("halfway");
        let counts = || async {
            let presence = a.broker.presence(&room, PresenceDetail::Counts).await.unwrap();
            (presence.sessions, presence.users)
        };
        // Two rounds: the enter is refused, and then the leave.
        for refused_enter in [true, false] {
            if refused_enter {
                take_away(&server, right).await;
            }
            let entered = a.broker.update_presence(&room, enter(1, "ann")).await;
            let is_counted = counts().await;
            assert_eq!(is_counted, if entered.is_ok() { (1, 1) } else { (0, 0) }, "without {right}: {entered:?}");
            if refused_enter {
                give_back(&server).await;
                until("the session to be written", WAIT_MAX, || async { counts().await == (1, 1) }).await;
            }
            if !refused_enter {
                take_away(&server, right).await;
            }
            let _ = a.broker.update_presence(&room, leave(1)).await;
            assert!([(0, 0), (1, 1)].contains(&counts().await), "without {right}");
            give_back(&server).await;
            let query = || RoomQuery { prefix: room.as_str().into(), after: None, limit: 1 };
            until("the session to leave", WAIT_MAX, || async {
                counts().await == (0, 0) && a.broker.rooms(query()).await.unwrap().rooms.is_empty()
            })
            .await;
        }
        a.broker.update_presence(&room, enter(2, "bob")).await.unwrap();
        assert_eq!(users(&a, &room).await, ["bob"]);
    }
}

#[tokio::test]
async fn an_enter_into_a_room_that_could_not_be_listed_was_not_counted() {
    let server = Server::start().await;
    let a = connect(&server).await;
    let room = room("listed");
    let rooms = Keys::new("fanfare", 0, false).rooms(Partition::of(&room));
    server.command(&format!("SET {rooms} x")).await;
    a.broker.update_presence(&room, enter(1, "ann")).await.unwrap_err();
    assert_eq!(users(&a, &room).await, Vec::<String>::new());
    server.command(&format!("DEL {rooms}")).await;
    until("the session to be written", WAIT_MAX, || async { users(&a, &room).await == ["ann"] }).await;
    a.broker.update_presence(&room, leave(1)).await.unwrap();
    assert_eq!(users(&a, &room).await, Vec::<String>::new());
}

/// Counts below 0 were left by sessions that were listed but not counted.
#[tokio::test]
async fn counts_that_could_not_be_read_made_presence_fail() {
    let server = Server::start().await;
    let a = Gateway::connect(server.config()).await;
    for poison in ["U -1", "U zz", "v zz", "U 9223372036854775807", "uann zz", "ubob zz"] {
        let room = room("counts");
        let key = Keys::new("fanfare", 0, false).of(Part::USERS, &room);
        a.broker.update_presence(&room, enter(1, "ann")).await.unwrap();
        let before = a.broker.presence(&room, PresenceDetail::Counts).await.unwrap().version;
        server.command(&format!("HSET {key} {poison}")).await;
        a.broker.presence(&room, PresenceDetail::Members).await.unwrap();
        a.broker.update_presence(&room, enter(2, "bob")).await.unwrap();
        a.broker.update_presence(&room, leave(1)).await.unwrap();
        a.broker.update_presence(&room, leave(2)).await.unwrap();
        let after = a.broker.presence(&room, PresenceDetail::Counts).await.unwrap();
        assert_eq!(after.sessions, 0, "{poison}");
        assert!(after.version > before, "{poison}: versions go on growing");
        a.broker.update_presence(&room, enter(2, "bob")).await.unwrap();
        assert_eq!(users(&a, &room).await, ["bob"], "{poison}");
    }
}
