//! R14: every request goes to another node than the one before: resumes over every transport, polls, commands of sessions
//! that live elsewhere, history, presence, publishes, kicks. All are served as if there were one node.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{Outcome, Promise, RunSettings, judge, say};
use crate::cluster::Cluster;
use crate::crowd::KEEP_ALL;
use crate::history::{MemberLog, Position, Published, Seen};
use crate::http::{self, Reply};
use crate::member::Report;
use crate::transport::{RoomRequest, Transport, TransportClient, poll};

/// Publications between two hops.
const PER_HOP: u64 = 5;

/// Requests that were served, and those that were not.
#[derive(Default)]
struct Tally {
    served: u32,
    refused: u32,
}

/// A client on its way from node to node, always in the same room.
struct Journey<'a> {
    cluster: &'a Cluster,
    room: String,
    /// The node of the next request.
    node: usize,
    since: Option<String>,
    log: Vec<Seen>,
    published: &'a mut Vec<Published>,
    tally: &'a mut Tally,
}

pub(super) async fn run(to: RunSettings) -> Outcome {
    let hops = to.pick(200, 8);
    let cluster = Cluster::over_redis(3).config(KEEP_ALL).start().await;
    let (mut tally, mut published, mut reports) = (Tally::default(), Vec::new(), Vec::new());
    let mut routes: Vec<(&str, Vec<Transport>)> =
        Transport::ALL.iter().map(|transport| (transport.name(), vec![*transport])).collect();
    let walk = Transport::walk();
    routes.push(("another each time", walk));
    for (name, transports) in routes {
        let room = format!("hops:{}", name.replace(' ', "-"));
        let mut journey = Journey {
            cluster: &cluster,
            room: room.clone(),
            node: 0,
            since: None,
            log: Vec::new(),
            published: &mut published,
            tally: &mut tally,
        };
        // Every pair of transports is one step of the walk.
        let hops = hops.max(transports.len());
        for hop in 0..hops {
            let transport = transports[hop % transports.len()];
            // The last one reads what the others before it did not, and leaves nothing behind.
            if journey.hop(transport, hop == 0, hop + 1 == hops).await.is_none() {
                journey.tally.count("a hop", false, (transport, hop));
            }
        }
        let log = MemberLog { name: name.to_owned(), rooms: [(room, journey.log)].into() };
        reports.push(Report { log, ..Report::default() });
    }
    let percent = 100.0 * f64::from(tally.served) / f64::from(tally.served + tally.refused).max(1.0);
    Outcome::new(Promise::Clean, judge(&published, &mut reports))
        .at_least(&format!("served % of {}", tally.served + tally.refused), percent, 100.0)
        .note(format!("transports {:?}", Transport::ALL))
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

impl Journey<'_> {
    /// The next node.
    fn next(&mut self) -> SocketAddr {
        self.node += 1;
        self.cluster.address(self.node)
    }

    /// Resumes, publishes, reads, lists and leaves, each at the next node; nothing if an answer had not what it must.
    async fn hop(&mut self, transport: Transport, is_first: bool, is_last: bool) -> Option<()> {
        let mut request = RoomRequest::of(&[&self.room]);
        request.since.clone_from(&self.since);
        let mut client = TransportClient::open(self.next(), transport, &request).await;
        // What the session before this one did not live to see; a poll is answered when there is something.
        let missed = if is_first { 0 } else { PER_HOP };
        let joined = client.take("joined").await.json;
        self.tally.count("resume", is_first || joined["resumed"] == true, &joined);
        self.log.push(Seen::Joined { at: place(&joined["cursor"])?, gap: joined["gap"].is_object() });
        self.publish().await?;
        for _ in 0..missed + PER_HOP {
            let message = client.message().await;
            self.log.push(Seen::Message { at: place(&message["cursor"])?, id: message["data"]["n"].as_u64()? });
        }
        self.since = Some(client.cursor());
        if !is_last {
            self.publish().await?;
        }
        let history = http::get(self.next(), &format!("/v1/rooms/{}/history?limit=5", self.room)).send().await;
        let newest = history.json()["messages"][4]["data"]["n"].as_u64();
        self.tally.count("history", newest == self.published.last().map(|last| last.id), &history);
        match transport {
            Transport::WebSocket => self.leave(client).await,
            Transport::Sse | Transport::Stream => {
                self.command(&mut client).await;
                self.leave(client).await;
            }
            Transport::LongPoll | Transport::ShortPoll => {
                self.poll(&mut client, if is_last { 0 } else { PER_HOP }).await;
            }
        }
        Some(())
    }

    async fn publish(&mut self) -> Option<()> {
        let first = self.published.len() as u64;
        for id in first..first + PER_HOP {
            let reply = http::post(self.next(), &format!("/v1/rooms/{}", self.room), &json!({"n": id})).send().await;
            self.tally.count("publish", reply.status == 200, &reply);
            self.published.push(Published { room: self.room.clone(), id, at: place(&reply.json()["cursor"])? });
        }
        Some(())
    }

    /// Commands of a session that lives at another node: one by one, and as an array.
    async fn command(&mut self, client: &mut TransportClient) {
        let side = format!("{}:side", self.room);
        let joined = client.ask_at(self.next(), json!({"type": "join", "room": side})).await;
        self.tally.count("join by POST", joined["type"] == "joined" && joined["room"] == *side, &joined);
        let commands = json!([{"type": "publish", "room": side, "data": 1}, {"type": "leave", "room": side}]);
        let replies = client.command(self.next(), &commands).await;
        let json = replies.json();
        let is_right = replies.status == 200 && json[0]["type"] == "published" && json[1]["type"] == "left";
        self.tally.count("commands by POST", is_right, &replies);
    }

    /// Is listed, and is kicked.
    async fn leave(&mut self, mut client: TransportClient) {
        let user = client.session();
        let presence = http::get(self.next(), &format!("/v1/rooms/{}/presence", self.room)).send().await;
        self.tally.count("presence", lists(&presence, &user), &presence);
        let kick = http::delete(self.next(), &format!("/v1/rooms/{}/members/{user}", self.room)).send().await;
        // The side room's `left` may wait before it.
        let left = loop {
            let left = client.take("left").await.json;
            if left["room"] == *self.room {
                break left;
            }
        };
        self.tally.count("kick", kick.status == 204 && left["reason"] == "kicked", &left);
    }

    /// The same poll at every node, with the session of the first answer: all have the same to say.
    async fn poll(&mut self, client: &mut TransportClient, due: u64) {
        let session = client.poller().session().unwrap_or_default().to_owned();
        let since = self.since.clone().unwrap_or_default();
        for _ in 0..self.cluster.nodes.len() {
            let request =
                RoomRequest::of(&[&self.room]).since(since.as_str()).with(&format!("wait=0&session={session}"));
            let reply = poll::get(self.next(), &request).send().await;
            let is_right = reply.status == 200 && poll::served(&reply).messages().count() as u64 == due;
            self.tally.count("poll", is_right, &reply);
        }
    }
}

fn place(value: &Value) -> Option<Position> {
    value.as_str().and_then(Position::parse)
}

fn lists(presence: &Reply, user: &str) -> bool {
    let json = presence.json();
    json["members"].as_array().is_some_and(|members| members.iter().any(|member| member["user"] == user))
}
