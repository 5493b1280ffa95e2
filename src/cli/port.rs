//! `voidrun port`, and ports as `-p` has them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use clap::Subcommand;
use hyper::Method;

use super::error::CliError;
use super::{Context, table, tell, wait_for};
use crate::api::types::{Port, PortProtocol};
use crate::client::{Client, segment};

/// Publish ports of sandboxes on this machine, list them, take them back
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Add(AddArgs),
    Rm(RmArgs),
    Ls(LsArgs),
}

/// Publish ports of a sandbox, which may run or not
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Clients of this machine's port reach the port of the sandbox's own loopback (127.0.0.1), over a connection of their own,
without any network of the sandbox. Prints the address of each, and where it leads.

Examples:
  voidrun port add dev 8080:80
  voidrun port add dev 3000               # a free port of this machine is picked
  voidrun port add dev 127.0.0.1:5432:5432 '[::1]:5432:5432'
  voidrun port add dev 5353:53/udp
  voidrun port add dev 0.0.0.0:8080:80    # everybody who reaches this machine reaches it"
)]
pub(crate) struct AddArgs {
    /// A name, an id, or the beginning of one
    sandbox: String,
    /// The ports
    #[arg(required = true, value_name = "[[ADDR:]HOST:]GUEST[/udp]", value_parser = port)]
    ports: Vec<Port>,
}

/// Publish ports no more; what is connected by TCP stays so
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun port rm dev 8080                # of TCP and of UDP")]
pub(crate) struct RmArgs {
    /// A name, an id, or the beginning of one
    sandbox: String,
    /// Ports of this machine
    #[arg(required = true, value_name = "HOSTPORT", value_parser = clap::value_parser!(u16).range(1..))]
    ports: Vec<u16>,
}

/// List the ports of a sandbox
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun port ls dev
  voidrun port ls dev --json | jq -r '.[0].url'")]
pub(crate) struct LsArgs {
    /// A name, an id, or the beginning of one
    sandbox: String,
}

/// The flag of those who make sandboxes.
#[derive(Debug, clap::Args)]
pub(super) struct Published {
    /// Publish a port of the sandbox on this machine, at 127.0.0.1 where no address is given. Without HOST, or with 0, a free one is
    /// picked and told; can be given again
    #[arg(short, long = "publish", value_name = "[[ADDR:]HOST:]GUEST[/udp]", value_parser = port)]
    pub(super) ports: Vec<Port>,
}

/// As docker has it, without ranges.
fn port(text: &str) -> Result<Port, String> {
    const FORM: &str =
        "expected [[ADDR:]HOST:]GUEST[/udp], as 8080:80, 127.0.0.1:8080:80, [::1]:8080:80, 80 or 5353:53/udp";
    let (rest, protocol) = match text.split_once('/') {
        None => (text, PortProtocol::Tcp),
        Some((rest, "tcp")) => (rest, PortProtocol::Tcp),
        Some((rest, "udp")) => (rest, PortProtocol::Udp),
        Some((_, other)) => return Err(format!("{other:?} is no protocol: expected tcp or udp")),
    };
    let (address, rest) = match rest.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        Some((address, rest)) => (Some(address), rest),
        None => match rest.rsplitn(3, ':').collect::<Vec<_>>()[..] {
            [_, _, address] => (Some(address), &rest[address.len() + 1..]),
            _ => (None, rest),
        },
    };
    let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is no port: {FORM}"));
    let (host, guest) = match rest.split_once(':') {
        Some(("", guest)) => (None, guest),
        Some((host, guest)) => (Some(number(host)?).filter(|port| *port != 0), guest),
        None => (None, rest),
    };
    let address = match address {
        None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(address) if address.contains(':') != text.starts_with('[') => return Err(FORM.to_owned()),
        Some(address) => address.parse().map_err(|_| format!("{address:?} is no IP address: {FORM}"))?,
    };
    let guest = match number(guest)? {
        0 => return Err("0 is no port of a sandbox".to_owned()),
        guest => guest,
    };
    Ok(Port { protocol, port: guest, host_address: Some(address), host_port: host, url: None })
}

/// As `ps` shows it.
pub(super) fn shown(port: &Port) -> String {
    let host = port.host().map(|host: SocketAddr| host.to_string()).unwrap_or_default();
    format!("{host}->{}", guest(port))
}

/// In the sandbox.
fn guest(port: &Port) -> String {
    let kind = if port.protocol == PortProtocol::Udp { "/udp" } else { "" };
    format!("{}{kind}", port.port)
}

