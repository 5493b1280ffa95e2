//! Decodes a gzip file and drops the bytes: the floor for what can be made of a gzip layer, which `scripts/bench images`
//! compares with.
//!
//!     cargo run --release -p rootfs-builder --example inflate -- layer.tar.gz

use std::fs::File;
use std::io::{self, BufReader, Read};

use flate2::read::MultiGzDecoder;

fn main() -> io::Result<()> {
    let path = std::env::args_os().nth(1).ok_or_else(|| io::Error::other("usage: inflate FILE"))?;
    let mut decoder = MultiGzDecoder::new(BufReader::with_capacity(1 << 20, File::open(path)?));
    let mut buffer = vec![0; 1 << 18];
    let mut total = 0;
    loop {
        match decoder.read(&mut buffer)? {
            0 => break,
            read => total += read,
        }
    }
    println!("{total}");
    Ok(())
}
