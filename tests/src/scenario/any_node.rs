//! R14: every request goes to another node than the one before: resumes over every transport, polls, commands for
//! sessions of other nodes, history, presence, publishes, kicks. All are served as if there were one node.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::measure::check_history;
use super::outcome::{Outcome, Promise};
use super::progress::print_line;
use super::settings::RunSettings;
use crate::cluster::Cluster;
use crate::crowd::KEEP_ALL;
use crate::history::{Cursor, MemberLog, Published, Seen};
use crate::http::{self, Reply};
use crate::member::Report;
use crate::transport::{RoomRequest, Transport, TransportClient, poll};

/// How many messages are published between two hops.
const PER_HOP: u64 = 5;

/// The number of replies that were as expected, and of others.
#[derive(Default)]
struct Counters {
    served: u32,
    refused: u32,
}

/// A client that goes from node to node and stays in the same room.
struct Journey<'a> {
    cluster: &'a Cluster,
    room: String,
    /// The index of the node that got the last request.
    node: usize,
    since: Option<String>,
    log: Vec<Seen>,
    published: &'a mut Vec<Published>,
    counters: &'a mut Counters,
}

pub(super) async fn run(settings: RunSettings) -> Outcome {
    let hops = settings.pick(200, 8);
    let cluster = Cluster::over_redis(3).config(KEEP_ALL).start().await;
    let (mut counters, mut published, mut reports) = (Counters::default(), Vec::new(), Vec::new());
    let mut routes: Vec<(&str, Vec<Transport>)> =
        Transport::ALL.iter().map(|transport| (transport.name(), vec![*transport])).collect();
    routes.push(("another each time", Transport::walk()));
    for (name, transports) in routes {
        let room = format!("hops:{}", name.replace(' ', "-"));
        let mut journey = Journey {
            cluster: &cluster,
            room: room.clone(),
            node: 0,
            since: None,
            log: Vec::new(),
            published: &mut published,
            counters: &mut counters,
        };
        // The walk takes one hop for each pair of transports.
        let hops = hops.max(transports.len());
        for hop in 0..hops {
            let transport = transports[hop % transports.len()];
            // The last hop receives what is left from the one before, and publishes nothing for a next one.
            if journey.hop(transport, hop == 0, hop + 1 == hops).await.is_none() {
                journey.counters.count("a hop", false, (transport, hop));
            }
        }
        let log = MemberLog { name: name.to_owned(), rooms: [(room, journey.log)].into() };
        reports.push(Report { log, ..Report::default() });
    }
    let percent = 100.0 * f64::from(counters.served) / f64::from(counters.served + counters.refused).max(1.0);
    Outcome::new(Promise::NoLoss, check_history(&published, &mut reports))
        .at_least(&format!("served % of {}", counters.served + counters.refused), percent, 100.0)
        .note(format!("transports {:?}", Transport::ALL))
}

impl Counters {
    /// Counts a reply, and prints one that is not as expected.
    fn count(&mut self, what: &str, is_right: bool, reply: impl std::fmt::Debug) {
        if is_right {
            self.served += 1;
        } else {
            self.refused += 1;
            print_line(&format!("  {what}: {reply:?}"));
        }
    }
}

impl Journey<'_> {
    /// The address of the next node.
    fn next(&mut self) -> SocketAddr {
        self.node += 1;
        self.cluster.address(self.node)
    }

    /// Resumes, publishes, receives, asks for history and presence, and leaves, each at the next node. Returns `None` if a
    /// reply lacks a field.
    async fn hop(&mut self, transport: Transport, is_first: bool, is_last: bool) -> Option<()> {
        let mut request = RoomRequest::of(&[&self.room]);
        request.since.clone_from(&self.since);
        let mut client = TransportClient::open(self.next(), transport, &request).await;
        // The last hop published messages after its client had stopped reading.
        let missed = if is_first { 0 } else { PER_HOP };
        let joined = client.take("joined").await.json;
        self.counters.count("resume", is_first || joined["resumed"] == true, &joined);
        self.log.push(Seen::Joined { at: cursor(&joined["cursor"])?, gap: joined["gap"].is_object() });
        self.publish().await?;
        for _ in 0..missed + PER_HOP {
            let message = client.message().await;
            self.log.push(Seen::Message { at: cursor(&message["cursor"])?, id: message["data"]["n"].as_u64()? });
        }
        self.since = Some(client.cursor());
        if !is_last {
            self.publish().await?;
        }
        let history = http::get(self.next(), &format!("/v1/rooms/{}/history?limit=5", self.room)).send().await;
        let newest = history.json()["messages"][4]["data"]["n"].as_u64();
        self.counters.count("history", newest == self.published.last().map(|last| last.id), &history);
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
            self.counters.count("publish", reply.status == 200, &reply);
            self.published.push(Published { room: self.room.clone(), id, at: cursor(&reply.json()["cursor"])? });
        }
        Some(())
    }

    /// Posts commands for a session of another node: a single one, and an array.
    async fn command(&mut self, client: &mut TransportClient) {
        let side = format!("{}:side", self.room);
        let joined = client.ask_at(self.next(), json!({"type": "join", "room": side})).await;
        self.counters.count("join by POST", joined["type"] == "joined" && joined["room"] == *side, &joined);
        let commands = json!([{"type": "publish", "room": side, "data": 1}, {"type": "leave", "room": side}]);
        let replies = client.command(self.next(), &commands).await;
        let json = replies.json();
        let is_right = replies.status == 200 && json[0]["type"] == "published" && json[1]["type"] == "left";
        self.counters.count("commands by POST", is_right, &replies);
    }

    /// Checks that presence lists the client, then kicks it.
    async fn leave(&mut self, mut client: TransportClient) {
        let user = client.session();
        let presence = http::get(self.next(), &format!("/v1/rooms/{}/presence", self.room)).send().await;
        self.counters.count("presence", lists(&presence, &user), &presence);
        let kick = http::delete(self.next(), &format!("/v1/rooms/{}/members/{user}", self.room)).send().await;
        // The `left` of the side room may come first.
        let left = loop {
            let left = client.take("left").await.json;
            if left["room"] == *self.room {
                break left;
            }
        };
        self.counters.count("kick", kick.status == 204 && left["reason"] == "kicked", &left);
    }

    /// Sends the same poll, with the session of the first response, to every node; all have the same messages.
    async fn poll(&mut self, client: &mut TransportClient, due: u64) {
        let session = client.poller().session().unwrap_or_default().to_owned();
        let since = self.since.clone().unwrap_or_default();
        for _ in 0..self.cluster.nodes.len() {
            let query = format!("wait=0&session={session}");
            let request = RoomRequest::of(&[&self.room]).since(since.as_str()).with(&query);
            let reply = poll::get(self.next(), &request).send().await;
            let is_right = reply.status == 200 && poll::served(&reply).messages().count() as u64 == due;
            self.counters.count("poll", is_right, &reply);
        }
    }
}

fn cursor(value: &Value) -> Option<Cursor> {
    value.as_str().and_then(Cursor::parse)
}

fn lists(presence: &Reply, user: &str) -> bool {
    let json = presence.json();
    json["members"].as_array().is_some_and(|members| members.iter().any(|member| member["user"] == user))
}
