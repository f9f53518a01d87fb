//! One client socket as HTTP/1.1: the limits of a request's head, the checks that every request passes whatever it asks
//! for, and the way to a transport or to the HTTP API. What lasts leaves hyper behind, and with it hyper's buffers: the
//! request is read, nothing of its answer is written, and the socket is taken back.

use super::{
    poll::{self, Poll},
    post,
    request::{Transport, TransportRequest},
    stream, ws,
};
use crate::{
    http::{
        finish::Finish,
        head::head,
        problem::{self, problem},
    },
    node::Node,
    policy::peer::ConnectionPermit,
    protocol::error::{ErrorCode, Refusal},
    shard::{CountedRequest, Opening, Shard},
};
use axum::{Router, body::Body};
use bytes::Bytes;
use hyper::{
    Method, Request, Response, StatusCode, Version,
    body::{Body as _, Incoming},
    header::{self, HeaderMap, HeaderName, HeaderValue},
    rt,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::{pending, poll_fn},
    io,
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll as Progress},
    time::Duration,
};
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
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What becomes of a request.
enum Answer {
    Http(Response<Body>),
    /// The socket leaves hyper.
    Leave(Leaving),
}

/// Where a socket goes that leaves hyper.
enum Leaving {
    WebSocket { response: Response<Body>, asked: TransportRequest, seat: Option<ConnectionPermit> },
    Stream(stream::Ready),
    Poll(Box<poll::Parked>),
}

/// The asked through which a socket leaves hyper.
#[derive(Default)]
struct Exit {
    leaving: RefCell<Option<Leaving>>,
    /// The socket did not take what hyper wrote last.
    is_blocked: Cell<bool>,
}

/// Serves a socket until a transport has taken it over or it ends.
pub(crate) async fn serve(shard: Rc<Shard>, router: Router, socket: TcpStream, peer: IpAddr) {
    let exit = Rc::new(Exit::default());
    let (served, routes, way_out) = (Rc::clone(&shard), router.clone(), Rc::clone(&exit));
    let service = service_fn(move |request| {
        let (shard, router, exit) = (Rc::clone(&served), routes.clone(), Rc::clone(&way_out));
        async move {
            let counted = shard.count_request();
            match answer(&shard, router, peer, request, counted).await {
                Answer::Http(response) => Ok::<_, Infallible>(response),
                Answer::Leave(leaving) => exit.leave(leaving).await,
            }
        }
    });
    let socket = TrackedIo { socket: TokioIo::new(socket), exit: Rc::clone(&exit) };
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS_MAX)
        .serve_connection(socket, service);
    let left = poll_fn(|cx| {
        let done = Pin::new(&mut connection).poll(cx);
        match exit.leaving.take() {
            Some(leaving) => Progress::Ready(Some(leaving)),
            None => done.map(|end| {
                if let Err(why) = end {
                    tracing::debug!(%why, "a connection ended with a fault");
                }
                None
            }),
        }
    });
    let Some(leaving) = left.await else { return };
    let parts = connection.into_parts();
    let socket = parts.io.socket.into_inner();
    match leaving {
        Leaving::WebSocket { response, asked, seat } => {
            open(shard, socket, Opening::websocket(head(&response).freeze()), (asked, seat), parts.read_buf);
        }
        Leaving::Stream(ready) => ready.open(shard, socket),
        Leaving::Poll(parked) => {
            // A client that sent more than it may ask at a time is answered, and then has to come again.
            let keep = parts.read_buf.is_empty();
            tokio::task::spawn_local(async move {
                if let Some(socket) = parked.answer(socket, keep).await {
                    again(shard, router, socket, peer);
                }
            });
        }
    }
}

/// Serves a socket that comes back from where it waited. A function of its own, since a future cannot contain itself.
fn again(shard: Rc<Shard>, router: Router, socket: TcpStream, peer: IpAddr) {
    tokio::task::spawn_local(serve(shard, router, socket, peer));
}

