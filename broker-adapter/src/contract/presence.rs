//! Cases about who is in a room, and about the list of rooms.

use super::{TestNode, room};
use crate::{
    Member, Presence, PresenceDetail, PresenceEvent, PresenceKind, PresenceUpdate, Room, RoomQuery, SessionId, User,
    Who,
};
use bytes::Bytes;
use std::time::Duration;

fn session(n: u8) -> SessionId {
    let mut bytes = *b"session-0000";
    bytes[11] = n;
    SessionId(bytes)
}

fn enter(n: u8, user: Option<&str>, info: Option<&'static str>) -> PresenceUpdate {
    let info = info.map(|i| Bytes::from_static(i.as_bytes()));
    PresenceUpdate::Enter { session: session(n), user: user.map(User::new), info, announce: true }
}

fn leave(n: u8) -> PresenceUpdate {
    PresenceUpdate::Leave { session: session(n), announce: true }
}

async fn update_presence(node: &TestNode, room: &Room, update: PresenceUpdate) {
    node.broker.update_presence(room, update).await.unwrap();
}

async fn members(node: &TestNode, room: &Room) -> Presence {
    let presence = node.broker.presence(room, PresenceDetail::Members).await.unwrap();
    let mut presence = (*presence).clone();
    presence.members.sort_by_key(|m| format!("{:?}", m.who));
    presence
}

fn user(name: &str, sessions: u32, info: Option<&'static str>) -> Member {
    Member { who: Who::User(User::new(name)), sessions, info: info.map(|i| Bytes::from_static(i.as_bytes())) }
}

fn kinds(events: &[PresenceEvent]) -> Vec<(PresenceKind, Who)> {
    events.iter().map(|e| (e.kind, e.who.clone())).collect()
}

fn named(kind: PresenceKind, name: &str) -> (PresenceKind, Who) {
    (kind, Who::User(User::new(name)))
}

