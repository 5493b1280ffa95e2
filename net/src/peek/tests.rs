use proptest::prelude::*;

use super::*;

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), long(content)].concat()
}

fn server_name_extension(name: &[u8]) -> Vec<u8> {
    extension(0, &long(&[vec![0], long(name)].concat()))
}

/// A ClientHello, without the records around it.
fn hello(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[4, 1, 2, 3, 4]); // session
    body.extend_from_slice(&long(&[0x13, 1, 0x13, 2])); // ciphers
    body.extend_from_slice(&[1, 0]); // compressions
    body.extend_from_slice(&long(extensions));
    let length = body.len() as u32;
    [vec![1], length.to_be_bytes()[1..].to_vec(), body].concat()
}

/// `handshake` in records of `size` bytes.
fn records(handshake: &[u8], size: usize) -> Vec<u8> {
    handshake.chunks(size).flat_map(|piece| [vec![22, 3, 1], long(piece)].concat()).collect()
}

fn named(name: &str) -> Peek {
    Peek::Name(name.to_owned())
}

#[test]
fn a_client_hello_names_its_server() {
    let padding = extension(21, &[0; 300]);
    let whole = hello(&[padding.clone(), server_name_extension(b"Example.ORG"), padding].concat());
    for size in [1, 3, 4, 100, 1 << 14] {
        let bytes = records(&whole, size);
        assert_eq!(server_name(&bytes), named("example.org"), "records of {size}");
        // What a client sends at once behind it does not matter.
        assert_eq!(server_name(&[&bytes[..], b"\x17\x03\x03"].concat()), named("example.org"));
        for end in 0..bytes.len() {
            assert_eq!(server_name(&bytes[..end]), Peek::Incomplete, "{end} bytes in records of {size}");
        }
    }
}

#[test]
fn a_client_hello_without_one_name_shows_none() {
    let twice = [server_name_extension(b"a.org"), server_name_extension(b"b.org")].concat();
    let two = extension(0, &long(&[vec![0], long(b"a.org"), vec![0], long(b"b.org")].concat()));
    let other = extension(0, &long(&[vec![1], long(b"a.org")].concat()));
    let short = extension(0, &[0, 9, 0, 0, 5]);
    for extensions in
        [vec![], twice, two, other, short, server_name_extension(b""), server_name_extension(b"a\0.org")]
    {
        assert_eq!(server_name(&records(&hello(&extensions), 1 << 14)), Peek::None);
    }
    let mut trailing = hello(&server_name_extension(b"a.org"));
    trailing.push(0);
    trailing[3] += 1;
    assert_eq!(server_name(&records(&trailing, 1 << 14)), Peek::None);
}

#[test]
fn what_is_no_client_hello_is_known_at_once() {
    let good = hello(&server_name_extension(b"a.org"));
    let mut interleaved = records(&good[..5], 5);
    interleaved.extend_from_slice(&[20, 3, 3]);
    let bytes: [&[u8]; 9] = [
        &[22, 2],
        &[22, 3, 1, 0, 0],
        &[22, 3, 1, 0x40, 1],
        &[22, 3, 1, 0, 9, 2],
        &[22, 3, 1, 0x40, 0, 1, 0, 0x40, 1],
        &[20, 3, 1],
        &[0x80, 0x2e, 1, 3, 1], // SSL 2
        &interleaved,
        b"\0",
    ];
    for bytes in bytes {
        assert_eq!(server_name(bytes), Peek::None, "{bytes:?}");
    }
}

