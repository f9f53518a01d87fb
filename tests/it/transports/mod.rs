//! The transports: one suite for all five, direct and through both versions of nginx, and what only one of them
//! can get wrong. A sentence is written once over `TransportClient`; `on_every_transport` makes a test of it for each
//! transport at each place, so that a failure names both.

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

/// Where clients connect.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// At the nodes, in turn.
    Direct,
    /// At an nginx before them.
    Behind(Version),
}

/// A cluster and what stands before it.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) target: Target,
    pub(crate) nginx: Option<Nginx>,
}

impl Place {
    /// Starts the cluster, and nginx if there is one.
    pub(crate) async fn stage(self, plan: Plan) -> Stage {
        let cluster = plan.start().await;
        match self {
            Self::Direct => Stage { target: Target::direct(&cluster), cluster, nginx: None },
            Self::Behind(version) => {
                let nginx = Nginx::before(&cluster, version).await;
                Stage { target: nginx.target(), cluster, nginx: Some(nginx) }
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

/// A metric of a node, summed over its labels.
async fn metric(admin: SocketAddr, name: &str) -> f64 {
    let text = http::get(admin, "/metrics").send().await.text;
    fanfare_tests::prometheus::parse(&text).expect("a valid scrape").sum(name)
}

/// The places by name, for the macros.
const DIRECT: Place = Place::Direct;
const NGINX_1_22: Place = Place::Behind(Version::Old);
const NGINX_NEW: Place = Place::Behind(Version::New);

/// A test of each sentence for each transport.
macro_rules! on_every_transport {
    ($place:ident: $($sentences:tt)*) => {
        on_transport!(websocket, WebSocket, $place, $($sentences)*);
        on_transport!(sse, Sse, $place, $($sentences)*);
        on_transport!(stream, Stream, $place, $($sentences)*);
        on_transport!(long_poll, LongPoll, $place, $($sentences)*);
        on_transport!(short_poll, ShortPoll, $place, $($sentences)*);
    };
}

macro_rules! on_transport {
    ($module:ident, $transport:ident, $place:ident, $($file:ident::$sentence:ident),* $(,)?) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $sentence() {
                    let place = crate::transports::$place;
                    crate::transports::$file::$sentence(place, fanfare_tests::Transport::$transport).await;
                }
            )*
        }
    };
}

/// A test of each sentence that takes all transports at once.
macro_rules! on_all_transports {
    ($place:ident: $($file:ident::$sentence:ident),* $(,)?) => {
        mod all {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $sentence() {
                    crate::transports::$file::$sentence(crate::transports::$place).await;
                }
            )*
        }
    };
}

macro_rules! everywhere {
    ($($module:ident: $place:ident),* $(,)?) => {
        $(
            mod $module {
                on_every_transport! { $place: resuming::all_see_one_order_and_resumes_lose_and_repeat_nothing }
                on_all_transports! { $place:
                    alike::every_transport_brings_the_same_bytes,
                    resuming::every_transport_goes_on_where_any_other_stopped,
                    draining::a_drain_loses_nothing_on_any_transport,
                    redis_away::streams_stay_and_polls_are_told_while_redis_is_away,
                    sse::heads_and_first_bytes_come_at_once,
                    slow::an_event_stream_that_is_not_read_is_closed_and_resumes_without_a_loss,
                    commands::commands_pass_and_their_address_stands_in_no_log,
                }
            }
        )*
    };
}

everywhere! { direct: DIRECT, nginx_1_22: NGINX_1_22, nginx_new: NGINX_NEW }
