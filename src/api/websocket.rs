//! A command at a terminal over a WebSocket: raw bytes both ways. Messages to the client are binary and cut no character in two;
//! those from it are binary or text, which is UTF-8. It is closed with 1000 when the command has ended, with 1011 and the reason
//! when something has failed, with 1001 when the daemon ends.
//!
//! A client that reads slowly stalls its own command, or misses the oldest of what a session shows: nothing is kept for it here
//! beyond one piece.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::http::request::Parts;
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};

use super::problem::Problem;
use crate::daemon::{Connection, Sandbox, chain};
use crate::sandbox::{Event, Exec, Input, Output};

/// The longest message from a client, in bytes.
const MAX_MESSAGE: usize = 1 << 20;
/// A client has so long to answer the close frame.
const CLOSING: Duration = Duration::from_secs(5);
/// The longest reason of a close frame, in bytes (RFC 6455, section 5.5).
const MAX_REASON: usize = 123;

/// A request for a WebSocket.
pub(super) struct Upgrade {
    upgrade: WebSocketUpgrade,
    connection: Connection,
}

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let wrong = |error: WebSocketUpgradeRejection| {
            Problem::bad_request(format!("this is done over a WebSocket: {}", error.body_text()))
        };
        let upgrade = WebSocketUpgrade::from_request_parts(parts, state).await.map_err(wrong)?;
        let connection = parts.extensions.get::<Connection>().cloned();
        let connection = connection.ok_or_else(|| Problem::bad_request("no connection"))?;
        Ok(Self { upgrade, connection })
    }
}

impl Upgrade {
    /// Does `work` with the client, whose messages are at most `longest` bytes. It has to end soon after its connection has.
    pub(super) fn begin<W>(
        self,
        longest: usize,
        work: impl FnOnce(WebSocket, Connection) -> W + Send + 'static,
    ) -> Response
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let Self { upgrade, connection } = self;
        let upgrade = upgrade.max_message_size(longest).max_frame_size(longest);
        upgrade.on_upgrade(|socket| work(socket, connection))
    }

    /// Connects the client with a command, which is dropped when the client goes.
    pub(super) fn with(self, sandbox: Arc<Sandbox>, running: Exec) -> Response {
        self.begin(MAX_MESSAGE, |socket, connection| async move {
            let (mut sink, mut stream) = socket.split();
            let Exec { input, output, .. } = running;
            // The client is heard also while it does not read, so that Ctrl-C gets through.
            let end = tokio::select! {
                end = pass_output(&sandbox, output, &mut sink) => end,
                () = pass_input(&connection, &mut stream, input) => None,
                () = connection.ended() => Some(daemon_ends()),
            };
            close(end, sink, stream).await;
        })
    }
}

/// What a client is told last when the daemon ends.
pub(super) fn daemon_ends() -> CloseFrame {
    close_frame(close_code::AWAY, "the daemon is ending")
}

/// How it is closed, and why.
pub(super) fn close_frame(code: u16, reason: &str) -> CloseFrame {
    CloseFrame { code, reason: Utf8Bytes::from(&reason[..reason.floor_char_boundary(MAX_REASON)]) }
}

/// Returns how it is to be closed; none where the client has gone.
async fn pass_output(
    sandbox: &Sandbox,
    mut output: Output,
    sink: &mut SplitSink<WebSocket, Message>,
) -> Option<CloseFrame> {
    let mut rest = Vec::new();
    let (code, reason) = loop {
        match output.next().await {
            Ok(Event::Stdout(bytes) | Event::Stderr(bytes)) => {
                let bytes = whole(&mut rest, bytes);
                if !bytes.is_empty() {
                    sink.send(Message::Binary(bytes.into())).await.ok()?;
                }
            }
            Ok(Event::Exit(_)) => break (close_code::NORMAL, String::new()),
            Err(error) => break (close_code::ERROR, chain(&sandbox.cause(error).await)),
        }
    };
    if !rest.is_empty() {
        sink.send(Message::Binary(rest.into())).await.ok()?;
    }
    Some(close_frame(code, &reason))
}

/// Closes, and hears the client out: a connection that ends with something unread can take the last messages along.
async fn close(
    end: Option<CloseFrame>,
    mut sink: SplitSink<WebSocket, Message>,
    mut stream: SplitStream<WebSocket>,
) {
    let Some(end) = end else { return };
    let closing = async {
        if sink.send(Message::Close(Some(end))).await.is_ok() {
            while let Some(Ok(_)) = stream.next().await {}
        }
    };
    let _ = tokio::time::timeout(CLOSING, closing).await;
}

/// Returns when the client has gone.
async fn pass_input(connection: &Connection, stream: &mut SplitStream<WebSocket>, mut input: Input) {
    while let Some(Ok(message)) = stream.next().await {
        let pass = async {
            let passed = match message {
                Message::Binary(bytes) => input.write(&bytes).await,
                Message::Text(text) => input.write(text.as_bytes()).await,
                // The library answers them, and then ends the stream.
                Message::Close(_) | Message::Ping(_) | Message::Pong(_) => Ok(()),
            };
            if passed.is_err() {
                // The command takes nothing any more. Its end comes by the other direction.
                std::future::pending::<()>().await;
            }
        };
        if connection.while_there(pass).await.is_none() {
            return;
        }
    }
}

/// `bytes` behind the `rest` of what came before, without a character that is not whole yet, which is the new rest: clients
/// decode message by message.
fn whole(rest: &mut Vec<u8>, bytes: Vec<u8>) -> Vec<u8> {
    let mut all = std::mem::take(rest);
    if all.is_empty() {
        all = bytes;
    } else {
        all.extend_from_slice(&bytes);
    }
    // The last byte that begins a character, and how long that is (RFC 3629).
    let begins = |byte: &u8| byte & 0xc0 != 0x80;
    if let Some(back) = all.iter().rev().take(3).position(begins) {
        let at = all.len() - 1 - back;
        let length = match all[at] {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        if length > back + 1 {
            *rest = all.split_off(at);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_character_is_cut_and_no_byte_is_lost(text: String, noise: Vec<u8>, size in 1usize..9) {
            let bytes = text.as_bytes();
            let (mut rest, mut seen) = (Vec::new(), Vec::new());
            for piece in bytes.chunks(size) {
                let piece = whole(&mut rest, piece.to_vec());
                prop_assert!(std::str::from_utf8(&piece).is_ok());
                seen.extend(piece);
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(&seen, bytes);
            // What is no text comes through as well.
            seen.clear();
            for piece in noise.chunks(size) {
                seen.extend(whole(&mut rest, piece.to_vec()));
                prop_assert!(rest.len() < 4);
            }
            seen.extend(&rest);
            prop_assert_eq!(seen, noise);
        }
    }
}
