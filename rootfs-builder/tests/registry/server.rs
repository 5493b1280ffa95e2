//! A small HTTP/1.1 server: one request a connection, answered by a function, with ways to answer badly.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) query: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The first byte of a range to the end.
    pub(crate) fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) ending: Ending,
}

/// How an answer ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    /// As announced.
    Whole,
    /// After so many bytes the connection closes.
    Drop(usize),
    /// No length is announced, and after so many bytes the connection closes: it looks whole.
    Truncate(usize),
    /// After so many bytes nothing more comes.
    Stall(usize),
    /// The connection closes without an answer.
    Nothing,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl AsRef<[u8]>) -> Self {
        Self { status, headers: Vec::new(), body: body.as_ref().to_vec(), ending: Ending::Whole }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn ending(self, ending: Ending) -> Self {
        Self { ending, ..self }
    }

    /// The bytes of the head, and those of the body that are sent.
    fn encode(&self) -> (String, &[u8]) {
        let mut head = format!("HTTP/1.1 {} Answer\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        let sent = match self.ending {
            Ending::Whole => self.body.len(),
            Ending::Drop(n) | Ending::Truncate(n) | Ending::Stall(n) => n.min(self.body.len()),
            Ending::Nothing => 0,
        };
        let announced = head.contains("Content-Length") || matches!(self.ending, Ending::Truncate(_));
        if !announced {
            write!(head, "Content-Length: {}\r\n", self.body.len()).unwrap();
        }
        (head + "\r\n", &self.body[..sent])
    }
}

/// A request with the number of body bytes that were sent for it.
pub(crate) type Seen = (Request, usize);

/// A running server; it ends with the test's runtime.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub(crate) async fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(None, answer).await
    }

    /// With TLS, if there is an acceptor.
    pub(crate) async fn start_with(
        tls: Option<tokio_rustls::TlsAcceptor>,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (answer, log) = (Arc::new(answer), seen.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, log, tls) = (answer.clone(), log.clone(), tls.clone());
                tokio::spawn(async move {
                    // What clients do to a connection is their business.
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &*answer, &log).await.ok();
                            }
                        }
                        None => {
                            serve(stream, &*answer, &log).await.ok();
                        }
                    }
                });
            }
        });
        Self { address, seen }
    }

    /// `host:port`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// The requests so far, but for those that only ask which protocol is spoken.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|(request, _)| request.path != "/v2/").cloned().collect()
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.seen().into_iter().map(|(request, _)| request.path).collect()
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    answer: &(dyn Fn(&Request) -> Reply + Send + Sync),
    log: &Mutex<Vec<Seen>>,
) -> std::io::Result<()> {
    let Some(request) = read_request(&mut stream).await? else { return Ok(()) };
    let reply = answer(&request);
    let (head, body) = reply.encode();
    let silent = matches!(reply.ending, Ending::Nothing);
    log.lock().unwrap().push((request, if silent { 0 } else { body.len() }));
    if silent {
        return Ok(());
    }
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    stream.flush().await?;
    if matches!(reply.ending, Ending::Stall(_)) {
        // Until the client goes.
        let mut rest = [0; 64];
        while stream.read(&mut rest).await? > 0 {}
    }
    stream.shutdown().await
}

/// `None` for what is not HTTP, such as the first message of TLS.
async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> std::io::Result<Option<Request>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        let n = stream.read(&mut buffer).await?;
        bytes.extend_from_slice(&buffer[..n]);
        if n == 0 || !bytes[0].is_ascii_uppercase() {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers: Vec<_> = headers.map(|(n, v)| (n.trim().to_lowercase(), v.trim().to_owned())).collect();
    let length = headers.iter().find(|(n, _)| n == "content-length").map_or(0, |(_, v)| v.parse().unwrap());
    let mut body = bytes.split_off(end + 4);
    while body.len() < length {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(None);
        }
        body.extend_from_slice(&buffer[..n]);
    }
    Ok(Some(Request {
        method: method.into(),
        path: path.into(),
        query: query.into(),
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    }))
}
