use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

fn rule(text: &str) -> Rule {
    text.parse().unwrap()
}

fn policy(mode: Mode, allow: &[&str], deny: &[&str]) -> Policy {
    let rules = |texts: &[&str]| texts.iter().map(|text| rule(text)).collect();
    Parts { mode, allow: rules(allow), deny: rules(deny), host_ports: vec![] }.try_into().unwrap()
}

fn to(protocol: Protocol, address: &str, port: u16) -> Destination {
    Destination { protocol, address: address.parse().unwrap(), port, own: false }
}

fn tcp(address: &str, port: u16) -> Destination {
    to(Protocol::Tcp, address, port)
}

fn denied(verdict: Verdict) -> String {
    match verdict {
        Verdict::Deny { rule } => rule,
        other => panic!("{other:?}"),
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn rules_are_read_and_written() {
    for (text, canonical) in [
        ("*", "*"),
        ("*:443", "*:443"),
        ("udp:*:1-65535", "udp:*:1-65535"),
        ("Example.ORG.", "example.org"),
        ("*.example.org:80-80", "*.example.org:80"),
        ("tcp:db:5432", "tcp:db:5432"),
        ("TCP:db:5432", "tcp:db:5432"),
        ("*.tcp:44", "*.tcp:44"),
        ("_dmarc.example.org", "_dmarc.example.org"),
        ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.3/32:22", "10.1.2.3:22"),
        ("udp:10.0.0.0/8:53", "udp:10.0.0.0/8:53"),
        ("2001:db8:0::1", "2001:db8::1"),
        ("tcp:fd00::/8", "tcp:fd00::/8"),
        ("[fd00::/8]", "fd00::/8"),
        ("udp:[2001:db8::1]:443", "udp:[2001:db8::1]:443"),
        ("::/0", "::/0"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ] {
        assert_eq!(rule(text).to_string(), canonical, "{text}");
    }
}

#[test]
fn what_is_no_rule_says_why() {
    let long = "a".repeat(64);
    for (text, problem) in [
        ("", "no place"),
        ("tcp:", "no place"),
        (":443", "no place"),
        ("exmaple..org", "an empty label"),
        (".example.org", "an empty label"),
        ("*.", "an empty name"),
        ("foo.*.org", "* stands alone or before the first dot"),
        ("*example.org", "* stands alone or before the first dot"),
        ("**", "* stands alone or before the first dot"),
        ("münchen.de", "xn--"),
        ("exa mple.org", "' ' is no character"),
        ("-a.org", "hyphen"),
        (&long, "more than 63 bytes"),
        ("https://example.org/", "a URL"),
        ("example.org/path", "a path"),
        ("icmp:10.0.0.1", "the protocol \"icmp\""),
        ("http:example.org", "the protocol \"http\""),
        ("443", "a port alone: write *:443"),
        ("tcp:443", "a port alone: write *:443"),
        ("Tcp:443", "a port alone: write *:443"),
        ("tcp", "a protocol alone: write tcp:*"),
        ("Udp.:443", "a protocol alone: write udp:*"),
        ("example.org:0", "the port \"0\""),
        ("example.org:http", "the port \"http\""),
        ("example.org:65536", "the port \"65536\""),
        ("example.org:+80", "the port \"+80\""),
        ("example.org:", "the port \"\""),
        ("example.org:1-2-3", "the port \"1-2-3\""),
        ("example.org:90-80", "the ports 90-80"),
        ("10.0.0.1/8", "for the block write 10.0.0.0/8, for the address 10.0.0.1"),
        ("10.0.0.0/33", "the prefix length \"33\""),
        ("10.0.0.0/+8", "the prefix length \"+8\""),
        ("10.0.0", "not an address"),
        ("10.0.0.256", "not an address"),
        ("0x7f.1", "not an address"),
        ("127.0x1", "not an address"),
        ("[10.0.0.1]:80", "brackets are for IPv6"),
        ("[fd00::1", "a bracket without"),
        ("[fd00::1]80", "a bracket without"),
        ("fd00:1:2:3:4:5:6:7:80", "an IPv6 address with a port has brackets"),
        ("::ffff:10.0.0.1", "write 10.0.0.1"),
        ("[::ffff:a00:1]:80", "write 10.0.0.1"),
    ] {
        let error = text.parse::<Rule>().unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
        assert!(error.starts_with(&format!("\"{text}\": ")), "{error}");
    }
    let error = "x".repeat(100_000).parse::<Rule>().unwrap_err().to_string();
    assert!(error.contains("longer than") && error.len() < 400, "{error}");
}

#[test]
fn a_policy_is_only_made_valid() {
    let read = |text: &str| serde_json::from_str::<Policy>(text);
    let error = |text: &str| read(text).unwrap_err().to_string();
    let text = r#"{"mode":"allow","allow":["*.example.org"],"deny":["udp:*"],"hostPorts":[8080]}"#;
    let policy = read(text).unwrap();
    assert_eq!(serde_json::to_string(&policy).unwrap(), text);
    assert!(policy.host_port(8080) && !policy.host_port(80));
    assert_eq!(read("{}").unwrap(), Policy::default());
    assert!(!read(r#"{"mode":"none","hostPorts":[80]}"#).unwrap().host_port(80));

    assert!(error(r#"{"mode":"alow"}"#).contains("alow"));
    assert!(error(r#"{"alow":[]}"#).contains("alow"));
    assert!(error(r#"{"deny":["a..b"]}"#).starts_with("\"a..b\": an empty label"));
    assert!(
        error(r#"{"allow":["10.0.0.1","example.org"]}"#)
            .starts_with("allow[1]: \"example.org\": in mode public")
    );
    assert!(error(r#"{"hostPorts":[1,0]}"#).starts_with("hostPorts[1]: there is no port 0"));
    let many = serde_json::json!({ "deny": vec!["*"; 257] }).to_string();
    assert!(error(&many).starts_with("deny: 257 entries, of at most 256"));
    for closed in
        ["127.0.0.1:5432", "::1", "224.0.0.0/4", "192.0.0.1", "2002::/16", "fd76:6f69:6472::1", "4000::/3"]
    {
        let error = error(&serde_json::json!({ "mode": "allow", "allow": [closed] }).to_string());
        assert!(
            error.starts_with(&format!("allow[0]: \"{closed}\": ")) && error.contains("hostPorts"),
            "{error}"
        );
    }
}

#[test]
fn everybody_reaches_what_is_public_and_nothing_else() {
    let public = Policy::default();
    for address in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::1.1.1.1"] {
        assert_eq!(public.decide(&tcp(address, 443), &[]), Verdict::Allow, "{address}");
        assert!(public.decide_answer(address.parse().unwrap()));
    }
    for (address, rule) in [
        ("0.0.0.0", "this network (0.0.0.0/8)"),
        ("10.0.0.1", "private address (10.0.0.0/8)"),
        ("172.31.255.255", "private address (172.16.0.0/12)"),
        ("192.168.1.1", "private address (192.168.0.0/16)"),
        ("127.1.2.3", "loopback (127.0.0.0/8)"),
        ("169.254.1.1", "link-local address (169.254.0.0/16)"),
        ("169.254.169.254", "metadata service (169.254.169.254)"),
        ("100.100.100.200", "metadata service (100.100.100.200)"),
        ("168.63.129.16", "metadata service (168.63.129.16)"),
        ("fd00:ec2::254", "metadata service (fd00:ec2::254)"),
        ("100.64.0.1", "shared address of a provider (100.64.0.0/10)"),
        ("192.0.0.1", "the gateway's own network (192.0.0.0/24)"),
        ("fd76:6f69:6472::1", "the gateway's own network (fd76:6f69:6472::/64)"),
        ("192.0.2.1", "documentation (192.0.2.0/24)"),
        ("198.19.255.255", "benchmarking (198.18.0.0/15)"),
        ("224.0.0.1", "multicast (224.0.0.0/4)"),
        ("240.0.0.1", "reserved address (240.0.0.0/4)"),
        ("255.255.255.255", "broadcast (255.255.255.255)"),
        ("::", "unspecified address (::)"),
        ("::1", "loopback (::1)"),
        ("::7f00:1", "IPv4-compatible address (::/96)"),
        ("::ffff:1.1.1.1", "IPv4-mapped address (::ffff:0.0.0.0/96)"),
        ("::ffff:0:1.1.1.1", "IPv4-translated address (::ffff:0:0:0/96)"),
        ("64:ff9b::169.254.169.254", "metadata service (169.254.169.254)"),
        ("64:ff9b::10.0.0.1", "private address (10.0.0.0/8)"),
        ("64:ff9b:1::1.1.1.1", "NAT64 of a provider (64:ff9b:1::/48)"),
        ("2001:0:1::1", "Teredo (2001::/32)"),
        ("2001:db8::1", "documentation (2001:db8::/32)"),
        ("2002:101:101::1", "6to4 (2002::/16)"),
        ("fc00::1", "unique local address (fc00::/7)"),
        ("fe80::1", "link-local address (fe80::/10)"),
        ("fec0::1", "site-local address (fec0::/10)"),
        ("ff02::1", "multicast (ff00::/8)"),
        ("5f00::1", "address outside of 2000::/3 (::/0)"),
    ] {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            let verdict = public.decide(&to(protocol, address, 80), &names(&["localhost"]));
            assert_eq!(denied(verdict), format!("public: {rule}"), "{address}");
        }
        assert!(!public.decide_answer(address.parse().unwrap()), "{address}");
    }
    assert_eq!(public.decide_name("anything.example"), Ok(()));
}

#[test]
fn the_gateway_and_the_guest_are_in_closed_blocks() {
    use crate::address::{GATEWAY, GATEWAY6, GUEST, GUEST6};
    let wire: [IpAddr; 4] = [GATEWAY.into(), GUEST.into(), GATEWAY6.into(), GUEST6.into()];
    for address in wire {
        assert!(class::never_opened(&address.into()).is_some(), "{address}");
    }
}

#[test]
fn a_closed_address_is_opened_by_a_rule_inside_its_class_alone() {
    for mode in [Mode::Public, Mode::Allow] {
        let open = policy(mode, &["10.0.0.0/8", "tcp:192.168.1.5:5432", "169.254.0.0/16", "fd00::/8"], &[]);
        assert_eq!(open.decide(&tcp("10.1.2.3", 1), &[]), Verdict::Allow);
        assert_eq!(open.decide(&to(Protocol::Icmp, "10.1.2.3", 0), &[]), Verdict::Allow);
        assert_eq!(open.decide(&tcp("192.168.1.5", 5432), &[]), Verdict::Allow);
        assert_eq!(open.decide(&tcp("fd12::1", 80), &[]), Verdict::Allow);
        assert_eq!(open.decide(&tcp("169.254.1.1", 80), &[]), Verdict::Allow);
        for closed in [
            tcp("192.168.1.5", 5433),
            to(Protocol::Udp, "192.168.1.5", 5432),
            to(Protocol::Icmp, "192.168.1.5", 0),
            tcp("192.168.1.6", 5432),
            tcp("172.16.0.1", 80),
            tcp("127.0.0.1", 80),
            tcp("169.254.169.254", 80),
            tcp("fd00:ec2::254", 80),
            tcp("fd76:6f69:6472::1", 80),
            tcp("64:ff9b::10.1.2.3", 80),
            tcp("::ffff:10.1.2.3", 80),
        ] {
            denied(open.decide(&closed, &[]));
        }
        assert!(open.decide_answer("10.1.2.3".parse().unwrap()));
        assert!(open.decide_answer("192.168.1.5".parse().unwrap()));
        assert!(!open.decide_answer("172.16.0.1".parse().unwrap()));
    }
    let wide = policy(Mode::Allow, &["*", "0.0.0.0/0", "::/0", "8.0.0.0/5", "64:ff9b::/96", "db"], &[]);
    assert_eq!(wide.decide(&tcp("1.1.1.1", 80), &[]), Verdict::Allow);
    for address in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00::1", "64:ff9b::10.0.0.1"] {
        denied(wide.decide(&tcp(address, 80), &names(&["db"])));
    }
    let metadata = policy(Mode::Public, &["169.254.169.254:80"], &[]);
    assert_eq!(metadata.decide(&tcp("169.254.169.254", 80), &[]), Verdict::Allow);
}

#[test]
fn an_address_of_this_machine_is_opened_by_a_rule_for_it_alone() {
    let own = |address: &str| Destination { own: true, ..tcp(address, 443) };
    for mode in [Mode::Public, Mode::Allow] {
        let rules = [
            "9.9.9.0/24",
            "9.9.9.10",
            "2600::/64",
            "10.0.0.0/8",
            "10.1.2.0/24",
            "10.1.2.4",
            "fd00::/8",
            "fd00::7",
            "tcp:9.9.9.11:22",
            "tcp:10.1.2.5:22",
        ];
        let some = policy(mode, &rules, &[]);
        for address in
            ["9.9.9.9", "9.9.9.11", "2600::1", "64:ff9b::9.9.9.10", "10.1.2.3", "10.1.2.5", "fd00::8"]
        {
            let verdict = some.decide(&own(address), &[]);
            assert_eq!(denied(verdict), format!("{mode}: address of this machine"), "{address}");
        }
        for address in ["9.9.9.10", "10.1.2.4", "fd00::7"] {
            assert_eq!(some.decide(&own(address), &[]), Verdict::Allow, "{address}");
        }
        assert_eq!(some.decide(&tcp("10.1.2.3", 443), &[]), Verdict::Allow);
        let class = format!("{mode}: private address (192.168.0.0/16)");
        assert_eq!(denied(some.decide(&own("192.168.1.1"), &[])), class);
        assert_eq!(denied(some.decide(&own("127.0.0.1"), &[])), format!("{mode}: loopback (127.0.0.0/8)"));
        let both = policy(mode, &["9.9.9.10"], &["*:443"]);
        assert_eq!(denied(both.decide(&own("9.9.9.10"), &[])), "deny: *:443");
    }
    let wide = policy(Mode::Allow, &["*", "0.0.0.0/0", "own.test"], &[]);
    assert_eq!(
        denied(wide.decide(&own("9.9.9.10"), &names(&["own.test"]))),
        "allow: address of this machine"
    );
    assert_eq!(wide.decide(&tcp("9.9.9.10", 443), &[]), Verdict::Allow);
}

#[test]
fn deny_rules_come_first() {
    let deny = ["*.example.org", "tcp:10.1.0.0/16", "*:25", "1.0.0.0/8"];
    let some = policy(Mode::Public, &["10.0.0.0/8"], &deny);
    assert_eq!(denied(some.decide(&tcp("10.1.2.3", 80), &[])), "deny: tcp:10.1.0.0/16");
    assert_eq!(some.decide(&to(Protocol::Udp, "10.1.2.3", 80), &[]), Verdict::Allow);
    assert_eq!(denied(some.decide(&tcp("9.9.9.9", 25), &[])), "deny: *:25");
    assert_eq!(denied(some.decide(&tcp("64:ff9b::1.1.1.1", 22), &[])), "deny: 1.0.0.0/8");
    let pinned = names(&["other.net", "a.b.example.org"]);
    assert_eq!(denied(some.decide(&tcp("9.9.9.9", 22), &pinned)), "deny: *.example.org");
    assert_eq!(some.decide(&tcp("9.9.9.9", 22), &names(&["example.org", "badexample.org"])), Verdict::Allow);
    // The name may also be one that the guest has looked up elsewhere.
    assert_eq!(some.decide(&tcp("9.9.9.9", 443), &[]), Verdict::AllowNamed);
    let web = tcp("9.9.9.9", 443);
    assert_eq!(some.decide_server_name(Some("A.example.org."), &web).unwrap_err(), "deny: *.example.org");
    assert_eq!(some.decide_server_name(Some("example.org"), &web), Ok(()));
    assert_eq!(some.decide_server_name(None, &web), Ok(()));
    assert_eq!(denied(some.decide(&to(Protocol::Udp, "9.9.9.9", 443), &[])), "QUIC: names cannot be checked");
    assert_eq!(some.decide_name("x.Example.org.").unwrap_err(), "deny: *.example.org");
    assert_eq!(some.decide_name("example.org"), Ok(()));

    let port = policy(Mode::Public, &[], &["example.org:8443"]);
    assert_eq!(port.decide_name("example.org"), Ok(()));
    assert_eq!(port.decide(&tcp("9.9.9.9", 443), &[]), Verdict::Allow);
    assert_eq!(port.decide(&tcp("9.9.9.9", 8443), &[]), Verdict::AllowNamed);
    let all = policy(Mode::Public, &[], &["*"]);
    assert_eq!(denied(all.decide(&tcp("9.9.9.9", 443), &[])), "deny: *");
    assert_eq!(all.decide_name("example.org").unwrap_err(), "deny: *");
}

#[test]
fn nothing_is_reached_in_mode_none() {
    let none = policy(Mode::None, &["*", "10.0.0.0/8"], &[]);
    assert_eq!(denied(none.decide(&tcp("1.1.1.1", 80), &[])), "none: no network");
    assert_eq!(denied(none.decide(&tcp("10.0.0.1", 80), &[])), "none: no network");
    assert!(none.decide_name("example.org").is_err());
    assert!(none.decide_server_name(Some("example.org"), &tcp("1.1.1.1", 80)).is_err());
}

#[test]
fn domains_need_a_name_that_led_there_and_one_that_is_shown() {
    let rules =
        ["example.org", "*.example.net:443", "tcp:git.example.com:22", "udp:time.example.com:123", "9.9.9.9"];
    let some = policy(Mode::Allow, &rules, &[]);
    let (org, net) = (names(&["x.test", "example.org"]), names(&["a.example.net"]));
    let git = names(&["git.example.com"]);
    let web = tcp("1.1.1.1", 443);

    assert_eq!(denied(some.decide(&web, &[])), "allow: no rule for it");
    assert_eq!(
        denied(some.decide(&web, &names(&["sub.example.org", "example.org.evil", "example.net"]))),
        "allow: no rule for it"
    );
    assert_eq!(some.decide(&web, &org), Verdict::AllowNamed);
    assert_eq!(some.decide(&tcp("1.1.1.1", 8080), &org), Verdict::AllowNamed);
    assert_eq!(some.decide(&web, &net), Verdict::AllowNamed);
    assert_eq!(denied(some.decide(&tcp("1.1.1.1", 80), &net)), "allow: no rule for it");
    assert_eq!(some.decide(&tcp("1.1.1.1", 22), &git), Verdict::Allow);
    assert_eq!(denied(some.decide(&tcp("1.1.1.1", 443), &git)), "allow: no rule for it");
    let time = to(Protocol::Udp, "1.1.1.1", 123);
    assert_eq!(some.decide(&time, &names(&["time.example.com"])), Verdict::Allow);
    assert_eq!(some.decide(&to(Protocol::Icmp, "1.1.1.1", 0), &org), Verdict::Allow);
    denied(some.decide(&to(Protocol::Icmp, "1.1.1.1", 0), &net));

    assert_eq!(some.decide_server_name(Some("EXAMPLE.org"), &web), Ok(()));
    assert_eq!(some.decide_server_name(Some("b.example.net"), &web), Ok(()));
    assert_eq!(
        some.decide_server_name(Some("evil.test"), &web).unwrap_err(),
        "allow: no rule for the server name evil.test"
    );
    assert!(some.decide_server_name(Some("git.example.com"), &web).is_err());
    assert_eq!(
        some.decide_server_name(None, &web).unwrap_err(),
        "allow: the connection shows no server name"
    );

    for (destination, rule) in [
        (to(Protocol::Udp, "1.1.1.1", 443), "QUIC: names cannot be checked"),
        (to(Protocol::Udp, "1.1.1.1", 53), "DNS: names are asked of the gateway"),
        (tcp("1.1.1.1", 853), "DNS over TLS: names cannot be checked"),
    ] {
        assert_eq!(denied(some.decide(&destination, &org)), rule);
    }
    // An address that a rule names needs no name.
    assert_eq!(some.decide(&tcp("9.9.9.9", 443), &[]), Verdict::Allow);
    assert_eq!(some.decide(&to(Protocol::Udp, "9.9.9.9", 443), &[]), Verdict::Allow);

    assert_eq!(some.decide_name("example.org"), Ok(()));
    assert_eq!(some.decide_name("a.b.example.net"), Ok(()));
    assert_eq!(some.decide_name("git.example.com"), Ok(()));
    assert_eq!(some.decide_name("secret.evil.test").unwrap_err(), "allow: no rule for it");
}

#[test]
fn a_deny_rule_about_names_also_holds_for_what_is_allowed() {
    let some = policy(Mode::Allow, &["*.example.org", "9.9.9.0/24", "*:8080"], &["evil.example.org"]);
    let web = tcp("9.9.9.9", 443);
    assert_eq!(some.decide(&web, &[]), Verdict::AllowNamed);
    assert_eq!(some.decide_server_name(None, &web), Ok(()));
    assert!(some.decide_server_name(Some("evil.example.org"), &web).is_err());
    assert_eq!(some.decide(&tcp("1.1.1.1", 8080), &[]), Verdict::Allow);
    assert!(some.decide_name("evil.example.org").is_err());
}

#[test]
fn no_name_is_asked_for_that_no_rule_covers() {
    for rules in [&["9.9.9.9"][..], &["10.0.0.0/8", "::/0"], &["0.0.0.0/0:53", "a.test"]] {
        let some = policy(Mode::Allow, rules, &[]);
        assert_eq!(some.decide_name("x.test").unwrap_err(), "allow: no rule for it", "{rules:?}");
    }
    assert_eq!(policy(Mode::Allow, &["*:443", "a.test"], &[]).decide_name("x.test"), Ok(()));
    assert!(policy(Mode::Allow, &["9.9.9.9", "a.test"], &[]).decide_name("x.test").is_err());
    assert!(policy(Mode::Allow, &[], &[]).decide_name("x.test").is_err());
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
    ]
}

/// The block with `address` of so many bits, modulo 33 for IPv4.
fn block(address: IpAddr, prefix: u8) -> String {
    match address {
        IpAddr::V4(v4) => {
            let prefix = u32::from(prefix % 33);
            let bits = v4.to_bits() & u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            format!("{}/{prefix}", Ipv4Addr::from_bits(bits))
        }
        IpAddr::V6(v6) => {
            let bits = v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            format!("[{}/{prefix}]", Ipv6Addr::from_bits(bits))
        }
    }
}

fn place() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("*".to_owned()),
        r"(\*\.)?([a-z0-9_]([a-z0-9-]{0,8}[a-z0-9])?\.){0,4}[a-z]{1,8}",
        (address(), 0..=128_u8).prop_map(|(address, prefix)| block(address, prefix)),
    ]
}

proptest! {
    /// So that nobody has to find it out of what is denied anyhow.
    #[test]
    fn that_an_address_is_an_own_one_allows_nothing(
        address in address(),
        only in any::<bool>(),
        around in 0..=128_u8,
        more in prop::collection::vec(place(), 0..3),
        port in prop_oneof![Just(53), Just(80), Just(443), Just(8080)],
    ) {
        let mode = if only { Mode::Allow } else { Mode::Public };
        let allow = more.into_iter().chain([block(address, around)]).map(|text| rule(&text)).collect();
        let parts = Parts { mode, allow, deny: vec![], host_ports: vec![] };
        // There are blocks that no rule opens.
        let Ok(some) = Policy::try_from(parts) else { return Ok(()) };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let other = Destination { protocol, address, port, own: false };
            let own = Destination { own: true, ..other };
            if let Verdict::Deny { rule } = some.decide(&other, &[]) {
                prop_assert_eq!(some.decide(&own, &[]), Verdict::Deny { rule });
            }
        }
    }

    #[test]
    fn a_rule_reads_back_as_it_was_written(
        protocol in prop_oneof![Just(""), Just("tcp:"), Just("udp:")],
        place in place(),
        ports in prop::option::of((1..=u16::MAX, 0..100_u16)),
    ) {
        let ports = ports.map(|(first, more)| format!(":{first}-{}", first.saturating_add(more)));
        let text = format!("{protocol}{place}{}", ports.unwrap_or_default());
        let read: Rule = text.parse().unwrap();
        prop_assert_eq!(read.to_string().parse::<Rule>().unwrap(), read);
    }

    #[test]
    fn no_text_is_read_as_two_rules(text in ".{0,40}") {
        if let Ok(read) = text.parse::<Rule>() {
            prop_assert_eq!(read.to_string().parse::<Rule>().unwrap(), read);
        }
    }

    #[test]
    fn an_address_inside_another_is_closed_where_it_is(bits in any::<u32>()) {
        let v4 = Ipv4Addr::from_bits(bits);
        let [.., high, low] = v4.to_ipv6_mapped().segments();
        let closed = class::of(v4.into()).is_some();
        let wrapped = |groups: [u16; 8]| class::of(IpAddr::from(groups)).is_some();
        prop_assert_eq!(wrapped([0x64, 0xff9b, 0, 0, 0, 0, high, low]), closed);
        for groups in [
            [0, 0, 0, 0, 0, 0xffff, high, low],
            [0, 0, 0, 0, 0, 0, high, low],
            [0, 0, 0, 0, 0xffff, 0, high, low],
            [0x64, 0xff9b, 1, 0, 0, 0, high, low],
            [0x2002, high, low, 0, 0, 0, 0, 1],
            [0x2001, 0, high, low, 0, 0, !high, !low],
        ] {
            prop_assert!(wrapped(groups));
        }
    }

    #[test]
    fn what_the_standard_library_knows_as_private_is_closed(bits in any::<u32>(), bits6 in any::<u128>()) {
        let v4 = Ipv4Addr::from_bits(bits);
        if v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_documentation() {
            prop_assert!(class::of(v4.into()).is_some());
        }
        // Of random addresses few are in small blocks, so that each is also looked at with a first group of one.
        for group in [(bits6 >> 112) as u16, 0xfc00, 0xfd00, 0xfe80, 0xfec0, 0xff02, 0] {
            let v6 = Ipv6Addr::from_bits(bits6 << 16 >> 16 | u128::from(group) << 112);
            let global = (group & 0xe000) == 0x2000;
            prop_assert!(global || class::of(v6.into()).is_some(), "{}", v6);
        }
    }

    #[test]
    fn no_rule_opens_loopback(text in place(), address in prop_oneof![Just("127.0.0.1"), Just("::1"), Just("::ffff:127.0.0.1"), Just("64:ff9b::127.0.0.1")]) {
        let parts = Parts { mode: Mode::Allow, allow: vec![rule(&text)], ..Parts::default() };
        if let Ok(policy) = Policy::try_from(parts) {
            denied(policy.decide(&tcp(address, 80), &names(&["localhost"])));
        }
    }
}