#[test]
fn a_request_names_its_server() {
    for (request, name) in [
        ("GET / HTTP/1.1\r\nHost: Example.org\r\n\r\n", "example.org"),
        ("GET / HTTP/1.1\r\nAccept: */*\r\nhOST:example.org.:8080\r\n\r\nbody", "example.org"),
        ("OPTIONS * HTTP/1.1\r\nHost: a.org\r\n\r\n", "a.org"),
        ("GET http://A.org:80/path HTTP/1.1\r\nHost: a.org\r\n\r\n", "a.org"),
        ("GET http://a.org?x HTTP/1.0\r\nHost: a.org\r\n\r\n", "a.org"),
        ("CONNECT a.org:443 HTTP/1.1\r\nHost: a.org:443\r\n\r\n", "a.org"),
        ("GET / HTTP/1.1\r\nHost: 10.0.0.1:80\r\n\r\n", "10.0.0.1"),
        ("GET / HTTP/1.1\r\nHost: [2001:DB8::1]:80\r\n\r\n", "2001:db8::1"),
    ] {
        assert_eq!(server_name(request.as_bytes()), named(name), "{request}");
        let head = request.find("\r\n\r\n").unwrap() + 4;
        for end in 0..head {
            assert_eq!(server_name(&request.as_bytes()[..end]), Peek::Incomplete, "{}", &request[..end]);
        }
    }
}

#[test]
fn a_request_without_one_name_shows_none() {
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.org\r\nHost: a.org\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.org\r\nHOST: b.org\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.org, b.org\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a.org\r\n\r\n",
        "GET / HTTP/1.1\r\nX: y\r\n Host: a.org\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.org:80x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET http://b.org/ HTTP/1.1\r\nHost: a.org\r\n\r\n",
        "GET http://a.org@b.org/ HTTP/1.1\r\nHost: a.org\r\n\r\n",
        "CONNECT b.org:443 HTTP/1.1\r\nHost: a.org\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "SSH-2.0-OpenSSH_10.0\r\n",
        "EHLO a.org\r\n",
        "\u{16}\u{4}",
    ] {
        assert_eq!(server_name(request.as_bytes()), Peek::None, "{request}");
    }
    let fields = "X: y\r\n".repeat(200);
    let many = format!("GET / HTTP/1.1\r\n{fields}Host: a.org\r\n\r\n");
    assert_eq!(server_name(many.as_bytes()), Peek::None);
}

#[test]
fn nobody_waits_for_more_than_the_most() {
    let long = format!("GET /{}", "x".repeat(MAX_PEEK));
    assert_eq!(server_name(&long.as_bytes()[..MAX_PEEK - 1]), Peek::Incomplete);
    assert_eq!(server_name(&long.as_bytes()[..MAX_PEEK]), Peek::None);
    let small = records(&[&[1, 0, 0x40, 0][..], &[0; 1 << 14]].concat(), 1);
    assert_eq!(server_name(&small), Peek::None);
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let tls = (prop::collection::vec(any::<u8>(), 0..80), 1..90_usize)
        .prop_map(|(extensions, size)| records(&hello(&extensions), size));
    let named = ("[a-z.]{0,20}", 1..90_usize)
        .prop_map(|(name, size)| records(&hello(&server_name_extension(name.as_bytes())), size));
    let http = "(GET|CONNECT) [/a-z:.]{0,9} HTTP/1.[01]\r\n((Host|X) ?: ?[a-z.:]{0,9}\r\n){0,3}\r\n";
    let noise = prop::collection::vec(any::<u8>(), 0..200);
    let broken = (prop_oneof![tls.boxed(), named.boxed(), http.prop_map(String::into_bytes).boxed()])
        .prop_flat_map(|bytes| {
            let length = bytes.len();
            (Just(bytes), prop::option::of((0..length, any::<u8>())))
        })
        .prop_map(|(mut bytes, change)| {
            if let Some((at, byte)) = change {
                bytes[at] = byte;
            }
            bytes
        });
    prop_oneof![4 => broken, 1 => noise]
}

proptest! {
    /// What is known of the first bytes stays so, however many follow.
    #[test]
    fn more_bytes_change_no_answer(bytes in bytes(), more in prop::collection::vec(any::<u8>(), 0..20)) {
        let bytes = [bytes, more].concat();
        let mut known = Peek::Incomplete;
        for end in 0..=bytes.len() {
            let now = server_name(&bytes[..end]);
            prop_assert!(known == Peek::Incomplete || now == known, "{:?}, then {:?} at {}", known, now, end);
            known = now;
        }
    }
}
