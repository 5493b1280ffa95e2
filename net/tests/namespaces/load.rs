//! Much at once, and for long: small counts, or those of `scripts/test --full` where `VOIDRUN_LOAD` is 1.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use super::place::{ALL, PUBLIC, PUBLIC6, Place, config};

/// Whether there is time for the large counts.
pub(crate) fn full() -> bool {
    std::env::var("VOIDRUN_LOAD").is_ok_and(|load| load == "1")
}

#[test]
fn iperf3_carries_data_both_ways() {
    let Some(place) = Place::new(config("{}"), ALL) else { return };
    let seconds = if full() { "10" } else { "1" };
    for (way, options) in [
        ("to the host", &["--client", PUBLIC][..]),
        ("to the guest", &["--client", PUBLIC, "--reverse"]),
        ("to the host by 8", &["--client", PUBLIC, "--parallel", "8"]),
        ("to the guest by 8", &["--client", PUBLIC, "--parallel", "8", "--reverse"]),
        ("to the host by IPv6", &["--client", PUBLIC6]),
        ("to the guest by IPv6", &["--client", PUBLIC6, "--reverse"]),
    ] {
        let ((), server) = place.serve(|ready| {
            let mut server = Command::new("iperf3")
                .args(["--server", "--one-off", "--forceflush"])
                .stdout(Stdio::piped())
                .spawn()
                .expect("iperf3 (scripts/test installs it)");
            let mut said = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
            assert!(said.any(|line| line.contains("Server listening")));
            ready.send(()).unwrap();
            // To its end, or it would be stopped by a full pipe.
            said.for_each(drop);
            server.wait().unwrap()
        });
        let output =
            Command::new("iperf3").args(options).args(["--time", seconds, "--json"]).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success(), "{way}: {}", report["error"]);
        assert!(server.join().unwrap().success());
        let received = &report["end"]["sum_received"];
        let rate = received["bits_per_second"].as_f64().unwrap() / 1e9;
        println!("iperf3 {way}: {rate:.2} Gbit/s");
        assert!(received["bytes"].as_u64().unwrap() > 0, "{way}: {received}");
    }
}

/// Connections at a steady rate, each open for a sixth of the time, with bytes there and back at its begin and at its end.
#[test]
fn connections_come_and_go_for_a_minute() {
    let (count, time) = if full() { (5000, Duration::from_mins(1)) } else { (500, Duration::from_secs(3)) };
    let Some(place) = Place::new(config("{}"), ALL) else { return };
    let ((), _) = place.serve(|ready| {
        let listener = TcpListener::bind((PUBLIC, 80)).unwrap();
        ready.send(()).unwrap();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::Builder::new()
                .stack_size(64 * 1024)
                .spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap())
                .unwrap();
        }
    });
    let echo = |stream: &mut TcpStream, number: u32| {
        let mut back = [0; 4];
        stream.write_all(&number.to_be_bytes()).unwrap();
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, number.to_be_bytes());
    };
    let end = |mut stream: TcpStream, number: u32| {
        echo(&mut stream, number);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    };
    let began = Instant::now();
    let mut open = VecDeque::new();
    let (mut most, mut slowest) = (0, Duration::ZERO);
    for number in 0..count {
        thread::sleep((time * number / count).saturating_sub(began.elapsed()));
        let since = Instant::now();
        let mut stream = TcpStream::connect((PUBLIC, 80)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        echo(&mut stream, number);
        slowest = slowest.max(since.elapsed());
        open.push_back((stream, number));
        if open.len() > count as usize / 6 {
            let (stream, number) = open.pop_front().unwrap();
            end(stream, number);
        }
        most = most.max(open.len());
    }
    for (stream, number) in open {
        end(stream, number);
    }
    let took = began.elapsed();
    println!("{count} connections in {took:.1?}, {most} at once, the slowest in {slowest:.1?}");
    assert_eq!(place.counters.connections.load(Relaxed), u64::from(count));
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

/// What is on its way to a guest that does not read, and from it to a server that does not, is bounded: by the kernel's buffers of both
/// ends, which are small here, and by the engine's, of 512 KiB for each flow and way.
#[test]
fn who_does_not_read_takes_a_bounded_amount_of_memory() {
    const KERNEL: usize = 64 * 1024;
    const ENGINE: usize = 512 * 1024;
    let flows = if full() { 60 } else { 10 };
    for to_guest in [true, false] {
        let Some(place) = Place::new(config("{}"), ALL) else { return };
        let small = || {
            for name in ["tcp_rmem", "tcp_wmem"] {
                std::fs::write(format!("/proc/sys/net/ipv4/{name}"), format!("4096 {KERNEL} {KERNEL}"))
                    .unwrap();
            }
        };
        let ((), _) = place.host(move |ready| {
            small();
            ready.send(()).unwrap();
        });
        small();
        let (taken, server) = place.serve(move |ready| {
            small();
            let listener = TcpListener::bind((PUBLIC, 80)).unwrap();
            let (said, taken) = std::sync::mpsc::channel::<Vec<usize>>();
            ready.send(taken).unwrap();
            let mut streams: Vec<_> = (0..flows).map(|_| listener.accept().unwrap().0).collect();
            if to_guest {
                said.send(fill(&mut streams, ENGINE)).unwrap();
            }
            streams
        });
        let mut streams: Vec<_> = (0..flows).map(|_| TcpStream::connect((PUBLIC, 80)).unwrap()).collect();
        let taken = if to_guest { taken.recv().unwrap() } else { fill(&mut streams, ENGINE) };
        let (least, most) = (taken.iter().min().unwrap(), taken.iter().max().unwrap());
        println!(
            "{flows} flows {}: {least} to {most} bytes each",
            if to_guest { "to the guest" } else { "to the host" }
        );
        // The engine's buffer is used, as `fill` has waited for, and nothing else. Linux doubles some of its own, twice on the way.
        assert!(*most <= ENGINE + 8 * KERNEL, "{most}");
        drop((streams, server.join().unwrap()));
    }
}

/// Writes as much as is taken, until each has taken `least` and nothing more is taken for a while: how many bytes each.
fn fill(streams: &mut [TcpStream], least: usize) -> Vec<usize> {
    let block = vec![7; 16 * 1024];
    let mut taken = vec![0; streams.len()];
    let mut since = Instant::now();
    let deadline = since + Duration::from_mins(2);
    while taken.iter().any(|&taken| taken < least) || since.elapsed() < Duration::from_millis(500) {
        assert!(Instant::now() < deadline, "{taken:?}");
        for (stream, taken) in streams.iter_mut().zip(&mut taken) {
            stream.set_nonblocking(true).unwrap();
            match stream.write(&block) {
                Ok(len) => {
                    *taken += len;
                    since = Instant::now();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    }
    taken
}
