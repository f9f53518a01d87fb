//! A poll that has nothing to say yet. It holds its socket, a small task and a watch on each of its rooms; its
//! connection has left hyper, and goes back there after the answer. Called by `http`.

use super::{
    answer::{PollResult, not_modified},
    look::Poll,
};
use crate::{
    http::{Finish, problem, response_head},
    node::Node,
    policy::peer::ConnectionPermit,
    protocol::error::Refusal,
    random::random_below,
    transport::exchange::Exchange,
};
use axum::body::Body;
use bytes::Buf as _;
use fanfare_broker::BrokerError;
use http_body_util::BodyExt as _;
use hyper::{
    Response, StatusCode,
    body::Body as _,
    header::{self, HeaderValue},
};
use std::{future::poll_fn, rc::Rc, task::Poll as Progress, time::Duration};
use tokio::{
    io::{AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};

/// How long a poll that was woken by a message waits for more of them, so that a burst is one answer.
const LINGER: Duration = Duration::from_millis(15);

/// What becomes of a poll.
pub(in crate::transport) enum Prepared {
    Response(Response<Body>),
    /// It has nothing to say yet and waits.
    Wait(Box<Ready>),
}

/// A poll that is to wait, and what its response needs.
pub(in crate::transport) struct Ready {
    poll: Poll,
    finish: Finish,
    /// The connection may carry another request after this one.
    is_kept: bool,
    /// See [`Exchange::counted`].
    _counted: Rc<()>,
    _permit: Option<ConnectionPermit>,
}

/// Answers a poll at once if there is something to say or it does not want to wait. It is refused if a room cannot be
/// read, the session was kicked, or the client's address has as many connections as it may.
pub(in crate::transport) async fn prepare(mut poll: Poll, exchange: Exchange) -> Result<Prepared, Refusal> {
    poll.renew_leases()?;
    if let Some(why) = poll.away() {
        return Err(unavailable(why));
    }
    let found = poll.collect().await?;
    let node = &poll.shard.node;
    if found.is_news() || poll.wait.is_zero() || node.drain.is_draining() {
        return Ok(Prepared::Response(answer(&poll, found)));
    }
    let permit = node.permit_connection(exchange.client)?;
    let Exchange { finish, is_kept, counted, .. } = exchange;
    Ok(Prepared::Wait(Box::new(Ready { poll, finish, is_kept, _counted: counted, _permit: permit })))
}

fn answer(poll: &Poll, found: PollResult) -> Response<Body> {
    let metrics = &poll.shard.node.metrics;
    metrics.delivered_poll.inc_by(found.count as u64);
    poll.renew_short_leases(found.next_ms);
    if poll.is_unmodified(&found) {
        metrics.polls_unmodified.inc();
        return not_modified(&found);
    }
    let counter = if found.count > 0 { &metrics.polls_with_messages } else { &metrics.polls_empty };
    counter.inc();
    let response = found.into_response();
    metrics.delivered_bytes.inc_by(response.body().size_hint().exact().unwrap_or(0));
    response
}

impl Ready {
    /// Waits and responds; gives the socket back if another request may come over it, which needs `may_return` too.
    pub(in crate::transport) fn open(
        mut self: Box<Self>,
        socket: TcpStream,
        may_return: bool,
    ) -> impl Future<Output = Option<TcpStream>> {
        self.is_kept &= may_return;
        self.wait(socket)
    }

    /// This future lives as long as the poll waits, so it is kept small: what it needs for a moment only is boxed, and
    /// a test bounds its size.
    async fn wait(mut self: Box<Self>, socket: TcpStream) -> Option<TcpStream> {
        self.node().metrics.polls_waiting.inc();
        // Up to a tenth shorter, so that polls of one moment do not end, and begin again, in one moment.
        let mut deadline = Instant::now() + self.poll.wait - random_up_to(self.poll.wait / 10);
        let mut is_draining = false;
        let response = loop {
            let renew_at = self.poll.renew_at.unwrap_or(deadline);
            let is_time_up = tokio::select! {
                () = self.poll.wake.notified() => false,
                () = sleep_until(deadline.min(renew_at)) => {
                    if Instant::now() < deadline {
                        let _ = self.poll.renew_leases(); // a kick wakes the poll
                        continue;
                    }
                    true
                }
                () = gone(&socket) => break None,
            };
            if !is_time_up && !is_draining && self.node().drain.is_draining() {
                // The poll ends early. The polls of this shard end one after the other, as its sessions do, so that the
                // other nodes do not get all of them in one moment.
                is_draining = true;
                deadline = deadline.min(Instant::now() + random_up_to(self.poll.shard.poll_spread()));
            } else if let Some(response) = Box::pin(self.look(is_time_up)).await {
                break Some(response);
            }
            // Otherwise it was woken by something that is not for it, or that an earlier look has taken.
        };
        self.node().metrics.polls_waiting.dec();
        Box::pin(self.write(socket, response?)).await
    }

    fn node(&self) -> &Node {
        &self.poll.shard.node
    }

    /// Looks again, since the time is up, or since a message has come or the backplane or this node has changed; `None`
    /// if there is still nothing to say.
    async fn look(&mut self, is_time_up: bool) -> Option<Response<Body>> {
        if !is_time_up {
            if let Some(why) = self.poll.away() {
                return Some(problem(&unavailable(why)));
            }
            if let Err(kicked) = self.poll.admit() {
                return Some(problem(&kicked));
            }
            tokio::time::sleep(LINGER).await;
        }
        match self.poll.collect().await {
            Ok(found) if found.is_news() || is_time_up => Some(answer(&self.poll, found)),
            Ok(_) => None,
            Err(refusal) => Some(problem(&refusal)),
        }
    }

    /// Writes the response, as hyper would have done.
    async fn write(self: Box<Self>, mut socket: TcpStream, response: Response<Body>) -> Option<TcpStream> {
        let response = self.finish.response(response);
        let is_kept = self.is_kept && response.headers().get(header::CONNECTION).is_none();
        let (mut parts, body) = response.into_parts();
        // The body is in memory, so this neither waits nor fails.
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        if !is_kept && parts.status != StatusCode::NOT_MODIFIED {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            parts.headers.remove("keep-alive");
        }
        let mut bytes = response_head(&Response::from_parts(parts, ())).chain(body);
        // Like a session with frames in its outbox, the client may be slow, but not take nothing for that long.
        let time_max = Duration::from_millis(self.node().outbox_limits.age_ms.into());
        while bytes.has_remaining() {
            if !matches!(timeout(time_max, socket.write_buf(&mut bytes)).await, Ok(Ok(1..))) {
                return None;
            }
        }
        is_kept.then_some(socket)
    }
}

/// The backplane is away. All polls of all nodes notice that in one moment, so each is to come back after a random 1 to
/// 5 s.
fn unavailable(why: BrokerError) -> Refusal {
    Refusal::from(why).retry_after(1000 + random_below(4000))
}

/// Waits until the client has gone. A client that sends its next request already has not.
async fn gone(socket: &TcpStream) {
    poll_fn(|cx| match socket.poll_peek(cx, &mut ReadBuf::new(&mut [0])) {
        Progress::Ready(Ok(0) | Err(_)) => Progress::Ready(()),
        Progress::Ready(Ok(_)) | Progress::Pending => Progress::Pending,
    })
    .await;
}

fn random_up_to(most: Duration) -> Duration {
    Duration::from_millis(random_below(most.as_millis() as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::{super::look::PollRoom, *};

    #[test]
    fn a_poll_that_waits_costs_a_small_task() {
        fn size_of_future<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
            size_of::<F>()
        }
        let sizes = [size_of_future(Ready::open), size_of::<Ready>(), size_of::<PollRoom>()];
        // 320 bytes in the program. Tests build tokio with more of its features.
        assert!(sizes.into_iter().zip([352, 248, 72]).all(|(size, most)| size <= most), "{sizes:?}");
    }
}
