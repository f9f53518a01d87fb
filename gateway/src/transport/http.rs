//! One client socket as HTTP/1.1: the limits on a request's head, and the way of each request to a transport or to the
//! HTTP API. Called by `app` for every accepted socket. Sockets of transports leave hyper here (see `detach`); bytes of
//! messages never pass through this file.

use super::{
    detach::{Detach, TrackedIo},
    exchange::Exchange,
    poll::{self, Poll},
    post,
    request::{Transport, TransportRequest},
    stream, ws,
};
use crate::{
    http::{Finish, IDLE_TIME, method_not_allowed, options, preflight, problem, too_slow},
    protocol::error::Refusal,
    shard::Shard,
};
use axum::{Router, body::Body};
use bytes::Bytes;
use hyper::{
    Method, Request, Response, Uri,
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioTimer;
use std::{
    convert::Infallible, future::poll_fn, net::IpAddr, pin::Pin, rc::Rc, sync::Arc, task::Poll as Progress,
    time::Duration,
};
use tokio::net::TcpStream;
use tower::ServiceExt as _;

/// Time for a request's head to come in, and for an idle connection to send the next one.
const HEAD_TIME: Duration = IDLE_TIME;
/// Time for a request of the HTTP API: its body comes in, and the broker replies within a second.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// Bytes and fields of a request's head.
const HEAD_BYTES: usize = 16 << 10;
const HEADERS_MAX: usize = 64;

/// Serves the sockets of one shard as HTTP.
pub(crate) struct HttpServer {
    shard: Rc<Shard>,
    router: Router,
    /// One reference here, and one for each socket that hyper serves now.
    connections: Rc<()>,
}

/// What is to take a socket over.
enum Takeover {
    WebSocket(Box<ws::ReadyWebSocket>),
    Stream(stream::ReadyStream),
    Poll(Box<poll::Ready>),
}

/// What a request comes to.
enum Handled {
    Respond(Response<Body>),
    TakeOver(Takeover),
}

impl HttpServer {
    pub(crate) fn new(shard: Rc<Shard>, router: Router) -> Rc<Self> {
        Rc::new(Self { shard, router, connections: Rc::default() })
    }

    /// Whether hyper serves no socket at present.
    pub(crate) fn is_idle(&self) -> bool {
        Rc::strong_count(&self.connections) == 1
    }

    /// Serves a socket until a transport takes it over or the connection ends. It counts from this call on, and not only
    /// once the future is polled: a shard that ends in between would reset it.
    pub(crate) fn serve(self: Rc<Self>, socket: TcpStream, peer: IpAddr) -> impl Future<Output = ()> {
        let counted = Rc::clone(&self.connections);
        self.serve_counted(socket, peer, counted)
    }

    async fn serve_counted(self: Rc<Self>, socket: TcpStream, peer: IpAddr, counted: Rc<()>) {
        let Some((takeover, socket, read_ahead)) = self.serve_http(socket, peer).await else { return };
        drop(counted);
        let shard = Rc::clone(&self.shard);
        match takeover {
            Takeover::WebSocket(ready) => ready.open(shard, socket, read_ahead),
            Takeover::Stream(ready) => ready.open(shard, socket),
            Takeover::Poll(ready) => {
                // If hyper has read bytes of the next request, they cannot be given back to it: this connection ends with
                // the response. No client that waits for a response before the next request sends them.
                let may_return = read_ahead.is_empty();
                // Even an empty one keeps hyper's buffer of 8 KiB, which the poll must not hold while it waits.
                drop(read_ahead);
                tokio::task::spawn_local(async move {
                    if let Some(socket) = ready.open(socket, may_return).await {
                        self.serve_again(socket, peer);
                    }
                });
            }
        }
    }

    /// Serves a socket that comes back from a poll. A function of its own, since a future cannot contain itself.
    fn serve_again(self: Rc<Self>, socket: TcpStream, peer: IpAddr) {
        tokio::task::spawn_local(self.serve(socket, peer));
    }

    /// Serves requests until one of them asks that its socket is taken over. Then: by what, the socket, and bytes that
    /// have been read beyond that request. `None` when the connection has ended.
    async fn serve_http(self: &Rc<Self>, socket: TcpStream, peer: IpAddr) -> Option<(Takeover, TcpStream, Bytes)> {
        let detach = Rc::new(Detach::new());
        let service = service_fn(|request| {
            let (server, detach) = (Rc::clone(self), Rc::clone(&detach));
            async move {
                match server.handle(request, peer).await {
                    Handled::Respond(response) => Ok::<_, Infallible>(response),
                    Handled::TakeOver(takeover) => detach.hand_over(takeover).await,
                }
            }
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(HEAD_BYTES)
            .max_headers(HEADERS_MAX)
            .serve_connection(TrackedIo::new(socket, Rc::clone(&detach)), service);
        // hyper polls the service inside this poll, so a handler's wish is seen at the end of the same poll.
        let takeover = poll_fn(|cx| {
            let progress = Pin::new(&mut connection).poll(cx);
            match detach.take() {
                Some(takeover) => Progress::Ready(Some(takeover)),
                None => progress.map(|end| {
                    if let Err(why) = end {
                        tracing::debug!(%why, "a connection failed");
                    }
                    None
                }),
            }
        });
        let takeover = takeover.await?;
        let parts = connection.into_parts();
        Some((takeover, parts.io.into_socket(), parts.read_buf))
    }

    /// What all requests have in common: the checks before the path is looked at, CORS, and the form of refusals.
    async fn handle(&self, request: Request<Incoming>, peer: IpAddr) -> Handled {
        let (finish, handled) = match Exchange::begin(&self.shard, peer, &request) {
            Ok(exchange) => (exchange.finish.clone(), self.handle_checked(request, exchange).await),
            Err(refusal) => (Finish { origin: None, drain: Arc::clone(&self.shard.node.drain) }, Err(refusal)),
        };
        match handled {
            Ok(Handled::TakeOver(takeover)) => Handled::TakeOver(takeover),
            Ok(Handled::Respond(response)) => Handled::Respond(finish.response(response)),
            Err(refusal) => Handled::Respond(finish.response(problem(&refusal))),
        }
    }

    /// Responds to OPTIONS, which is alike on all paths; sends every other request on by its path.
    async fn handle_checked(&self, request: Request<Incoming>, exchange: Exchange) -> Result<Handled, Refusal> {
        match (request.method(), &exchange.finish.origin) {
            (&Method::OPTIONS, Some(_)) => Ok(Handled::Respond(preflight(request.headers()))),
            (&Method::OPTIONS, None) if exchange.finish.drain.is_draining() => Err(Refusal::draining()),
            (&Method::OPTIONS, None) => Ok(Handled::Respond(options())),
            _ => self.route(request, exchange).await,
        }
    }

    /// Sends a request to its transport; what asks for none goes to the HTTP API.
    async fn route(&self, request: Request<Incoming>, exchange: Exchange) -> Result<Handled, Refusal> {
        let path = request.uri().path();
        // Two paths take a body: commands of a session that cannot send, and polls that name their rooms in it.
        let secret = post::secret(path).map(str::to_owned);
        if secret.is_some() || path == "/v1/poll" {
            if request.method() != Method::POST {
                return Ok(Handled::Respond(method_not_allowed("POST")));
            }
            let body = request.into_body();
            return match secret {
                Some(secret) => Ok(Handled::Respond(post::respond(&self.shard, &secret, body).await?)),
                None => Self::poll(Poll::of_body(&self.shard, body).await?, exchange).await,
            };
        }
        // All other transports are asked for by a URL alone.
        let Some(asked) = TransportRequest::of(request.uri()) else {
            return Ok(Handled::Respond(self.api(request).await));
        };
        if request.method() != Method::GET {
            return Ok(Handled::Respond(method_not_allowed("GET")));
        }
        let asked = asked?;
        // Once the socket has left hyper, the bytes of a body would be taken for those that follow the request.
        if !request.body().is_end_stream() {
            return Err(Refusal::bad_request("this request takes no body"));
        }
        // Each transport checks what it needs and reserves a connection. What it prepared takes the socket over.
        Ok(Handled::TakeOver(match asked.transport {
            Transport::WebSocket => {
                Takeover::WebSocket(Box::new(ws::prepare(&self.shard.node, &exchange, asked, &request)?))
            }
            Transport::Events | Transport::Lines => {
                match stream::prepare(&self.shard.node, &exchange, &asked, request.headers()) {
                    Ok(ready) => Takeover::Stream(ready),
                    Err(why) => return Ok(Handled::Respond(stream::refuse(&asked, request.headers(), &why))),
                }
            }
            Transport::Poll => {
                let poll = Poll::of_url(&self.shard, &asked, request.headers())?;
                return Self::poll(poll, exchange).await;
            }
        }))
    }

    /// A poll responds at once if it has something to say or does not want to wait; otherwise it takes the socket over.
    async fn poll(poll: Poll, exchange: Exchange) -> Result<Handled, Refusal> {
        Ok(match poll::prepare(poll, exchange).await? {
            poll::Prepared::Response(response) => Handled::Respond(response),
            poll::Prepared::Wait(ready) => Handled::TakeOver(Takeover::Poll(ready)),
        })
    }

    async fn api(&self, mut request: Request<Incoming>) -> Response<Body> {
        keep_plus(request.uri_mut());
        let reply = self.router.clone().oneshot(request.map(Body::new));
        match tokio::time::timeout(REQUEST_TIME, reply).await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => too_slow(),
        }
    }
}

/// A plus in a query is a plus, as in a path and for the transports (RFC 3986 section 2.2). axum decodes queries as HTML
/// forms, where it is a space; room names have pluses and no spaces.
fn keep_plus(uri: &mut Uri) {
    let Some(path) = uri.path_and_query().filter(|path| path.query().is_some_and(|query| query.contains('+'))) else {
        return;
    };
    let query = path.query().unwrap_or_default().replace('+', "%2B");
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = format!("{}?{query}", path.path()).parse().ok();
    if let Ok(kept) = Uri::from_parts(parts) {
        *uri = kept;
    }
}
