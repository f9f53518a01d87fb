//! `sub` over a WebSocket: rooms are joined by frames. It owns the socket; what frames mean is `subscription`'s.

use super::{Gateway, PATIENCE, perform, refused};
use crate::{
    FRAME_BYTES_MAX,
    subscription::{Step, Subscription},
};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::header::AUTHORIZATION;
use std::{convert::Infallible, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{Error, Message, client::IntoClientRequest as _, protocol::WebSocketConfig},
};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Follows until the connection ends; gives the step that ended it.
pub(super) async fn follow(gateway: &Gateway, subscription: &mut Subscription) -> Result<Infallible, Step> {
    let mut socket = connect(gateway).await?;
    let mut silence = PATIENCE;
    loop {
        let text = match timeout(silence, socket.next()).await {
            Err(_) => return Err(subscription.closed(None, "the server went silent")),
            Ok(None) => return Err(subscription.closed(None, "the connection ended")),
            Ok(Some(Err(error))) => return Err(subscription.closed(None, &error.to_string())),
            Ok(Some(Ok(Message::Close(frame)))) => {
                // The answer to it is sent by reading on; the server closes the connection then.
                let _ = timeout(Duration::from_secs(1), socket.next()).await;
                let (code, reason) = frame.map_or((None, "closed".into()), |f| (Some(f.code.into()), f.reason));
                return Err(subscription.closed(code, &reason));
            }
            Ok(Some(Ok(Message::Text(text)))) => text,
            Ok(Some(Ok(_))) => continue,
        };
        match subscription.frame(&text) {
            Step::Begin { silence: allowed } => {
                silence = allowed;
                let sent = send(&mut socket, subscription.joins()).await;
                sent.map_err(|error| subscription.closed(None, &error.to_string()))?;
            }
            step => perform(step, &text)?,
        }
    }
}

/// Opens the socket, or says as a step what to do instead.
async fn connect(gateway: &Gateway) -> Result<Socket, Step> {
    let request = gateway.server.websocket("/ws").into_client_request();
    let mut request = request.map_err(|error| Step::Over(error.to_string()))?;
    if let Some(token) = &gateway.authorization {
        request.headers_mut().insert(AUTHORIZATION, token.clone());
    }
    // Its default reserves 128 KiB for reading; messages are small.
    let config = WebSocketConfig::default()
        .read_buffer_size(8 << 10)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let authority = &gateway.server.authority;
    let again = |why: String| Err(Step::Reconnect { after: None, why });
    match timeout(PATIENCE, connect_async_with_config(request, Some(config), true)).await {
        Err(_) => again(format!("{authority} does not answer")),
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(Error::Http(answer))) => {
            Err(refused(answer.status(), answer.headers(), format!("refused with {}", answer.status())))
        }
        Ok(Err(error)) => again(format!("cannot connect to {authority}: {error}")),
    }
}

async fn send(socket: &mut Socket, frames: Vec<String>) -> Result<(), Error> {
    for frame in frames {
        socket.feed(Message::text(frame)).await?;
    }
    socket.flush().await
}
