//! Two threads: one reads and decompresses layers, lowest first, the other consumes them.
//!
//! The decoder owns the blobs and fills buffers; a channel of bounded length hands them to the consumer, another
//! brings them back empty. It does not wait for the consumer to end a layer, so the next one is already being
//! decompressed when it asks. When the consumer drops its end, the decoder's next send fails and it ends; nobody
//! waits for that, since it may itself be waiting for a layer that is still on its way.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use sha2::{Digest as _, Sha256};

use super::decompress;
use crate::image::{Descriptor, Digest};

/// Bytes of one buffer.
const BUFFER: usize = 256 << 10;

/// Buffers between the threads: 4 MiB in all.
const BUFFERS: usize = 16;

/// A layer's blob, ready to be read.
#[derive(Debug)]
pub struct Layer {
    /// The blob, at its start.
    pub blob: File,
    /// What the manifest says of it.
    pub descriptor: Descriptor,
    /// The digest of its uncompressed content.
    pub diff_id: Digest,
}

enum Message {
    Start { descriptor: Descriptor, diff_id: Digest },
    Data(Vec<u8>),
    End,
    Failed(io::Error),
}

/// The consumer's end: layers, one after the other.
pub struct Pipeline {
    messages: Receiver<Message>,
    empty: Sender<Vec<u8>>,
}

/// The uncompressed content of one layer.
pub struct LayerStream<'a> {
    /// What the manifest says of the blob.
    pub descriptor: Descriptor,
    /// The digest that the content has to have.
    pub diff_id: Digest,
    pipeline: &'a mut Pipeline,
    buffer: Vec<u8>,
    position: usize,
    ended: bool,
    hash: Sha256,
    bytes: u64,
    max_bytes: u64,
}

/// A layer that expands beyond what its blob can justify.
#[derive(Debug, thiserror::Error)]
#[error("expands to more than {max_bytes} bytes from {blob_bytes}: refused as a decompression bomb")]
pub struct Expansion {
    /// The bound that was passed.
    pub max_bytes: u64,
    /// The size of the blob.
    pub blob_bytes: u64,
}

impl Pipeline {
    /// Starts the decoder. `layers` may block until a layer has arrived.
    pub fn start(layers: impl Iterator<Item = io::Result<Layer>> + Send + 'static) -> Self {
        let (full, messages) = sync_channel(BUFFERS);
        let (empty, returned) = channel();
        std::thread::spawn(move || {
            for layer in layers {
                // The consumer is gone, for whatever reason: nobody waits for more.
                if decode(layer, &full, &returned).is_none() {
                    return;
                }
            }
        });
        Self { messages, empty }
    }

    /// The next layer, whose content may expand to `max_bytes(blob size)`. `None` when there are no more.
    pub fn next_layer(&mut self, max_bytes: impl Fn(u64) -> u64) -> io::Result<Option<LayerStream<'_>>> {
        match self.messages.recv() {
            Ok(Message::Start { descriptor, diff_id }) => Ok(Some(LayerStream {
                max_bytes: max_bytes(descriptor.size),
                descriptor,
                diff_id,
                pipeline: self,
                buffer: Vec::new(),
                position: 0,
                ended: false,
                hash: Sha256::new(),
                bytes: 0,
            })),
            Ok(Message::Failed(error)) => Err(error),
            Ok(Message::Data(_) | Message::End) => unreachable!("a layer was not read to its end"),
            Err(_) => Ok(None),
        }
    }
}

/// Sends one layer. `None` when the consumer is gone or the layer has failed.
fn decode(layer: io::Result<Layer>, full: &SyncSender<Message>, returned: &Receiver<Vec<u8>>) -> Option<()> {
    let fail = |error| full.send(Message::Failed(error)).ok().and(None);
    let layer = match layer {
        Ok(layer) => layer,
        Err(error) => return fail(error),
    };
    full.send(Message::Start { descriptor: layer.descriptor, diff_id: layer.diff_id }).ok()?;
    let mut content = match decompress(BufReader::with_capacity(BUFFER, layer.blob)) {
        Ok(content) => content,
        Err(error) => return fail(error),
    };
    loop {
        let mut buffer = returned.try_recv().unwrap_or_default();
        buffer.resize(BUFFER, 0);
        let mut filled = 0;
        // Decoders give what one block of theirs holds; fewer, fuller buffers mean fewer switches.
        while filled < BUFFER {
            match content.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return fail(error),
            }
        }
        if filled == 0 {
            return full.send(Message::End).ok();
        }
        buffer.truncate(filled);
        full.send(Message::Data(buffer)).ok()?;
    }
}

impl LayerStream<'_> {
    /// Reads what is left, so that the whole content counts, and gives its digest.
    pub fn finish(mut self) -> io::Result<Digest> {
        while !self.fill_buf()?.is_empty() {
            self.position = self.buffer.len();
        }
        Ok(Digest::from_hash(std::mem::take(&mut self.hash)))
    }

    fn receive(&mut self) -> io::Result<()> {
        let used = std::mem::take(&mut self.buffer);
        if used.capacity() > 0 {
            // A decoder that has ended needs no buffers.
            let _ = self.pipeline.empty.send(used);
        }
        self.position = 0;
        match self.pipeline.messages.recv() {
            Ok(Message::Data(buffer)) => {
                self.bytes += buffer.len() as u64;
                if self.bytes > self.max_bytes {
                    let (max_bytes, blob_bytes) = (self.max_bytes, self.descriptor.size);
                    return Err(io::Error::other(Expansion { max_bytes, blob_bytes }));
                }
                self.hash.update(&buffer);
                self.buffer = buffer;
                Ok(())
            }
            Ok(Message::End) => {
                self.ended = true;
                Ok(())
            }
            Ok(Message::Failed(error)) => Err(error),
            Ok(Message::Start { .. }) => unreachable!("a layer has no end"),
            Err(_) => Err(io::Error::other("the decoder has died")),
        }
    }
}

impl BufRead for LayerStream<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.buffer.len() && !self.ended {
            self.receive()?;
        }
        Ok(&self.buffer[self.position..])
    }

    fn consume(&mut self, count: usize) {
        self.position += count;
    }
}

impl Read for LayerStream<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(out.len());
        out[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
