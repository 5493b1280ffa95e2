//! The server's name in the first bytes of a connection.
//!
//! What is seen is what the client says to whom it does not trust: with Encrypted ClientHello (RFC 9849) that is the outer name, of the
//! provider that hides the site. Since the gateway's name server gives out no keys for it, a client has them only from elsewhere. Nor does
//! a name bind a server that has many sites to one of them: in TLS the Host header is hidden, and of HTTP only the first request is
//! looked at.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use crate::name;

/// What the first bytes of a connection show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peek {
    /// A server's name, in lower case and without a dot at its end, or its address where the client names it by that.
    Name(String),
    /// No name, and more bytes would not change that.
    None,
    /// Not enough bytes to say.
    Incomplete,
}

/// Bytes after which there is no name where there is none yet.
pub const MAX_PEEK: usize = 16 * 1024;

/// The most header fields of an HTTP request.
const MAX_FIELDS: usize = 128;

/// The name of the server in `first`, the first bytes that a client has sent: of a TLS ClientHello, or of an HTTP/1 request.
pub fn server_name(first: &[u8]) -> Peek {
    let seen = &first[..first.len().min(MAX_PEEK)];
    let peek = match seen.first() {
        None => Peek::Incomplete,
        Some(&HANDSHAKE_RECORD) => tls(seen),
        Some(_) => http(seen),
    };
    if peek == Peek::Incomplete && first.len() >= MAX_PEEK { Peek::None } else { peek }
}

/// A record's type (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// Bytes before a record's content, and the most of those.
const RECORD_HEADER: usize = 5;
const MAX_RECORD: usize = 1 << 14;
/// A handshake message's type (section 4), and the bytes before its content.
const CLIENT_HELLO: u8 = 1;
const HANDSHAKE_HEADER: usize = 4;
/// An extension's type, and the type of a name in it (RFC 6066, section 3).
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// A ClientHello may be cut into records anywhere.
fn tls(seen: &[u8]) -> Peek {
    let mut handshake = Vec::new();
    let mut rest = seen;
    loop {
        // What is wrong shows as soon as it is there, so that nobody waits for more.
        if rest.first().is_some_and(|kind| *kind != HANDSHAKE_RECORD)
            || rest.get(1).is_some_and(|major| *major != 3)
        {
            return Peek::None;
        }
        let Some((header, content)) = rest.split_at_checked(RECORD_HEADER) else { return Peek::Incomplete };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > MAX_RECORD {
            return Peek::None;
        }
        let here = &content[..length.min(content.len())];
        handshake.extend_from_slice(here);
        if handshake.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Peek::None;
        }
        if let Some((header, hello)) = handshake.split_at_checked(HANDSHAKE_HEADER) {
            let length = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
            if length > MAX_PEEK {
                return Peek::None;
            }
            if let Some(hello) = hello.get(..length) {
                return sni(Fields(hello)).map_or(Peek::None, Peek::Name);
            }
        }
        if here.len() < length {
            return Peek::Incomplete;
        }
        rest = &content[length..];
    }
}

/// The name in a ClientHello (RFC 8446, section 4.1.2).
fn sni(mut hello: Fields<'_>) -> Option<String> {
    hello.take(2 + 32)?; // version, random
    let _session = hello.short()?;
    let _ciphers = hello.long()?;
    let _compressions = hello.short()?;
    let mut extensions = hello.long()?;
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut content = extensions.long()?;
        if kind != SERVER_NAME {
            continue;
        }
        // Of two, who says which one a server takes.
        if found.is_some() {
            return None;
        }
        let mut names = content.long()?;
        let (kind, name) = (names.u8()?, names.long()?);
        if kind != HOST_NAME || !names.0.is_empty() || !content.0.is_empty() {
            return None;
        }
        found = Some(name::parse(std::str::from_utf8(name.0).ok()?).ok()?);
    }
    if hello.0.is_empty() { found } else { None }
}

/// Bytes that are taken apart from their start.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// What stands behind its length in one byte.
    fn short(&mut self) -> Option<Self> {
        let length = self.u8()?;
        self.take(length.into()).map(Self)
    }

    /// What stands behind its length in two bytes.
    fn long(&mut self) -> Option<Self> {
        let length = self.u16()?;
        self.take(length.into()).map(Self)
    }
}

/// The Host field of a request (RFC 9112, section 3.2), with which a target that is a whole URL or an authority has to agree.
fn http(seen: &[u8]) -> Peek {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(seen) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Peek::Incomplete,
        Err(_) => return Peek::None,
    }
    let mut hosts = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Peek::None };
    let Some(name) = std::str::from_utf8(host.value).ok().and_then(host_name) else { return Peek::None };
    let target = request.path.unwrap_or_default();
    let agrees = if target.starts_with('/') || target == "*" {
        true
    } else {
        let authority = match target.split_once("://") {
            Some((_, rest)) => rest.split(['/', '?', '#']).next().unwrap_or_default(),
            None => target,
        };
        host_name(authority).is_some_and(|other| other == name)
    };
    if agrees { Peek::Name(name) } else { Peek::None }
}

/// The host of `HOST[:PORT]`.
fn host_name(authority: &str) -> Option<String> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let port_alone = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        let address = address.parse().ok().filter(IpAddr::is_ipv6)?;
        return port_alone.then(|| address.to_string());
    }
    let (host, port) = authority.split_once(':').unwrap_or((authority, "0"));
    if is_port(port) { name::parse(host).ok() } else { None }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}
