//! HTTP/1.1 to a gateway: requests whose response is read whole, on one connection that is kept open between them
//! (`publish`, `health`, polls), and requests whose response goes on, on a connection of their own (streams). Everything but
//! the length of such a stream is bounded in size and time.

use crate::{connection::Gateway, output::Failure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use std::time::Duration;
use tokio::time::timeout;

/// The largest frame, event, line or response that is read, in bytes: 16 times the largest message that a gateway can be
/// configured for (1 MiB), because lists of messages and of members are single frames too.
pub(crate) const FRAME_BYTES_MAX: usize = 16 << 20;

/// What a response other than 200 says: the problem's code and detail, or the first 200 characters of a proxy's page.
pub(crate) fn refusal(response: &Response<Bytes>) -> String {
    #[derive(Deserialize)]
    struct ReceivedProblem {
        code: String,
        detail: String,
    }
    let status = response.status().as_u16();
    match serde_json::from_slice::<ReceivedProblem>(response.body()) {
        Ok(ReceivedProblem { code, detail }) => format!("refused with {status} {code}: {detail}"),
        Err(_) => {
            let text: String = String::from_utf8_lossy(response.body()).chars().take(200).collect();
            format!("refused with {status}: {}", text.trim())
        }
    }
}

/// Sends one request after the other, on a connection that is opened with the first of them.
pub(crate) struct HttpClient<'a> {
    gateway: &'a Gateway,
    time_limit: Duration,
    open: Option<SendRequest<Full<Bytes>>>,
}

impl<'a> HttpClient<'a> {
    /// `time_limit` bounds each request with everything it takes, connecting included.
    pub(crate) fn new(gateway: &'a Gateway, time_limit: Duration) -> Self {
        Self { gateway, time_limit, open: None }
    }

    /// Sends a request that may safely arrive twice: when a connection that was used before has broken, the request is
    /// sent again on a new one.
    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Failure> {
        let (gateway, time_limit) = (self.gateway, self.time_limit);
        timeout(time_limit, self.attempt(request)).await.map_err(|_| no_response(gateway, time_limit))?
    }

    async fn attempt(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Failure> {
        if let Some(mut sender) = self.open.take()
            && let Ok(response) = exchange(&mut sender, request.clone()).await
        {
            self.open = Some(sender);
            return Ok(response);
        }
        let mut sender = connect(self.gateway).await?;
        let response = exchange(&mut sender, request).await.map_err(|error| broken(self.gateway, &error))?;
        self.open = Some(sender);
        Ok(response)
    }
}

/// Sends a request on a connection of its own and gives the response as soon as its head is there.
pub(crate) async fn open_stream(
    gateway: &Gateway,
    request: Request<Full<Bytes>>,
    time_limit: Duration,
) -> Result<Response<Incoming>, Failure> {
    let attempt = async {
        let mut sender = connect(gateway).await?;
        sender.send_request(request).await.map_err(|error| broken(gateway, &error.to_string()))
    };
    timeout(time_limit, attempt).await.map_err(|_| no_response(gateway, time_limit))?
}

/// Reads a response to its end.
pub(crate) async fn read_whole(response: Response<Incoming>) -> Result<Response<Bytes>, String> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, FRAME_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

async fn connect(gateway: &Gateway) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let stream = TokioIo::new(gateway.connect().await?);
    let (sender, connection) = handshake(stream).await.map_err(|error| broken(gateway, &error.to_string()))?;
    // It moves the bytes of the connection, and ends with it.
    tokio::spawn(connection);
    Ok(sender)
}

async fn exchange(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, String> {
    sender.ready().await.map_err(|error| error.to_string())?;
    read_whole(sender.send_request(request).await.map_err(|error| error.to_string())?).await
}

fn broken(gateway: &Gateway, error: &str) -> Failure {
    Failure::refused(format_args!("{} sent no HTTP response: {error}", gateway.url.authority))
}

fn no_response(gateway: &Gateway, time_limit: Duration) -> Failure {
    let seconds = time_limit.as_secs();
    Failure::refused(format_args!("no response from {} within {seconds} s", gateway.url.authority))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::StatusCode;

    #[test]
    fn a_refusal_names_the_code_and_a_proxys_page_is_cut() {
        let refusal = |body: &str| {
            let mut response = Response::new(Bytes::from(body.to_owned()));
            *response.status_mut() = StatusCode::FORBIDDEN;
            refusal(&response)
        };
        let problem = r#"{"type":"about:blank","code":"forbidden","detail":"not yours","retryable":false}"#;
        assert_eq!(refusal(problem), "refused with 403 forbidden: not yours");
        assert_eq!(refusal("<html>"), "refused with 403: <html>");
        assert!(refusal(&"x".repeat(10_000)).len() < 300);
    }
}
