//! The five transports: one suite for all of them, directly and through both versions of nginx, and tests of what is special
//! about one of them. The suite consists of functions over `TransportClient`, of which `for_each!` makes the tests.

mod alike;
mod commands;
mod draining;
mod gaps;
mod lagging;
mod lease;
mod limits;
mod origins;
mod pace;
mod polls;
mod redis_away;
mod resuming;
mod slow;
mod sse;
mod traces;
mod vectors;

use std::net::SocketAddr;

use fanfare_tests::cluster::Plan;
use fanfare_tests::nginx::{Nginx, Version};
use fanfare_tests::{Cluster, RoomRequest, Target, Transport, TransportClient, http};
use serde_json::Value;

use alike::every_transport_delivers_the_same_bytes;
use commands::posted_commands_arrive_and_their_secret_address_is_never_logged;
use draining::a_drain_loses_nothing_on_any_transport;
use redis_away::while_redis_is_away_streams_stay_and_polls_are_refused;
use resuming::{
    all_see_one_order_and_resumes_lose_and_repeat_nothing, every_transport_resumes_where_any_other_stopped,
};
use slow::an_event_stream_that_is_not_read_is_closed_and_resumes_without_a_loss;
use sse::heads_and_first_bytes_come_at_once;

/// How clients reach a cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry {
    /// At the nodes, in turn.
    Nodes,
    /// Through an nginx before them.
    Nginx(Version),
}

/// A cluster, and how clients reach it.
pub(crate) struct Setup {
    pub(crate) cluster: Cluster,
    pub(crate) target: Target,
    pub(crate) nginx: Option<Nginx>,
}

impl Entry {
    /// Starts the cluster, and nginx if there is one.
    pub(crate) async fn start(self, plan: Plan) -> Setup {
        let cluster = plan.start().await;
        match self {
            Self::Nodes => Setup { target: Target::direct(&cluster), cluster, nginx: None },
            Self::Nginx(version) => {
                let nginx = Nginx::before(&cluster, version).await;
                Setup { target: nginx.target(), cluster, nginx: Some(nginx) }
            }
        }
    }
}

/// A member on each transport, in the order of `Transport::ALL`, dealt to the addresses of the target.
async fn on_all(target: &Target, request: &RoomRequest) -> Vec<TransportClient> {
    let mut clients = Vec::new();
    for (index, transport) in Transport::ALL.into_iter().enumerate() {
        clients.push(TransportClient::join(target.address(index), transport, request).await);
    }
    clients
}

/// Publishes by HTTP and returns the cursor.
async fn publish(address: SocketAddr, room: &str, data: &Value) -> String {
    let path = format!("/v1/rooms/{}", fanfare_tests::transport::encode(room));
    let receipt = http::post(address, &path, data).send().await.expect(200);
    receipt["cursor"].as_str().unwrap_or("-").to_owned()
}

/// The texts of the next messages.
async fn texts(client: &mut TransportClient, count: usize) -> Vec<String> {
    let mut texts = Vec::with_capacity(count);
    for _ in 0..count {
        texts.push(client.take("message").await.text);
    }
    texts
}

const DIRECT: Entry = Entry::Nodes;
const NGINX_1_22: Entry = Entry::Nginx(Version::Old);
const NGINX_NEW: Entry = Entry::Nginx(Version::New);

for_each! {
    direct(DIRECT), nginx_1_22(NGINX_1_22), nginx_new(NGINX_NEW):
    every_transport_delivers_the_same_bytes,
    every_transport_resumes_where_any_other_stopped,
    a_drain_loses_nothing_on_any_transport,
    while_redis_is_away_streams_stay_and_polls_are_refused,
    heads_and_first_bytes_come_at_once,
    an_event_stream_that_is_not_read_is_closed_and_resumes_without_a_loss,
    posted_commands_arrive_and_their_secret_address_is_never_logged,
}

for_each! {
    direct_websocket(DIRECT, Transport::WebSocket),
    direct_sse(DIRECT, Transport::Sse),
    direct_stream(DIRECT, Transport::Stream),
    direct_long_poll(DIRECT, Transport::LongPoll),
    direct_short_poll(DIRECT, Transport::ShortPoll),
    nginx_1_22_websocket(NGINX_1_22, Transport::WebSocket),
    nginx_1_22_sse(NGINX_1_22, Transport::Sse),
    nginx_1_22_stream(NGINX_1_22, Transport::Stream),
    nginx_1_22_long_poll(NGINX_1_22, Transport::LongPoll),
    nginx_1_22_short_poll(NGINX_1_22, Transport::ShortPoll),
    nginx_new_websocket(NGINX_NEW, Transport::WebSocket),
    nginx_new_sse(NGINX_NEW, Transport::Sse),
    nginx_new_stream(NGINX_NEW, Transport::Stream),
    nginx_new_long_poll(NGINX_NEW, Transport::LongPoll),
    nginx_new_short_poll(NGINX_NEW, Transport::ShortPoll):
    all_see_one_order_and_resumes_lose_and_repeat_nothing,
}