impl Exit {
    /// Says where the socket goes; whoever polls the connection takes it from there. Not before the answers to earlier
    /// requests are out: a client may have sent this one before it read them.
    async fn leave<T>(&self, leaving: Leaving) -> T {
        tokio::task::yield_now().await; // hyper writes what it has in between
        poll_fn(|_| if self.is_blocked.get() { Progress::Pending } else { Progress::Ready(()) }).await;
        self.leaving.replace(Some(leaving));
        pending().await
    }
}

/// A socket that remembers whether it took everything.
struct TrackedIo {
    socket: TokioIo<TcpStream>,
    exit: Rc<Exit>,
}

impl TrackedIo {
    fn note<T>(&self, written: Progress<io::Result<T>>) -> Progress<io::Result<T>> {
        self.exit.is_blocked.set(written.is_pending());
        written
    }
}

impl rt::Read for TrackedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: rt::ReadBufCursor<'_>,
    ) -> Progress<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, into)
    }
}

impl rt::Write for TrackedIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Progress<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Progress<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Progress<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Progress<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.note(written)
    }
}

async fn answer(
    shard: &Rc<Shard>,
    router: Router,
    peer: IpAddr,
    request: Request<Incoming>,
    counted: CountedRequest,
) -> Answer {
    let node = &shard.node;
    let text = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let origin = request.headers().get(header::ORIGIN).cloned();
    if let Some(origin) = &origin {
        let allowed = origin.to_str().is_ok_and(|origin| node.origins.allows(origin, text(header::HOST)));
        if !allowed {
            node.metrics.refused_origins.inc();
            let refusal = Refusal::new(ErrorCode::Forbidden, "pages of this origin may not use this gateway");
            return Answer::Http(problem(&refusal));
        }
    }
    // A proxy may append a line of its own: all of them count, in order.
    let forwarded = request.headers().get_all(FORWARDED_FOR).iter().filter_map(|line| line.to_str().ok());
    let client = node.peers.client(peer, Some(&forwarded.collect::<Vec<_>>().join(",")));
    let finish = Finish { origin, node: Arc::clone(&shard.node) };
    if request.method() == Method::OPTIONS && finish.origin.is_some() {
        return Answer::Http(finish.response(problem::preflight()));
    }
    match route(shard, client, request, &finish, counted).await {
        Routed::Answer(answer) => answer,
        Routed::Api(request) => {
            let response = match tokio::time::timeout(REQUEST_TIME, router.oneshot(request.map(Body::new))).await {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(_) => problem::too_slow(),
            };
            Answer::Http(finish.response(response))
        }
    }
}

enum Routed {
    Answer(Answer),
    Api(Request<Incoming>),
}

