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

/// The answer, and what an agent says to most requests.
const FIRST_READ: usize = 512;

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

/// A stream to a port of the guest.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) stream: UnixStream,
    /// What the guest has sent already: it comes before what `stream` gives.
    pub(super) received: Vec<u8>,
}

/// A stream to `port` of the guest behind the machine's socket at `socket`, with `first` sent over it: together with the line that asks
/// for the stream, so that the machine is woken once.
pub(super) async fn connect(socket: &Path, port: u32, first: &[u8]) -> Result<Connected, ConnectError> {
    match tokio::time::timeout(TIMEOUT, open(socket, port, first)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout(port)),
    }
}

async fn open(socket: &Path, port: u32, first: &[u8]) -> Result<Connected, ConnectError> {
    ask(UnixStream::connect(socket).await?, port, first).await
}

async fn ask(mut stream: UnixStream, port: u32, first: &[u8]) -> Result<Connected, ConnectError> {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let failed = |error: io::Error| match error.kind() {
        // The first where all that was sent has been read; the last where nothing was.
        UnexpectedEof | ConnectionReset | BrokenPipe => ConnectError::Refused(port),
        _ => error.into(),
    };
    let mut sent = format!("CONNECT {port}\n").into_bytes();
    sent.extend_from_slice(first);
    stream.write_all(&sent).await.map_err(failed)?;
    let mut answer = Vec::with_capacity(FIRST_READ);
    let end = loop {
        let longest = &answer[..answer.len().min(LONGEST_ANSWER)];
        if let Some(newline) = longest.iter().position(|&byte| byte == b'\n') {
            break newline + 1;
        }
        if longest.len() == LONGEST_ANSWER {
            break LONGEST_ANSWER;
        }
        if stream.read_buf(&mut answer).await.map_err(failed)? == 0 {
            return Err(ConnectError::Refused(port));
        }
    };
    let received = answer.split_off(end);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let number = answer.strip_prefix("OK ").and_then(|rest| rest.strip_suffix('\n'));
    if number.is_some_and(|number| number.parse::<u32>().is_ok()) {
        Ok(Connected { stream, received })
    } else {
        Err(ConnectError::Answer { port, answer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// Connects to a machine that answers with these pieces, each sent when the one before it was read, and then closes.
    async fn answered(answer: &[&[u8]]) -> Result<Connected, ConnectError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let machine = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut sent = [0; 19];
            stream.read_exact(&mut sent).await.unwrap();
            assert_eq!(&sent, b"CONNECT 1024\nfirst\n");
            for piece in answer {
                stream.write_all(piece).await.unwrap();
                // On one thread: the other side has read before this goes on.
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(connect(&path, 1024, b"first\n"), machine).0
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_the_guests() {
        for answer in [
            &[&b"OK 4294967295\nhel"[..], b"lo"][..],
            &[b"OK 4294967295\n", b"hello"],
            &[b"O", b"K 1", b"\nh", b"ello"],
            &[b"OK 1\nhello"],
        ] {
            let Connected { mut stream, received } = answered(answer).await.unwrap();
            let mut all = String::from_utf8(received).unwrap();
            stream.read_to_string(&mut all).await.unwrap();
            assert_eq!(all, "hello", "{answer:?}");
        }
        let long = vec![b'x'; 3 * FIRST_READ];
        let mut connected = answered(&[b"OK 7\n", &long]).await.unwrap();
        connected.stream.read_to_end(&mut connected.received).await.unwrap();
        assert!(connected.received == long);
    }

    #[tokio::test]
    async fn a_machine_that_has_hung_up_refuses() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(matches!(ask(ours, 1024, b"").await, Err(ConnectError::Refused(1024))));
    }

    /// As the device does where the guest resets: the line has been read, what follows it has not.
    #[tokio::test]
    async fn a_machine_that_hangs_up_without_having_read_everything_refuses() {
        for length in [1, 1 << 20] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let machine = async move { theirs.read_exact(&mut [0; 13]).await.map(drop) };
            let first = vec![0; length];
            let (refused, machine) = tokio::join!(ask(ours, 1024, &first), machine);
            machine.unwrap();
            assert!(matches!(refused, Err(ConnectError::Refused(1024))), "{length}");
        }
    }

    #[tokio::test]
    async fn refusals() {
        assert!(matches!(answered(&[]).await, Err(ConnectError::Refused(1024))));
        assert!(matches!(answered(&[b"OK 10"]).await, Err(ConnectError::Refused(1024))));
        for wrong in [&b"NO\n"[..], b"OK x\n", b"OK 1 2\n", b"OK 11111111111111111"] {
            assert!(matches!(answered(&[wrong]).await, Err(ConnectError::Answer { .. })), "{wrong:?}");
        }
        let nowhere = connect(Path::new("/nonexistent/vsock.sock"), 1024, b"").await;
        assert!(matches!(nowhere, Err(ConnectError::Io(_))));
    }
}
