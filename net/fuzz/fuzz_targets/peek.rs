//! Any bytes as the first ones of a connection: a name that is one, and what is known stays so however many bytes follow.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use net::peek::{Peek, server_name};

fuzz_target!(|bytes: &[u8]| {
    let whole = server_name(bytes);
    if let Peek::Name(name) = &whole {
        assert!(!name.is_empty() && name.len() <= 253 && !name.ends_with('.'));
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
        assert!(name.bytes().all(plain) || name.parse::<IpAddr>().is_ok(), "{name:?}");
    }
    // Each prefix of a short input, some of a long one.
    for end in (0..bytes.len()).step_by(bytes.len() / 256 + 1) {
        let before = server_name(&bytes[..end]);
        assert!(before == Peek::Incomplete || before == whole, "{before:?} at {end}, {whole:?} at the end");
    }
});
