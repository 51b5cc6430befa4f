//! Length-prefixed frames over a TCP stream, in both directions without blocking.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use berth_proto::{limits, tcp};
use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use super::{Raw, TransportError};

/// A read asks for this much at once, in bytes: a typical page of a pull.
const READ: usize = 4 * 1024;

pub(super) struct Frames {
    stream: TcpStream,
    input: BytesMut,
    output: BytesMut,
}

impl Frames {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, input: BytesMut::new(), output: BytesMut::new() }
    }

    pub fn queue(&mut self, payload: &[u8]) {
        self.output.extend_from_slice(&tcp::prefix(payload.len()));
        self.output.extend_from_slice(payload);
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        while !self.output.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output)).map_err(broken)?;
            if written == 0 {
                return Poll::Ready(Err(TransportError::Broken("nothing more can be written".to_owned())));
            }
            self.output.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Raw, TransportError>> {
        loop {
            if let Some(payload) = self.take()? {
                return Poll::Ready(Ok(Raw::Payload(payload.freeze())));
            }
            ready!(self.stream.poll_read_ready(cx)).map_err(broken)?;
            self.input.reserve(READ);
            match self.stream.try_read_buf(&mut self.input) {
                Ok(0) if self.input.is_empty() => return Poll::Ready(Ok(Raw::Closed(None))),
                Ok(0) => {
                    let left = self.input.len();
                    let problem = format!("it ended inside a frame, {left} bytes into it");
                    return Poll::Ready(Err(TransportError::Broken(problem)));
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(broken(e))),
            }
        }
    }

    /// The first whole frame of the input.
    fn take(&mut self) -> Result<Option<BytesMut>, TransportError> {
        let whole = tcp::split(&self.input, limits::SERVER_FRAME)
            .map_err(|e| TransportError::Broken(e.to_string()))?
            .map(|(_, length)| length);
        Ok(whole.map(|length| {
            let mut frame = self.input.split_to(length);
            frame.advance(tcp::PREFIX);
            frame
        }))
    }

    pub async fn close(&mut self) -> Result<(), TransportError> {
        self.stream.write_all(&self.output).await.map_err(broken)?;
        self.stream.shutdown().await.map_err(broken)
    }
}

fn broken(error: io::Error) -> TransportError {
    TransportError::Broken(error.to_string())
}