/// Tells of what was picked: those of `made` that `wanted` has left open. Both are in the same order.
pub(super) fn tell_picked(wanted: &[Port], made: &[Port]) {
    for (_, made) in wanted.iter().zip(made).filter(|(wanted, _)| wanted.host_port.is_none()) {
        tell(&shown(made));
    }
}

pub(super) fn run(verb: &Verb, context: &Context) -> Result<(), CliError> {
    match verb {
        Verb::Add(args) => add(args, context),
        Verb::Rm(args) => remove(args, context),
        Verb::Ls(args) => list(args, context),
    }
}

fn add(args: &AddArgs, context: &Context) -> Result<(), CliError> {
    let mut added: Vec<Port> = Vec::new();
    let result = wait_for("", async {
        let client = Client::connect(&context.config).await?;
        for port in &args.ports {
            added.push(client.ask(Method::POST, &path(&args.sandbox), port).await?);
        }
        Ok(())
    });
    // Those before the one that failed are there.
    if result.is_ok() || !added.is_empty() {
        context.print(&added, lines)?;
    }
    result
}

fn remove(args: &RmArgs, context: &Context) -> Result<(), CliError> {
    let mut removed: Vec<Port> = Vec::new();
    let result = wait_for("", async {
        let client = Client::connect(&context.config).await?;
        for port in &args.ports {
            let path = format!("{}/{port}", path(&args.sandbox));
            let some: Vec<Port> = client.ask(Method::DELETE, &path, &()).await?;
            removed.extend(some);
        }
        Ok(())
    });
    if result.is_ok() || !removed.is_empty() {
        context.print(&removed, lines)?;
    }
    result
}

fn list(args: &LsArgs, context: &Context) -> Result<(), CliError> {
    let ports: Vec<Port> = wait_for("", async {
        let client = Client::connect(&context.config).await?;
        Ok(client.ask(Method::GET, &path(&args.sandbox), &()).await?)
    })?;
    context.print(&ports, |ports| {
        let mut rows = vec![["HOST", "GUEST", "URL"].map(str::to_owned).to_vec()];
        rows.extend(ports.iter().map(|port| {
            let host = port.host().map(|host| host.to_string()).unwrap_or_default();
            vec![host, guest(port), port.url.clone().unwrap_or_else(|| "-".to_owned())]
        }));
        table(&rows)
    })
}

fn path(sandbox: &str) -> String {
    format!("/sandboxes/{}/ports", segment(sandbox))
}

#[allow(clippy::ptr_arg, reason = "what is printed as JSON is a Vec")]
fn lines(ports: &Vec<Port>) -> String {
    ports.iter().map(shown).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms() {
        for (text, address, host, guest) in [
            ("8080:80", "127.0.0.1", Some(8080), 80),
            ("8080:80/tcp", "127.0.0.1", Some(8080), 80),
            ("80", "127.0.0.1", None, 80),
            ("0:80", "127.0.0.1", None, 80),
            (":80", "127.0.0.1", None, 80),
            ("127.0.0.1:8080:80", "127.0.0.1", Some(8080), 80),
            ("0.0.0.0:8080:80", "0.0.0.0", Some(8080), 80),
            ("127.0.0.2::80", "127.0.0.2", None, 80),
            ("[::1]:8080:80", "::1", Some(8080), 80),
            ("[::]:0:80/tcp", "::", None, 80),
            ("[fe80::1]::65535", "fe80::1", None, 65535),
        ] {
            let port = port(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(
                (port.host_address, port.host_port, port.port),
                (Some(address), host, guest),
                "{text}"
            );
        }
        for text in [
            "",
            ":",
            "::",
            "x",
            "80:",
            "0",
            "8080:0",
            "65536",
            "8080:65536",
            "-1:80",
            "8000-8010:80",
            "::1:8080:80",
            "localhost:8080:80",
            "[127.0.0.1]:8080:80",
            "[::1]:80:80:80",
            "[::1]8080:80",
            "1:2:3:4",
            "80/sctp",
            "80/",
            "80/tcp/tcp",
            "1.2.3:80:80",
            "8080 :80",
        ] {
            assert!(port(text).is_err(), "{text}");
        }
        let udp = port("[::1]:5353:53/udp").unwrap();
        assert_eq!((udp.protocol, shown(&udp).as_str()), (PortProtocol::Udp, "[::1]:5353->53/udp"));
    }

    #[test]
    fn what_was_picked() {
        let mut made = port("[::1]:0:80").unwrap();
        made.host_port = Some(4000);
        assert_eq!(shown(&made), "[::1]:4000->80");
    }
}
