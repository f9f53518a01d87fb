//! `sub` over a WebSocket: frames join the rooms. It owns the socket; `subscription` decides what frames mean.

use super::steps::{CONNECT_LIMIT, not_connected, perform, refused};
use crate::{
    connection::{Connection, Gateway},
    http::FRAME_BYTES_MAX,
    subscription::{Subscription, SubscriptionAction},
};
use futures_util::{SinkExt as _, StreamExt as _, stream};
use hyper::header::AUTHORIZATION;
use std::{convert::Infallible, time::Duration};
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Error, Message, client::IntoClientRequest as _, protocol::WebSocketConfig},
};

/// Follows until the connection ends; gives the step that ended it.
pub(super) async fn follow(
    gateway: &Gateway,
    subscription: &mut Subscription,
) -> Result<Infallible, SubscriptionAction> {
    let mut socket = match timeout(CONNECT_LIMIT, connect(gateway)).await {
        Ok(connected) => connected?,
        Err(_) => {
            let why =
                format!("{} did not open a WebSocket within {} s", gateway.url.authority, CONNECT_LIMIT.as_secs());
            return Err(SubscriptionAction::Reconnect { after: None, why });
        }
    };
    let mut silence = CONNECT_LIMIT;
    loop {
        let text = match timeout(silence, socket.next()).await {
            Err(_) => return Err(subscription.closed(None, "the server went silent")),
            Ok(None) => return Err(subscription.closed(None, "the connection ended")),
            Ok(Some(Err(error))) => return Err(subscription.closed(None, &error.to_string())),
            Ok(Some(Ok(Message::Close(frame)))) => {
                // Reading on sends the close frame that answers this one; then the server closes the connection.
                let _ = timeout(Duration::from_secs(1), socket.next()).await;
                let (code, reason) = frame.map_or((None, "closed".into()), |f| (Some(f.code.into()), f.reason));
                return Err(subscription.closed(code, &reason));
            }
            Ok(Some(Ok(Message::Text(text)))) => text,
            Ok(Some(Ok(_))) => continue,
        };
        match subscription.frame(&text) {
            SubscriptionAction::Begin { silence: allowed } => {
                silence = allowed;
                let mut joins = stream::iter(subscription.joins()).map(|join| Ok(Message::text(join)));
                let sent = socket.send_all(&mut joins).await;
                sent.map_err(|error| subscription.closed(None, &error.to_string()))?;
            }
            step => perform(step, &text)?,
        }
    }
}

/// Opens the socket, or gives the step to take instead.
async fn connect(gateway: &Gateway) -> Result<WebSocketStream<Connection>, SubscriptionAction> {
    let url = format!("ws://{}{}", gateway.url.authority, gateway.url.path("/ws"));
    let mut request = url.into_client_request().map_err(|error| SubscriptionAction::Stop(error.to_string()))?;
    if let Some(token) = &gateway.authorization {
        request.headers_mut().insert(AUTHORIZATION, token.clone());
    }
    // The library's default reserves 128 KiB for reading; messages are small.
    let config = WebSocketConfig::default()
        .read_buffer_size(8 << 10)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let connection = gateway.connect().await.map_err(not_connected)?;
    match client_async_with_config(request, connection, Some(config)).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(response)) => {
            let (status, headers) = (response.status(), response.headers());
            Err(refused(status, headers, format!("refused with {status}")))
        }
        Err(error) => {
            let why = format!("{} did not open a WebSocket: {error}", gateway.url.authority);
            Err(SubscriptionAction::Reconnect { after: None, why })
        }
    }
}
