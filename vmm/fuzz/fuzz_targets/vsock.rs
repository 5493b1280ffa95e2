//! Any packets in any chains to the socket device: see [`vmm::devices::vsock::fuzz`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmm::devices::vsock::fuzz::guest(input));
