//! What every request has to pass before its path is looked at, and what its handler knows from there on: whether a page
//! of its origin may ask, who the client is, and what becomes of the connection. Called by `http`; the transports read it.

use crate::{
    api,
    http::{Finish, check_host},
    node::Node,
    protocol::error::{ErrorCode, Refusal},
    shard::Shard,
};
use hyper::{
    Request, Version,
    body::Incoming,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use std::{net::IpAddr, rc::Rc, sync::Arc, time::Instant};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// One request and the response to it, as far as they are alike on all paths.
pub(super) struct Exchange {
    /// The client's address, through trusted proxies.
    pub(super) client: IpAddr,
    /// What every response gets.
    pub(super) finish: Finish,
    /// The connection may carry another request after this one.
    pub(super) is_kept: bool,
    /// A drain waits as long as this lives.
    pub(super) counted: Rc<()>,
}

impl Exchange {
    /// Refuses requests without a valid `Host`, and pages whose origin may not use this gateway.
    pub(super) fn begin(shard: &Shard, peer: IpAddr, request: &Request<Incoming>) -> Result<Self, Refusal> {
        let (node, headers) = (&shard.node, request.headers());
        check_host(request.version(), headers)?;
        let origin = match headers.get(header::ORIGIN) {
            // These files get their own header for pages of all origins.
            Some(_) if api::is_for_every_origin(request.uri().path()) => None,
            Some(origin) => Some(allowed(node, origin, headers)?),
            None => None,
        };
        // A proxy may append a line of its own, so all lines count, in their order.
        let forwarded = headers.get_all(FORWARDED_FOR).iter().filter_map(|line| line.to_str().ok());
        let forwarded = forwarded.collect::<Vec<_>>().join(",");
        if !forwarded.is_empty() || !peer.to_canonical().is_loopback() {
            node.drain.note_proxy();
        }
        Ok(Self {
            client: node.peers.client(peer, Some(&forwarded)),
            finish: Finish { origin, drain: Arc::clone(&node.drain) },
            is_kept: request.version() == Version::HTTP_11 && !has_token(headers, &header::CONNECTION, "close"),
            counted: Rc::clone(&shard.requests),
        })
    }
}

fn allowed(node: &Node, origin: &HeaderValue, headers: &HeaderMap) -> Result<HeaderValue, Refusal> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let text = origin.to_str().unwrap_or_default();
    if node.origins.allows(text, host) {
        return Ok(origin.clone());
    }
    node.metrics.refused_origins.inc();
    if let Some(advice) = node.origins.advise(text, Instant::now()) {
        tracing::warn!("{advice}");
    }
    Err(Refusal::new(
        ErrorCode::Forbidden,
        "pages of this origin may not use this gateway; its operator can allow them: --origin, FANFARE_ORIGINS, or \
         origins under [auth]",
    ))
}

/// Whether a header that is a list of tokens has this one (RFC 9110 section 5.6.1).
pub(super) fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
}
