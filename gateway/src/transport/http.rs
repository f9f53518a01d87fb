//! One client socket as HTTP/1.1: the limits of a request's head, the checks that every request passes whatever it asks
//! for, and the way to a transport or to the HTTP API. A WebSocket leaves hyper behind, and with it hyper's buffers.

use super::{door::Door, ws};
use crate::{
    error::{ErrorCode, Refusal},
    problem::{self, problem},
    shard::Shard,
};
use axum::{Router, body::Body};
use hyper::{
    Method, Request, Response, StatusCode, Version,
    body::Incoming,
    header::{self, HeaderMap, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
    upgrade::Upgraded,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, net::IpAddr, rc::Rc, time::Duration};
use tokio::net::TcpStream;
use tower::ServiceExt as _;

/// Time for a request's head to come in, and for an idle connection to ask again: nginx keeps one for 4 s.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// Time for a request's body to come in and for its answer, which the broker gives within a second.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// Bytes and fields of a request's head.
const HEAD_BYTES: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
const SUBPROTOCOL: &str = "fanfare.v1";
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Serves a socket until a transport has taken it over or it ends.
pub(crate) async fn serve(shard: Rc<Shard>, router: Router, socket: TcpStream, peer: IpAddr) {
    let service = service_fn(move |request| {
        let (shard, router) = (Rc::clone(&shard), router.clone());
        async move {
            let _counted = shard.count_request();
            Ok::<_, Infallible>(answer(&shard, router, peer, request).await)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    if let Err(why) = connection.await {
        tracing::debug!(%why, "a connection ended with a fault");
    }
}

async fn answer(shard: &Rc<Shard>, router: Router, peer: IpAddr, mut request: Request<Incoming>) -> Response<Body> {
    let node = &shard.node;
    let text = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let origin = request.headers().get(header::ORIGIN).cloned();
    if let Some(origin) = &origin {
        let allowed = origin.to_str().is_ok_and(|origin| node.origins.allows(origin, text(header::HOST)));
        if !allowed {
            node.metrics.refused_origins.inc();
            return problem(&Refusal::new(ErrorCode::Forbidden, "pages of this origin may not use this gateway"));
        }
    }
    // A proxy may append a line of its own: all of them count, in order.
    let forwarded = request.headers().get_all(FORWARDED_FOR).iter().filter_map(|line| line.to_str().ok());
    let client = node.peers.client(peer, Some(&forwarded.collect::<Vec<_>>().join(",")));
    let mut response = match Door::of(request.uri()) {
        _ if request.method() == Method::OPTIONS && origin.is_some() => problem::preflight(),
        Some(_) if request.method() != Method::GET => problem::method_not_allowed("GET"),
        Some(Ok(_)) if request.version() != Version::HTTP_11 => {
            problem(&Refusal::bad_request("WebSocket needs HTTP/1.1"))
        }
        Some(Ok(door)) => match accept(shard, client, request.headers()) {
            Ok((response, seat)) => {
                let upgraded = hyper::upgrade::on(&mut request);
                tokio::task::spawn_local(open(Rc::clone(shard), upgraded, door, seat));
                response
            }
            Err(refusal) => problem(&refusal),
        },
        Some(Err(refusal)) => problem(&refusal),
        None => match tokio::time::timeout(REQUEST_TIME, router.oneshot(request.map(Body::new))).await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => problem::too_slow(),
        },
    };
    if let Some(origin) = origin {
        problem::allow_origin(response.headers_mut(), origin);
    }
    if node.drain.is_draining() {
        response.headers_mut().entry(header::CONNECTION).or_insert(HeaderValue::from_static("close"));
    }
    response
}

/// The handshake of RFC 6455 section 4.2, and whether there is room for one more session.
fn accept(
    shard: &Shard,
    client: IpAddr,
    headers: &HeaderMap,
) -> Result<(Response<Body>, Option<crate::auth::Seat>), Refusal> {
    if shard.node.drain.is_draining() {
        return Err(Refusal::new(ErrorCode::Draining, "this node takes no new sessions").retry_after(1000));
    }
    let has = |name: HeaderName, token: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    if !has(header::UPGRADE, "websocket") || !has(header::CONNECTION, "upgrade") {
        return Err(Refusal::bad_request("this path is for WebSocket: ask for an upgrade"));
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refusal::bad_request("Sec-WebSocket-Version is not 13"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24);
    let key = key.ok_or_else(|| Refusal::bad_request("Sec-WebSocket-Key has 24 characters"))?;
    let seat = shard.node.peers.seat(client).map_err(|()| {
        shard.node.metrics.rate_limited_connections.inc();
        Refusal::new(ErrorCode::RateLimited, "too many connections from this address").retry_after(10_000)
    })?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = response.headers_mut();
    out.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    out.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&ws::accept_key(key.as_bytes())) {
        out.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if has(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        out.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    Ok((response, seat))
}

/// Takes the socket out of hyper and makes a session of it. The session's own task is a fresh, small one.
async fn open(shard: Rc<Shard>, upgraded: hyper::upgrade::OnUpgrade, door: Door, seat: Option<crate::auth::Seat>) {
    let Ok(upgraded) = upgraded.await else { return };
    let Ok(parts) = Upgraded::downcast::<TokioIo<TcpStream>>(upgraded) else { return };
    let socket = Rc::new(parts.io.into_inner());
    let who = shard.open(Rc::clone(&socket), seat);
    match door.joins() {
        Ok(joins) => joins.into_iter().for_each(|(room, options)| shard.join_by_url(who, room, options)),
        Err(refusal) => shard.refuse_url(who, refusal),
    }
    let reader = ws::Reader::new(shard.node.limits.message_bytes);
    tokio::task::spawn_local(ws::read(shard, who, socket, reader, parts.read_buf));
}
