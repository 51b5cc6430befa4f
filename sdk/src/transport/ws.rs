//! Frames over a WebSocket, one message each.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use berth_proto::{frame::Encoding, limits};
use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, Utf8Bytes,
        client::IntoClientRequest,
        http::{HeaderValue, header},
        protocol::WebSocketConfig,
    },
};

use super::{Close, Raw, TransportError};

/// Kept per connection while it lives, in bytes; the library's own 128 KiB would dominate a load generator's memory.
const READ_BUFFER: usize = 4 * 1024;

/// Output the library may hold, in bytes: twice all requests that may be in flight, at their largest.
const WRITE_BUFFER: usize = 2 * limits::IN_FLIGHT * limits::CLIENT_FRAME;

pub(super) struct WebSocket {
    // Boxed: ten times the size of the TCP variant beside it.
    stream: Box<WebSocketStream<TcpStream>>,
}

impl WebSocket {
    pub async fn open(stream: TcpStream, url: &str, encoding: Encoding) -> Result<Self, TransportError> {
        let mut request = url
            .into_client_request()
            .map_err(|e| TransportError::BadEndpoint { url: url.to_owned(), problem: e.to_string() })?;
        let subprotocol = HeaderValue::from_static(encoding.subprotocol());
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, subprotocol);
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BUFFER)
            .max_message_size(Some(limits::SERVER_FRAME))
            .max_frame_size(Some(limits::SERVER_FRAME));
        let (stream, _) = tokio_tungstenite::client_async_with_config(request, stream, Some(config))
            .await
            .map_err(|e| TransportError::Upgrade { url: url.to_owned(), problem: upgrade_problem(&e) })?;
        Ok(Self { stream: Box::new(stream) })
    }

    pub fn queue(&mut self, encoding: Encoding, payload: &[u8]) -> Result<(), TransportError> {
        let message = match encoding {
            Encoding::Proto => Message::Binary(Bytes::copy_from_slice(payload)),
            Encoding::Json => {
                let text = Utf8Bytes::try_from(payload.to_vec()).expect("the JSON writer writes UTF-8");
                Message::Text(text)
            }
        };
        Pin::new(&mut *self.stream).start_send(message).map_err(broken)
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Pin::new(&mut *self.stream).poll_flush(cx).map_err(broken)
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Raw, TransportError>> {
        loop {
            let raw = match ready!(Pin::new(&mut *self.stream).poll_next(cx)) {
                None | Some(Ok(Message::Close(None))) => Raw::Closed(None),
                Some(Ok(Message::Close(Some(frame)))) => Raw::Closed(Some(Close {
                    code: Some(frame.code.into()),
                    reason: frame.reason.as_str().to_owned(),
                })),
                Some(Ok(Message::Text(text))) => Raw::Payload(text.into()),
                Some(Ok(Message::Binary(bytes))) => Raw::Payload(bytes),
                // The library answers pings by itself.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            };
            return Poll::Ready(Ok(raw));
        }
    }

    pub async fn close(&mut self) -> Result<(), TransportError> {
        SinkExt::close(&mut *self.stream).await.map_err(broken)
    }
}

fn broken(error: Error) -> TransportError {
    TransportError::Broken(error.to_string())
}

fn upgrade_problem(error: &Error) -> String {
    match error {
        Error::Http(response) => {
            let text = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            format!("{} {}", response.status(), text.trim())
        }
        other => other.to_string(),
    }
}
