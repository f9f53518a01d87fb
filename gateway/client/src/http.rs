//! HTTP/1.1 to a gateway: requests whose answer is read whole, on one connection that is opened when it is needed and again
//! when it broke (`publish`, `health`, polls), and requests whose body goes on, on a connection of their own (streams). Plain
//! TCP only; everything but the length of such a stream is bounded in size and time.

use super::{FRAME_BYTES_MAX, Failure, server::Server};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    header::{HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use std::time::Duration;
use tokio::{net::TcpStream, time::timeout};

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// What an answer other than 200 says: the problem's code and detail, or whatever a proxy in between wrote.
    pub(super) fn refusal(&self) -> String {
        #[derive(Deserialize)]
        struct Problem {
            code: String,
            detail: String,
        }
        let status = self.status.as_u16();
        match serde_json::from_slice::<Problem>(&self.body) {
            Ok(Problem { code, detail }) => format!("refused with {status} {code}: {detail}"),
            Err(_) => {
                let text: String = String::from_utf8_lossy(&self.body).chars().take(200).collect();
                format!("refused with {status}: {}", text.trim())
            }
        }
    }
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
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        let request = addressed(&self.server, request)?;
        let late = late(&self.server, self.patience);
        let patience = self.patience;
        timeout(patience, self.attempt(request)).await.map_err(|_| late)?
    }

    async fn attempt(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        if let Some(mut sender) = self.open.take()
            && let Ok(answer) = exchange(&mut sender, request.clone()).await
        {
            self.open = Some(sender);
            return Ok(answer);
        }
        let mut sender = connect(&self.server).await?;
        let answer = exchange(&mut sender, request).await.map_err(|error| broken(&self.server, &error))?;
        self.open = Some(sender);
        Ok(answer)
    }
}

/// Sends a request on a connection of its own and gives the answer as soon as its head is there, within `patience`.
pub(super) async fn open(
    server: &Server,
    request: Request<Full<Bytes>>,
    patience: Duration,
) -> Result<Response<Incoming>, Failure> {
    let request = addressed(server, request)?;
    let attempt = async {
        let mut sender = connect(server).await?;
        sender.send_request(request).await.map_err(|error| broken(server, &error.to_string()))
    };
    timeout(patience, attempt).await.map_err(|_| late(server, patience))?
}

/// Reads an answer to its end.
pub(super) async fn whole(answer: Response<Incoming>) -> Result<Answer, String> {
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, FRAME_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
    Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
}

fn addressed(server: &Server, mut request: Request<Full<Bytes>>) -> Result<Request<Full<Bytes>>, Failure> {
    let host = HeaderValue::try_from(&server.authority);
    request.headers_mut().insert(HOST, host.map_err(|_| Failure::refused("the address is no host name"))?);
    Ok(request)
}

async fn connect(server: &Server) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let authority = &server.authority;
    let stream = TcpStream::connect(authority.as_str()).await;
    let stream = stream.map_err(|error| Failure::refused(format_args!("cannot connect to {authority}: {error}")))?;
    // A request is one small write and its answer is waited for: Nagle's algorithm would only delay it.
    stream.set_nodelay(true).map_err(|error| broken(server, &error.to_string()))?;
    let (sender, connection) =
        handshake(TokioIo::new(stream)).await.map_err(|error| broken(server, &error.to_string()))?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn exchange(sender: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Result<Answer, String> {
    sender.ready().await.map_err(|error| error.to_string())?;
    whole(sender.send_request(request).await.map_err(|error| error.to_string())?).await
}

fn broken(server: &Server, error: &str) -> Failure {
    Failure::refused(format_args!("{} does not answer HTTP: {error}", server.authority))
}

fn late(server: &Server, patience: Duration) -> Failure {
    Failure::refused(format_args!("no answer from {} within {} s", server.authority, patience.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_code_and_what_a_proxy_says_is_cut() {
        let refusal = |body: &str| {
            let (headers, body) = (HeaderMap::new(), Bytes::from(body.to_owned()));
            Answer { status: StatusCode::FORBIDDEN, headers, body }.refusal()
        };
        let problem = r#"{"type":"about:blank","code":"forbidden","detail":"not yours","retryable":false}"#;
        assert_eq!(refusal(problem), "refused with 403 forbidden: not yours");
        assert_eq!(refusal("<html>"), "refused with 403: <html>");
        assert!(refusal(&"x".repeat(10_000)).len() < 300);
    }
}
