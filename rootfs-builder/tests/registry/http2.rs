//! HTTP/2, which the public registries and their CDNs speak.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use tokio::net::TcpListener;

use crate::content::{Content, Image};
use crate::environment::{certificates, pull};
use crate::server::Request;
use crate::{reference, within};

/// What goes wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The stream is reset before an answer.
    Refuse,
    /// The stream is reset after so many bytes.
    Reset(usize),
    /// The connection closes after so many bytes.
    Close(usize),
}

/// Sends an answer. False if the connection is to be closed.
async fn send(
    content: &Content,
    request: &Request,
    fault: Option<Fault>,
    mut to: SendResponse<Bytes>,
) -> bool {
    if fault == Some(Fault::Refuse) {
        to.send_reset(Reason::REFUSED_STREAM);
        return true;
    }
    let reply = content.reply(request);
    let mut head = http::Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        head = head.header(name, value);
    }
    let Ok(mut stream) = to.send_response(head.body(()).unwrap(), false) else { return true };
    let limit = match fault {
        Some(Fault::Reset(n) | Fault::Close(n)) => n,
        _ => reply.body.len(),
    };
    let mut rest = Bytes::from(reply.body).slice(..limit);
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len());
        let Some(Ok(capacity)) = std::future::poll_fn(|context| stream.poll_capacity(context)).await else {
            return true;
        };
        if stream.send_data(rest.split_to(capacity.min(rest.len())), false).is_err() {
            return true;
        }
    }
    match fault {
        None => drop(stream.send_data(Bytes::new(), true)),
        Some(_) => stream.send_reset(Reason::INTERNAL_ERROR),
    }
    !matches!(fault, Some(Fault::Close(_)))
}

#[tokio::test]
async fn resets_and_closed_connections_are_resumed() {
    within(async {
        let directory = tempfile::tempdir().unwrap();
        let tls = certificates(directory.path(), &["h2"]);
        let image = Image::new(1, 2_000_000);
        let content = Arc::new(Content::of("app", "1", &image));
        let faults = [Fault::Reset(500_000), Fault::Refuse, Fault::Close(300_000), Fault::Reset(0)];
        let faults = Arc::new(Mutex::new(VecDeque::from(faults)));
        let ranges: Arc<Mutex<Vec<usize>>> = Arc::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (left, asked) = (faults.clone(), ranges.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, content, faults, ranges) =
                    (tls.clone(), content.clone(), left.clone(), asked.clone());
                tokio::spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    // A reset throws away what is not on its way yet: only little of it may be buffered.
                    let mut server = h2::server::Builder::new();
                    let handshake = server.max_send_buffer_size(16 << 10).handshake::<_, Bytes>(stream);
                    let Ok(mut connection) = handshake.await else { return };
                    let close = Arc::new(tokio::sync::Notify::new());
                    loop {
                        let accepted = tokio::select! {
                            accepted = connection.accept() => accepted,
                            () = close.notified() => return,
                        };
                        let Some(Ok((request, to))) = accepted else { return };
                        let request = Request {
                            method: request.method().to_string(),
                            path: request.uri().path().to_owned(),
                            query: String::new(),
                            headers: request
                                .headers()
                                .iter()
                                .map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned()))
                                .collect(),
                            body: String::new(),
                        };
                        let blob = request.path.contains("/blobs/");
                        let fault = blob.then(|| faults.lock().unwrap().pop_front()).flatten();
                        if blob {
                            ranges.lock().unwrap().push(request.range_start().unwrap_or(0));
                        }
                        let (content, close) = (content.clone(), close.clone());
                        tokio::spawn(async move {
                            if !send(&content, &request, fault, to).await {
                                close.notify_one();
                            }
                        });
                    }
                });
            }
        });
        let name = reference(&host, "app:1").to_string();
        let file = directory.path().join("ca.pem").display().to_string();
        assert_eq!(pull(&name, &[("SSL_CERT_FILE", &file)]).await, "pulled");
        let ranges = ranges.lock().unwrap();
        assert!(faults.lock().unwrap().is_empty() && ranges.len() == 5, "{ranges:?}");
        // What had been read when a stream ended is not asked for again.
        assert!(ranges.is_sorted() && ranges[4] > 0, "{ranges:?}");
    })
    .await;
}
