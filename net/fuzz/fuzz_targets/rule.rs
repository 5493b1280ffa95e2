//! Any text as a rule and as a policy: what can be read is written so that it reads the same again, and opens no loopback address.
#![no_main]

use libfuzzer_sys::fuzz_target;
use net::policy::{Destination, Mode, Parts, Policy, Protocol, Rule, Verdict};

fn closed(policy: &Policy) {
    for address in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1", "0.0.0.0", "192.0.0.1"] {
        let address = address.parse().expect("an address");
        let destination = Destination { protocol: Protocol::Tcp, address, port: 80, own: false };
        let verdict = policy.decide(&destination, &["localhost".to_owned()]);
        assert!(matches!(verdict, Verdict::Deny { .. }), "{policy:?} opens {address}");
        assert!(!policy.decide_answer(address));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<Rule>() {
        Ok(rule) => {
            assert_eq!(rule.to_string().parse::<Rule>().as_ref(), Ok(&rule));
            let parts = Parts { mode: Mode::Allow, allow: vec![rule], ..Parts::default() };
            if let Ok(policy) = Policy::try_from(parts) {
                closed(&policy);
            }
        }
        Err(error) => assert!(error.to_string().len() < 8192),
    }
    if let Ok(policy) = serde_json::from_str::<Policy>(text) {
        let again = serde_json::to_string(&policy).expect("a policy can be written");
        assert_eq!(serde_json::from_str::<Policy>(&again).expect("and read"), policy);
        closed(&policy);
    }
});
