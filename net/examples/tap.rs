//! The engine behind a tap device, for measurements and experiments: `scripts/bench net` uses it.
//!
//! ```text
//! tap NAME [CONFIG]
//! ```
//!
//! makes the tap device NAME in this network namespace, and connects to what this namespace reaches. CONFIG is an engine's, in JSON.
//! Move the device elsewhere, and give it the address 192.0.0.2/30 and a route by 192.0.0.1. Ends with its standard input.

#[path = "../tests/namespaces/tap.rs"]
mod tap;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use net::engine::{Config, Engine};
use net::wire::Features;
use tap::Tap;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().ok_or("usage: tap NAME [CONFIG]")?;
    let config: Config = match arguments.next() {
        Some(config) => serde_json::from_str(&config)?,
        None => serde_json::from_str(r#"{"policy": {}, "resolvers": [], "ipv6": true}"#)?,
    };
    let features = Features { checksum: true, tso4: true, tso6: true };
    let mut tap = Tap::new(&name, features)?;
    let mut engine = Engine::new(config, Box::new(|denial| eprintln!("denied: {denial:?}")))?;
    engine.attach(features);
    println!("ready");
    let ended = Arc::new(AtomicBool::new(false));
    let end = ended.clone();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        end.store(true, Ordering::Relaxed);
    });
    tap.carry(&mut engine, |_| ended.load(Ordering::Relaxed))?;
    Ok(())
}
