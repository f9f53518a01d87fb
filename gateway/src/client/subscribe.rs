//! `fanfare sub`: follows rooms over a WebSocket, prints every message as it came and reconnects until Ctrl-C. What
//! frames mean is `subscription`'s; this file owns the socket, the clock and the output.

use super::{
    Failure, Token,
    backoff::Backoff,
    finish, note, print,
    server::Server,
    subscription::{Step, Subscription},
};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::{HeaderMap, StatusCode, header::AUTHORIZATION, header::RETRY_AFTER};
use std::{process::ExitCode, time::Duration};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{Error, Message, client::IntoClientRequest as _, protocol::WebSocketConfig},
};

/// How long connecting and the first frame may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A session that lasted so long was a good one: the back-off starts again.
const GOOD: Duration = Duration::from_secs(10);
/// The largest frame that is read: many times the largest message, since presence lists are frames too.
const FRAME_BYTES_MAX: usize = 16 << 20;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What to follow.
#[derive(Debug)]
pub(crate) struct Subscribe {
    /// Which rooms.
    pub(crate) rooms: Vec<String>,
    /// After which cursor of all of them.
    pub(crate) since: Option<String>,
    /// With how many earlier messages of each.
    pub(crate) history: Option<u32>,
    /// The gateway.
    pub(crate) url: String,
    /// Who follows.
    pub(crate) token: Option<Token>,
}

/// Follows until Ctrl-C (exit code 0), until the reader of its output is gone (0), or until a retry cannot help (1).
pub(crate) async fn subscribe(order: Subscribe) -> ExitCode {
    let result = tokio::select! {
        result = follow(order) => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    finish("sub", result)
}

async fn follow(order: Subscribe) -> Result<(), Failure> {
    let server = Server::parse(&order.url)?;
    let mut subscription = Subscription::new(order.rooms, order.since.as_deref(), order.history)?;
    let mut backoff = Backoff::default();
    loop {
        let begun = Instant::now();
        let end = match connect(&server, order.token.as_ref()).await? {
            Ok(mut socket) => listen(&mut socket, &mut subscription).await,
            Err(step) => step,
        };
        let (after, why) = match end {
            Step::Reconnect { after, why } => (after, why),
            Step::Over(why) => return Err(Failure::refused(why)),
            _ => return Ok(()),
        };
        if begun.elapsed() >= GOOD {
            backoff.reset();
        }
        let own = backoff.next(getrandom::u32().unwrap_or(u32::MAX));
        let wait = after.unwrap_or(own);
        note("sub", &format!("{why}; reconnecting in {} ms", wait.as_millis()));
        sleep(wait).await;
    }
}

/// Opens the socket, or says as a step what to do instead.
async fn connect(server: &Server, token: Option<&Token>) -> Result<Result<Socket, Step>, Failure> {
    let mut request = server.websocket("/ws").into_client_request().map_err(Failure::refused)?;
    if let Some(token) = token {
        request.headers_mut().insert(AUTHORIZATION, token.header()?);
    }
    // Its default reserves 128 KiB for reading; messages are small.
    let config = WebSocketConfig::default()
        .read_buffer_size(8 << 10)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let again = |why: String| Ok(Err(Step::Reconnect { after: None, why }));
    match timeout(PATIENCE, connect_async_with_config(request, Some(config), true)).await {
        Err(_) => again(format!("{} does not answer", server.authority)),
        Ok(Ok((socket, _))) => Ok(Ok(socket)),
        Ok(Err(Error::Http(answer))) => Ok(Err(refused(answer.status(), answer.headers()))),
        Ok(Err(error)) => again(format!("cannot connect to {}: {error}", server.authority)),
    }
}

/// What an answer other than an upgrade means: a client's fault stays one, everything else may pass.
fn refused(status: StatusCode, headers: &HeaderMap) -> Step {
    let why = format!("refused with {status}");
    let passes = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    if status.is_client_error() && !passes {
        return Step::Over(why);
    }
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    Step::Reconnect { after: seconds.map(|seconds| Duration::from_secs(seconds.min(300))), why }
}

/// Takes frames until the connection ends; the step that ended it.
async fn listen(socket: &mut Socket, subscription: &mut Subscription) -> Step {
    let mut silence = PATIENCE;
    loop {
        let step = match timeout(silence, socket.next()).await {
            Err(_) => return subscription.closed(None, "the server went silent"),
            Ok(None) => return subscription.closed(None, "the connection ended"),
            Ok(Some(Err(error))) => return subscription.closed(None, &error.to_string()),
            Ok(Some(Ok(Message::Close(frame)))) => {
                // The answer to it is sent by reading on; the server closes the connection then.
                let _ = timeout(Duration::from_secs(1), socket.next()).await;
                let (code, reason) = frame.map_or((None, "closed".into()), |f| (Some(f.code.into()), f.reason));
                return subscription.closed(code, &reason);
            }
            Ok(Some(Ok(Message::Text(text)))) => match subscription.frame(&text) {
                // Nobody reads the output any more: that ends a pipeline and is no failure.
                Step::Message if print(&text).is_err() => return Step::Nothing,
                step => step,
            },
            Ok(Some(Ok(_))) => Step::Nothing,
        };
        match step {
            Step::Begin { frames, silence: allowed } => {
                silence = allowed;
                if let Err(error) = send(socket, frames).await {
                    return subscription.closed(None, &error.to_string());
                }
            }
            Step::Note(text) => note("sub", &text),
            Step::Nothing | Step::Message => {}
            Step::Reconnect { .. } | Step::Over(_) => return step,
        }
    }
}

async fn send(socket: &mut Socket, frames: Vec<String>) -> Result<(), Error> {
    for frame in frames {
        socket.feed(Message::text(frame)).await?;
    }
    socket.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_upgrade_is_tried_again_only_where_that_can_help() {
        let mut headers = HeaderMap::new();
        for status in [400, 401, 403, 404] {
            assert!(matches!(refused(StatusCode::from_u16(status).unwrap(), &headers), Step::Over(_)), "{status}");
        }
        headers.insert(RETRY_AFTER, "7".parse().unwrap());
        for status in [429, 500, 502, 503] {
            let step = refused(StatusCode::from_u16(status).unwrap(), &headers);
            assert!(matches!(step, Step::Reconnect { after: Some(after), .. } if after.as_secs() == 7), "{status}");
        }
    }
}