pub async fn counts_and_members_are_listed(nodes: &[TestNode]) {
    let room = room("count");
    assert_eq!(members(&nodes[0], &room).await.users, 0);
    update_presence(&nodes[0], &room, enter(1, Some("ann"), Some(r#"{"n":1}"#))).await;
    update_presence(&nodes[1], &room, enter(2, Some("ann"), Some(r#"{"n":1}"#))).await;
    update_presence(&nodes[2], &room, enter(3, Some("bob"), None)).await;
    for node in nodes {
        let counts = node.broker.presence(&room, PresenceDetail::Counts).await.unwrap();
        assert_eq!((counts.sessions, counts.users, counts.members.len()), (3, 2, 0));
        let listing = members(node, &room).await;
        assert_eq!((listing.sessions, listing.users), (3, 2));
        assert_eq!(listing.members, [user("ann", 2, Some(r#"{"n":1}"#)), user("bob", 1, None)]);
    }
    update_presence(&nodes[1], &room, leave(2)).await;
    update_presence(&nodes[2], &room, leave(3)).await;
    let listing = members(&nodes[1], &room).await;
    assert_eq!(listing.members, [user("ann", 1, Some(r#"{"n":1}"#))]);
    update_presence(&nodes[0], &room, leave(1)).await;
    let counts = nodes[2].broker.presence(&room, PresenceDetail::Counts).await.unwrap();
    assert_eq!((counts.sessions, counts.users), (0, 0));
}

pub async fn one_event_per_user(nodes: &[TestNode]) {
    let room = room("events");
    for node in nodes {
        node.subscribe(&room).await;
    }
    for n in 0..3 {
        update_presence(&nodes[usize::from(n)], &room, enter(n, Some("ann"), Some("1"))).await;
    }
    update_presence(&nodes[1], &room, enter(9, Some("bob"), None)).await;
    for n in 0..3 {
        update_presence(&nodes[usize::from(n)], &room, leave(n)).await;
    }
    for node in nodes {
        let seen = node.seen.presence(&room, 3).await;
        let expected =
            [named(PresenceKind::Joined, "ann"), named(PresenceKind::Joined, "bob"), named(PresenceKind::Left, "ann")];
        assert_eq!(kinds(&seen), expected);
        assert_eq!(seen[0].info.as_deref(), Some(&b"1"[..]));
        assert_eq!(seen[1].info, None);
    }
}

pub async fn anonymous_sessions_are_users_of_their_own(nodes: &[TestNode]) {
    let room = room("anonymous");
    nodes[2].subscribe(&room).await;
    update_presence(&nodes[0], &room, enter(1, None, None)).await;
    update_presence(&nodes[1], &room, enter(2, None, Some("2"))).await;
    let listing = members(&nodes[2], &room).await;
    assert_eq!((listing.sessions, listing.users), (2, 2));
    assert_eq!(listing.members[0], Member { who: Who::Session(session(1)), sessions: 1, info: None });
    assert_eq!(listing.members[1].who, Who::Session(session(2)));
    update_presence(&nodes[0], &room, leave(1)).await;
    let seen = nodes[2].seen.presence(&room, 3).await;
    let who = |n| Who::Session(session(n));
    let expected = [(PresenceKind::Joined, who(1)), (PresenceKind::Joined, who(2)), (PresenceKind::Left, who(1))];
    assert_eq!(kinds(&seen), expected);
}

pub async fn entering_again_replaces_the_info(nodes: &[TestNode]) {
    let room = room("info");
    nodes[1].subscribe(&room).await;
    update_presence(&nodes[0], &room, enter(1, Some("ann"), Some("1"))).await;
    update_presence(&nodes[0], &room, enter(1, Some("ann"), Some("2"))).await;
    assert_eq!(members(&nodes[2], &room).await.members, [user("ann", 1, Some("2"))]);
    update_presence(&nodes[0], &room, leave(1)).await;
    let seen = nodes[1].seen.presence(&room, 2).await;
    assert_eq!(kinds(&seen), [named(PresenceKind::Joined, "ann"), named(PresenceKind::Left, "ann")]);
    assert_eq!(seen[1].info.as_deref(), Some(&b"2"[..]));
    assert_eq!(members(&nodes[2], &room).await.sessions, 0);
}

/// A listing that is read amid changes, merged with the events after its version, is right at the end.
pub async fn versions_merge_with_the_listing(nodes: &[TestNode]) {
    let room = room("versions");
    nodes[1].subscribe(&room).await;
    let changes = async {
        for n in 0..40 {
            update_presence(&nodes[0], &room, enter(n, Some(&format!("u{n}")), None)).await;
            if n % 3 == 0 {
                update_presence(&nodes[0], &room, leave(n)).await;
            }
        }
    };
    let listing = async {
        nodes[1].seen.presence(&room, 5).await;
        members(&nodes[2], &room).await
    };
    let ((), listing) = tokio::join!(changes, listing);
    let seen = nodes[1].seen.presence(&room, 40 + 14).await;
    assert!(seen.windows(2).all(|pair| pair[0].version < pair[1].version), "versions grow");
    let mut present: Vec<Who> = listing.members.into_iter().map(|m| m.who).collect();
    for event in seen.iter().filter(|event| event.version > listing.version) {
        match event.kind {
            PresenceKind::Joined => present.push(event.who.clone()),
            PresenceKind::Left => present.retain(|who| *who != event.who),
        }
    }
    present.sort_by_key(|who| format!("{who:?}"));
    let now = members(&nodes[0], &room).await;
    assert_eq!(present, now.members.into_iter().map(|m| m.who).collect::<Vec<_>>());
    assert_eq!(now.version, seen.last().unwrap().version);
}

pub async fn unannounced_members_count(nodes: &[TestNode]) {
    let room = room("silent");
    nodes[1].subscribe(&room).await;
    let quiet =
        PresenceUpdate::Enter { session: session(1), user: Some(User::new("ann")), info: None, announce: false };
    update_presence(&nodes[0], &room, quiet).await;
    assert_eq!(members(&nodes[1], &room).await.members, [user("ann", 1, None)]);
    update_presence(&nodes[0], &room, PresenceUpdate::Leave { session: session(1), announce: false }).await;
    update_presence(&nodes[0], &room, enter(2, Some("bob"), None)).await;
    let seen = nodes[1].seen.presence(&room, 1).await;
    assert_eq!(kinds(&seen), [named(PresenceKind::Joined, "bob")]);
}

pub async fn leaving_twice_changes_nothing(nodes: &[TestNode]) {
    let room = room("twice");
    nodes[1].subscribe(&room).await;
    update_presence(&nodes[0], &room, leave(1)).await;
    update_presence(&nodes[0], &room, enter(2, Some("ann"), None)).await;
    update_presence(&nodes[0], &room, leave(2)).await;
    update_presence(&nodes[0], &room, leave(2)).await;
    update_presence(&nodes[0], &room, enter(3, Some("bob"), None)).await;
    let seen = nodes[1].seen.presence(&room, 3).await;
    let expected =
        [named(PresenceKind::Joined, "ann"), named(PresenceKind::Left, "ann"), named(PresenceKind::Joined, "bob")];
    assert_eq!(kinds(&seen), expected);
    assert_eq!(members(&nodes[2], &room).await.users, 1);
}

pub async fn rooms_with_members_are_listed(nodes: &[TestNode]) {
    let base = room("list");
    let rooms: Vec<Room> = (0..7).map(|n| Room::parse(&format!("{base}/{n}")).unwrap()).collect();
    for (n, room) in rooms.iter().enumerate() {
        update_presence(&nodes[n % nodes.len()], room, enter(n as u8, Some("ann"), None)).await;
    }
    nodes[0].subscribe(&base).await;
    update_presence(&nodes[3 % nodes.len()], &rooms[3], leave(3)).await;
    let present: Vec<Room> = rooms.iter().enumerate().filter(|(n, _)| *n != 3).map(|(_, r)| r.clone()).collect();
    let query = |after: Option<&Room>, limit| RoomQuery {
        prefix: base.to_string(),
        after: after.map(ToString::to_string),
        limit,
    };
    let all = nodes[1].broker.rooms(query(None, 100)).await.unwrap();
    assert_eq!((all.rooms, all.more), (present.clone(), false), "only rooms with members, in name order");
    let page = nodes[1].broker.rooms(query(None, 4)).await.unwrap();
    assert_eq!((&page.rooms[..], page.more), (&present[..4], true));
    let page = nodes[2].broker.rooms(query(page.rooms.last(), 4)).await.unwrap();
    assert_eq!((&page.rooms[..], page.more), (&present[4..], false));
    let none = RoomQuery { prefix: format!("{base}/x"), after: None, limit: 10 };
    assert!(nodes[0].broker.rooms(none).await.unwrap().rooms.is_empty());
}

pub async fn a_lease_is_renewed_by_any_node_and_ends_once(nodes: &[TestNode]) {
    let room = room("lease");
    nodes[1].subscribe(&room).await;
    let lease =
        |n, ttl_ms| PresenceUpdate::Lease { session: session(n), announce: true, ttl: Duration::from_millis(ttl_ms) };
    let end = |n| PresenceUpdate::EndLease { session: session(n), announce: true };
    update_presence(&nodes[0], &room, enter(1, None, None)).await;
    update_presence(&nodes[0], &room, lease(2, 3_600_000)).await;
    update_presence(&nodes[0], &room, lease(3, 1)).await;
    update_presence(&nodes[1], &room, lease(2, 1)).await;
    update_presence(&nodes[2], &room, lease(4, 3_600_000)).await;
    // A session is given back at another node; one without a lease cannot be.
    update_presence(&nodes[1], &room, end(4)).await;
    update_presence(&nodes[1], &room, end(1)).await;
    let ending = async {
        loop {
            nodes.iter().for_each(|node| node.broker.end_leases());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let seen = tokio::select! {
        () = ending => unreachable!("it has no end"),
        seen = nodes[1].seen.presence(&room, 6) => kinds(&seen),
    };
    let who = |n| Who::Session(session(n));
    for n in [1, 2, 3, 4] {
        assert!(seen.contains(&(PresenceKind::Joined, who(n))), "{n}: {seen:?}");
        assert_eq!(seen.contains(&(PresenceKind::Left, who(n))), n > 2, "{n}: {seen:?}");
    }
    let listing = members(&nodes[2], &room).await;
    assert_eq!(listing.members.iter().map(|member| member.who.clone()).collect::<Vec<_>>(), [who(1), who(2)]);
    update_presence(&nodes[2], &room, end(2)).await;
    assert_eq!(nodes[1].seen.presence(&room, 7).await.len(), 7);
}
