//! Streams to the guest's vsock ports, through the machine's Unix socket: `CONNECT <port>\n`, answered by `OK <port>\n`.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// A guest that is alive accepts in a few ms, one on an emulated CPU under load in seconds.
const TIMEOUT: Duration = Duration::from_secs(30);

/// `OK 4294967295\n`
const LONGEST_ANSWER: usize = 14;

/// A port of the guest that cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The machine's socket failed.
    #[error("cannot reach the machine")]
    Io(#[from] io::Error),
    /// The machine has ended the connection: nobody listens there, or it has as many as it takes.
    #[error("the guest's port {0} takes no connection: nobody listens there, or too many are open")]
    Refused(u32),
    /// The machine answered something else.
    #[error("the machine answered a connection to the guest's port {port} with {answer:?}")]
    Answer { port: u32, answer: String },
    /// No answer came.
    #[error("the guest has not answered on port {0} within {seconds} s", seconds = TIMEOUT.as_secs())]
    Timeout(u32),
}

/// A stream to `port` of the guest behind the machine's socket at `socket`.
pub(super) async fn connect(socket: &Path, port: u32) -> Result<UnixStream, ConnectError> {
    match tokio::time::timeout(TIMEOUT, open(socket, port)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout(port)),
    }
}

async fn open(socket: &Path, port: u32) -> Result<UnixStream, ConnectError> {
    ask(UnixStream::connect(socket).await?, port).await
}

async fn ask(mut stream: UnixStream, port: u32) -> Result<UnixStream, ConnectError> {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let failed = |error: io::Error| match error.kind() {
        // The last where the machine has not even read the line.
        UnexpectedEof | ConnectionReset | BrokenPipe => ConnectError::Refused(port),
        _ => error.into(),
    };
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await.map_err(failed)?;
    // Byte for byte: what follows the line belongs to the guest.
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') && answer.len() < LONGEST_ANSWER {
        answer.push(stream.read_u8().await.map_err(failed)?);
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let number = answer.strip_prefix("OK ").and_then(|rest| rest.strip_suffix('\n'));
    if number.is_some_and(|number| number.parse::<u32>().is_ok()) {
        Ok(stream)
    } else {
        Err(ConnectError::Answer { port, answer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncBufReadExt as _;
    use tokio::net::UnixListener;

    /// Connects to a machine that answers with `answer` and then closes.
    async fn answered(answer: &[u8]) -> Result<UnixStream, ConnectError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let machine = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = tokio::io::BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            assert_eq!(line, "CONNECT 1024\n");
            stream.write_all(answer).await.unwrap();
        };
        tokio::join!(connect(&path, 1024), machine).0
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_the_guests() {
        let mut stream = answered(b"OK 4294967295\nhello").await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hello");
    }

    #[tokio::test]
    async fn a_machine_that_has_hung_up_refuses() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(matches!(ask(ours, 1024).await, Err(ConnectError::Refused(1024))));
    }

    #[tokio::test]
    async fn refusals() {
        assert!(matches!(answered(b"").await, Err(ConnectError::Refused(1024))));
        assert!(matches!(answered(b"OK 10").await, Err(ConnectError::Refused(1024))));
        for wrong in [&b"NO\n"[..], b"OK x\n", b"OK 1 2\n", b"OK 11111111111111111"] {
            assert!(matches!(answered(wrong).await, Err(ConnectError::Answer { .. })), "{wrong:?}");
        }
        let nowhere = connect(Path::new("/nonexistent/vsock.sock"), 1024).await;
        assert!(matches!(nowhere, Err(ConnectError::Io(_))));
    }
}