/// The transports' own paths; everything else is the HTTP API's.
async fn route(
    shard: &Rc<Shard>,
    client: IpAddr,
    request: Request<Incoming>,
    finish: &Finish,
    counted: CountedRequest,
) -> Routed {
    let http = |response| Routed::Answer(Answer::Http(finish.response(response)));
    let path = request.uri().path();
    if let Some(secret) = post::secret(path) {
        if request.method() != Method::POST {
            return http(problem::method_not_allowed("POST"));
        }
        let secret = secret.to_owned();
        return http(post::answer(shard, &secret, request.into_body()).await.unwrap_or_else(|why| problem(&why)));
    }
    if path == "/v1/poll" {
        if request.method() != Method::POST {
            return http(problem::method_not_allowed("POST"));
        }
        let is_kept = keeps_alive(&request);
        return match Poll::of_body(shard, request.into_body()).await {
            Ok(poll) => Routed::Answer(look(poll, client, is_kept, (finish, counted)).await),
            Err(why) => http(problem(&why)),
        };
    }
    let asked = match TransportRequest::of(request.uri()) {
        None => return Routed::Api(request),
        Some(_) if request.method() != Method::GET => return http(problem::method_not_allowed("GET")),
        Some(Err(why)) => return http(problem(&why)),
        // Its bytes would be taken for what follows the request once the socket has left hyper.
        Some(Ok(_)) if !request.body().is_end_stream() => {
            return http(problem(&Refusal::bad_request("this request takes no body")));
        }
        Some(Ok(asked)) => asked,
    };
    let headers = request.headers();
    match asked.carrier {
        Transport::WebSocket if request.version() != Version::HTTP_11 => {
            http(problem(&Refusal::bad_request("WebSocket needs HTTP/1.1")))
        }
        Transport::WebSocket => match accept(&shard.node, client, headers) {
            Ok((response, seat)) => {
                let response = finish.response(response);
                Routed::Answer(Answer::Leave(Leaving::WebSocket { response, asked, seat }))
            }
            Err(why) => http(problem(&why)),
        },
        Transport::Events | Transport::Lines => {
            match stream::prepare(&shard.node, client, &asked, headers.get(LAST_EVENT_ID)) {
                Ok(mut ready) => {
                    ready.response = finish.response(ready.response);
                    Routed::Answer(Answer::Leave(Leaving::Stream(ready)))
                }
                Err(why) => http(stream::refuse(&asked, headers, &why)),
            }
        }
        Transport::Poll => {
            let unchanged = headers.get(header::IF_NONE_MATCH).cloned();
            match Poll::of_url(shard, &asked, unchanged) {
                Ok(poll) => Routed::Answer(look(poll, client, keeps_alive(&request), (finish, counted)).await),
                Err(why) => http(problem(&why)),
            }
        }
    }
}

/// Answers a poll at once if there is something to say or it does not want to wait; else its socket waits outside.
async fn look(mut poll: Poll, client: IpAddr, is_kept: bool, (finish, counted): (&Finish, CountedRequest)) -> Answer {
    if let Some(response) = poll.first_look().await {
        return Answer::Http(finish.response(response));
    }
    match poll::Parked::new(poll, client, is_kept, (finish.clone(), counted)) {
        Ok(parked) => Answer::Leave(Leaving::Poll(Box::new(parked))),
        Err(why) => Answer::Http(finish.response(problem(&why))),
    }
}

fn keeps_alive(request: &Request<Incoming>) -> bool {
    request.version() == Version::HTTP_11 && !has(request.headers(), header::CONNECTION, "close")
}

fn has(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// The handshake of RFC 6455 section 4.2, and whether there is room for one more session.
fn accept(
    node: &Node,
    client: IpAddr,
    headers: &HeaderMap,
) -> Result<(Response<Body>, Option<ConnectionPermit>), Refusal> {
    if node.drain.is_draining() {
        return Err(Refusal::draining());
    }
    if !has(headers, header::UPGRADE, "websocket") || !has(headers, header::CONNECTION, "upgrade") {
        return Err(Refusal::bad_request("this path is for WebSocket: ask for an upgrade"));
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refusal::bad_request("Sec-WebSocket-Version is not 13"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24);
    let key = key.ok_or_else(|| Refusal::bad_request("Sec-WebSocket-Key has 24 characters"))?;
    let seat = node.seat(client)?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = response.headers_mut();
    out.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    out.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&ws::accept_key(key.as_bytes())) {
        out.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if has(headers, header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        out.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    Ok((response, seat))
}

/// Makes a WebSocket's session of a socket. The session's own task is a fresh, small one.
fn open(
    shard: Rc<Shard>,
    socket: TcpStream,
    opening: Opening,
    (asked, seat): (TransportRequest, Option<ConnectionPermit>),
    early: Bytes,
) {
    let socket = Rc::new(socket);
    let who = shard.open(Rc::clone(&socket), seat, opening);
    match asked.joins() {
        Ok(joins) => joins.into_iter().for_each(|(room, options)| shard.join_by_url(who, room, options)),
        Err(refusal) => shard.refuse_url(who, refusal),
    }
    let reader = ws::Reader::new(shard.node.limits.message_bytes);
    tokio::task::spawn_local(ws::read(shard, who, socket, reader, early));
}
