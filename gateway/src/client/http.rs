//! One HTTP/1.1 connection to a gateway, opened when it is needed and again when it broke. `publish` and `health` use it.
//! Plain TCP only; answers are bounded in size and time.

use super::{Failure, server::Server};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, StatusCode,
    client::conn::http1::{SendRequest, handshake},
    header::{HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::{net::TcpStream, time::timeout};

/// The largest answer that is read; the ones these commands ask for have some hundred bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// A connection, or the place of one.
pub(super) struct Http {
    server: Server,
    patience: Duration,
    open: Option<SendRequest<Full<Bytes>>>,
}

impl Http {
    /// Nothing is opened yet. `patience` bounds each request with everything it takes, connecting included.
    pub(super) fn new(server: Server, patience: Duration) -> Self {
        Self { server, patience, open: None }
    }

    /// Sends a request that may safely arrive twice: on a connection that was used before and broke, it is sent again on
    /// a new one.
    pub(super) async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        let authority = &self.server.authority;
        let host = HeaderValue::try_from(authority).map_err(|_| Failure::refused("the address is no host name"))?;
        request.headers_mut().insert(HOST, host);
        let late = format!("no answer from {authority} within {} s", self.patience.as_secs());
        let patience = self.patience;
        timeout(patience, self.attempt(request)).await.map_err(|_| Failure::refused(late))?
    }

    async fn attempt(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        if let Some(mut sender) = self.open.take()
            && let Ok(answer) = exchange(&mut sender, request.clone()).await
        {
            self.open = Some(sender);
            return Ok(answer);
        }
        let authority = &self.server.authority;
        let stream = TcpStream::connect(authority.as_str()).await;
        let stream =
            stream.map_err(|error| Failure::refused(format_args!("cannot connect to {authority}: {error}")))?;
        let broken = |error: String| Failure::refused(format_args!("{authority} does not answer HTTP: {error}"));
        // A request is one small write and its answer is waited for: Nagle's algorithm would only delay it.
        stream.set_nodelay(true).map_err(|error| broken(error.to_string()))?;
        let (mut sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|error| broken(error.to_string()))?;
        tokio::spawn(connection);
        let answer = exchange(&mut sender, request).await.map_err(broken)?;
        self.open = Some(sender);
        Ok(answer)
    }
}

async fn exchange(sender: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Result<Answer, String> {
    sender.ready().await.map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
    Ok(Answer { status, body: body.to_bytes() })
}
