//! Any bytes as a specification, as a request to a machine, and as what a machine writes: taken or refused. What is taken is
//! what is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::control::{Greeting, Request, Response};
use vmm::exit::Exit;
use vmm::spec::{Cpus, MachineSpec, MemoryMib};

fuzz_target!(|input: &[u8]| {
    if let Ok(spec) = serde_json::from_slice::<MachineSpec>(input) {
        assert!((1..=Cpus::MAX).contains(&spec.cpus.get()));
        assert!((MemoryMib::MIN..=MemoryMib::MAX).contains(&u32::from(spec.memory)));
        let _ = (spec.boot_timeout(), spec.ttl());
        let json = serde_json::to_string(&spec).unwrap();
        let again: MachineSpec = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), json);
    }
    round_trip::<Request>(input);
    round_trip::<Response>(input);
    round_trip::<Greeting>(input);
    round_trip::<Exit>(input);
});

fn round_trip<T>(input: &[u8])
where
    T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug,
{
    if let Ok(value) = serde_json::from_slice::<T>(input) {
        let json = serde_json::to_vec(&value).unwrap();
        assert_eq!(serde_json::from_slice::<T>(&json).unwrap(), value);
    }
}
