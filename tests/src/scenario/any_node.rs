//! R14: every request goes to another node than the one before: resumes, history, presence, publishes, kicks. All are
//! served as if there were one node.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{Outcome, Promise, Setting, judge, say};
use crate::client::Client;
use crate::cluster::Cluster;
use crate::crowd::KEEP_ALL;
use crate::history::{MemberLog, Position, Published, Seen};
use crate::http::{self, Reply};
use crate::member::Report;

/// How a session is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    WebSocket,
}

/// All that there are.
const TRANSPORTS: &[Transport] = &[Transport::WebSocket];
/// Publications between two hops.
const PER_HOP: u64 = 5;

/// Requests that were served, and those that were not.
#[derive(Default)]
struct Tally {
    served: u32,
    refused: u32,
}

pub(super) async fn run(to: Setting) -> Outcome {
    let hops = to.pick(300, 20);
    let cluster = Cluster::over_redis(3).config(KEEP_ALL).start().await;
    let (mut tally, mut published, mut reports) = (Tally::default(), Vec::new(), Vec::new());
    for transport in TRANSPORTS {
        let room = format!("hops:{transport:?}");
        let mut log = Vec::new();
        let mut since = None;
        // The last one reads what the others before it did not, and leaves nothing behind.
        for hop in 0..=hops {
            let session = Session::open(*transport, cluster.address(hop), &room, since.as_ref()).await;
            since = session
                .one_hop((&cluster, hop, hop == hops), &room, &mut published, (&mut tally, &mut log))
                .await
                .or(since);
        }
        let log = MemberLog { name: format!("{transport:?}"), rooms: [(room, log)].into() };
        reports.push(Report { log, ..Report::default() });
    }
    let percent = 100.0 * f64::from(tally.served) / f64::from(tally.served + tally.refused).max(1.0);
    Outcome::new(Promise::Clean, judge(&published, &mut reports))
        .at_least(&format!("served % of {}", tally.served + tally.refused), percent, 100.0)
        .note(format!("transports {TRANSPORTS:?}"))
}

impl Tally {
    /// Counts an answer that must be as told.
    fn count(&mut self, what: &str, is_right: bool, answer: impl std::fmt::Debug) {
        if is_right {
            self.served += 1;
        } else {
            self.refused += 1;
            say(&format!("  {what}: {answer:?}"));
        }
    }
}

/// A session in one room, however it is carried.
enum Session {
    WebSocket { client: Box<Client>, joined: Value },
}

impl Session {
    async fn open(transport: Transport, address: SocketAddr, room: &str, since: Option<&Position>) -> Self {
        match transport {
            Transport::WebSocket => {
                let mut client = Box::new(Client::connect(address).await);
                let mut fields = json!({"room": room});
                if let Some(since) = since {
                    fields["since"] = json!(since.to_string());
                }
                let joined = client.join_with(fields).await;
                Self::WebSocket { client, joined }
            }
        }
    }

    /// How it is listed in the presence.
    fn user(&self) -> String {
        match self {
            Self::WebSocket { client, .. } => client.session(),
        }
    }

    fn joined(&self) -> &Value {
        match self {
            Self::WebSocket { joined, .. } => joined,
        }
    }

    async fn message(&mut self) -> Value {
        match self {
            Self::WebSocket { client, .. } => client.message().await,
        }
    }

    /// What it is told when it is removed from the room.
    async fn left(&mut self) -> Value {
        match self {
            Self::WebSocket { client, .. } => client.take("left").await.json,
        }
    }

    /// Publishes, reads, lists and kicks, each at the next node; returns the place to which it has come.
    async fn one_hop(
        mut self,
        (cluster, hop, is_last): (&Cluster, usize, bool),
        room: &str,
        published: &mut Vec<Published>,
        (tally, log): (&mut Tally, &mut Vec<Seen>),
    ) -> Option<Position> {
        let mut node = hop;
        let mut next = || {
            node += 1;
            cluster.address(node)
        };
        let place = |value: &Value| value.as_str().and_then(Position::parse);
        let joined = self.joined().clone();
        tally.count("resume", hop == 0 || joined["resumed"] == true, &joined);
        log.push(Seen::Joined { at: place(&joined["cursor"])?, gap: joined["gap"].is_object() });
        // Half while it is there, half for the next session to be given as missed.
        for half in 0..if is_last { 1 } else { 2 } {
            let first = published.len() as u64;
            for id in first..first + PER_HOP {
                let reply = http::post(next(), &format!("/v1/rooms/{room}"), &json!({"n": id})).send().await;
                tally.count("publish", reply.status == 200, &reply);
                published.push(Published { room: room.to_owned(), id, at: place(&reply.json()["cursor"])? });
            }
            let due = if half == 0 { missed_before(hop) + PER_HOP } else { 0 };
            for _ in 0..due {
                let message = self.message().await;
                log.push(Seen::Message { at: place(&message["cursor"])?, id: message["data"]["n"].as_u64()? });
            }
        }
        let at =
            log.iter().rev().find_map(|seen| if let Seen::Message { at, .. } = seen { Some(at.clone()) } else { None });
        let history = http::get(next(), &format!("/v1/rooms/{room}/history?limit=5")).send().await;
        let newest = history.json()["messages"][4]["data"]["n"].as_u64();
        tally.count("history", newest == published.last().map(|last| last.id), &history);
        let presence = http::get(next(), &format!("/v1/rooms/{room}/presence")).send().await;
        tally.count("presence", lists(&presence, &self.user()), &presence);
        let kick = http::delete(next(), &format!("/v1/rooms/{room}/members/{}", self.user())).send().await;
        let left = self.left().await;
        tally.count("kick", kick.status == 204 && left["reason"] == "kicked", &left);
        at
    }
}

/// What the session before this one did not live to see.
fn missed_before(hop: usize) -> u64 {
    if hop == 0 { 0 } else { PER_HOP }
}

fn lists(presence: &Reply, user: &str) -> bool {
    let json = presence.json();
    json["members"].as_array().is_some_and(|members| members.iter().any(|member| member["user"] == user))
}
