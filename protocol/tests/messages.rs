//! The JSON on the wire: an old agent lives next to a newer host, so its shapes are pinned here.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use protocol::{
    Command, Config, Control, Error, ErrorCode, Exec, Exit, FileEvent, FileEventKind, FileInfo, FileKind,
    FileRequest, Frame, FrameType, NetworkConfig, Request, WindowSize, encode,
};

fn json<T: Control>(message: &T) -> String {
    String::from_utf8(encode(message).unwrap().split_off(protocol::HEADER)).unwrap()
}

fn parse<T: Control>(json: &str) -> Result<T, protocol::FrameError> {
    Frame { kind: T::TYPE, payload: json.as_bytes() }.message()
}

#[test]
fn an_exec_needs_no_more_than_its_command() {
    let exec = Exec::new(Command::Argv(vec!["true".into()]));
    let sparse: Request = parse(r#"{"type":"exec","command":{"argv":["true"]}}"#).unwrap();
    assert_eq!(sparse, Request::Exec(exec.clone()));
    assert_eq!(parse::<Request>(&json(&sparse)).unwrap(), sparse);
    let nulls = r#"{"type":"exec","command":{"argv":["true"]},"cwd":null,"user":null,"timeoutMs":null,"tty":null,
        "outputLimit":null,"limits":{"memoryMib":null},"aFieldOfTomorrow":[1]}"#;
    assert_eq!(parse::<Request>(nulls).unwrap(), Request::Exec(exec));
}

#[test]
fn an_exec_with_everything() {
    let text = r#"{"type":"exec","command":{"shell":"ls"},"cwd":"/tmp","env":{"A":"b"},"user":"1:2","timeoutMs":5,"tty":{"rows":24,"cols":80},"stdin":true,"outputLimit":9,"detached":false,"limits":{"memoryMib":64,"pids":10,"cpuMillis":500}}"#;
    let request: Request = parse(text).unwrap();
    let Request::Exec(exec) = &request else { panic!("{request:?}") };
    assert_eq!(exec.command, Command::Shell("ls".into()));
    assert_eq!((exec.timeout_ms, exec.tty), (Some(5), Some(WindowSize { rows: 24, cols: 80 })));
    assert_eq!(
        (exec.limits.memory_mib, exec.limits.pids, exec.limits.cpu_millis),
        (Some(64), Some(10), Some(500))
    );
    assert_eq!(json(&request), text);
}

#[test]
fn the_other_requests() {
    for (text, request) in [
        (r#"{"type":"list"}"#, Request::List),
        (r#"{"type":"wait","pid":7}"#, Request::Wait { pid: 7 }),
        (r#"{"type":"kill","pid":7,"signal":9}"#, Request::Kill { pid: 7, signal: Some(9) }),
        (r#"{"type":"attach","pid":7,"skip":0}"#, Request::Attach { pid: 7, skip: 0 }),
        (
            r#"{"type":"upload","path":"/a","owner":"u"}"#,
            Request::Upload { path: "/a".into(), owner: Some("u".into()) },
        ),
        (
            r#"{"type":"download","path":"/a","follow":true}"#,
            Request::Download { path: "/a".into(), follow: true },
        ),
        (
            r#"{"type":"file","operation":"search","path":"/a","pattern":"*"}"#,
            Request::File(FileRequest::Search { path: "/a".into(), pattern: "*".into() }),
        ),
        (
            r#"{"type":"file","operation":"write","path":"/a","mode":420,"exclusive":true,"owner":null}"#,
            Request::File(FileRequest::Write {
                path: "/a".into(),
                mode: Some(0o644),
                exclusive: true,
                owner: None,
            }),
        ),
        (
            r#"{"type":"file","operation":"watch","path":"/a","recursive":true,"ignoreHidden":false}"#,
            Request::File(FileRequest::Watch { path: "/a".into(), recursive: true, ignore_hidden: false }),
        ),
        (r#"{"type":"forward","port":8080}"#, Request::Forward { port: 8080 }),
        (r#"{"type":"powerOff","graceMs":10}"#, Request::PowerOff { grace_ms: Some(10) }),
        (r#"{"type":"suspend"}"#, Request::Suspend),
        (r#"{"type":"continue"}"#, Request::Continue),
        (
            r#"{"type":"reseed","wallTimeNs":1,"entropy":[2,3],"config":null}"#,
            Request::Reseed { wall_time_ns: 1, entropy: vec![2, 3], config: None },
        ),
    ] {
        assert_eq!(json(&request), text);
        assert_eq!(parse::<Request>(text).unwrap(), request);
    }
    let sparse = r#"{"type":"file","operation":"write","path":"/a"}"#;
    let write = FileRequest::Write { path: "/a".into(), mode: None, exclusive: false, owner: None };
    assert_eq!(parse::<Request>(sparse).unwrap(), Request::File(write));
    assert!(parse::<Request>(r#"{"type":"file","operation":"dance"}"#).is_err());
    assert!(parse::<Request>(r#"{"type":"dance"}"#).is_err());
    assert!(parse::<Request>(r#"{"type":"wait"}"#).is_err());
    assert!(parse::<Request>(r#"{"type":"forward","port":65536}"#).is_err());
    assert!(parse::<Request>("").is_err());
}

#[test]
fn answers() {
    let exit = r#"{"exitCode":null,"signal":9,"timedOut":true,"truncated":{"stdout":false,"stderr":true},"oomKilled":false,"durationMs":3}"#;
    let parsed: Exit = parse(exit).unwrap();
    assert_eq!((parsed.signal, parsed.timed_out, parsed.truncated.stderr), (Some(9), true, true));
    assert_eq!(json(&parsed), exit);
    assert_eq!(parse::<Exit>(r#"{"exitCode":0}"#).unwrap(), Exit { exit_code: Some(0), ..Exit::default() });

    let error: Error = parse(r#"{"code":"aCodeOfTomorrow","message":"no"}"#).unwrap();
    assert_eq!(error, Error { code: ErrorCode::Other, message: "no".into(), errno: None });
    let error = Error { code: ErrorCode::NoSuchProcess, message: "no process 7".into(), errno: Some(3) };
    assert_eq!(json(&error), r#"{"code":"noSuchProcess","message":"no process 7","errno":3}"#);

    let file = r#"{"path":"/l","kind":"symlink","isDir":true,"size":1,"mode":511,"uid":2,"gid":3,"modifiedMs":4,"target":"t"}"#;
    let parsed: FileInfo = parse(file).unwrap();
    assert_eq!((parsed.kind, parsed.target.as_deref()), (FileKind::Symlink, Some("t")));
    assert_eq!(json(&parsed), file);
    let event: FileEvent = parse(r#"{"kind":"somethingNew","path":"/a"}"#).unwrap();
    assert_eq!((event.kind, event.old_path), (FileEventKind::Overflow, None));

    let frame = Frame { kind: FrameType::Stdout, payload: b"{}" };
    assert_eq!(frame.message::<Exit>().unwrap_err().to_string(), "Stdout frame where Exit was expected");
}

#[test]
fn a_config_may_say_nothing() {
    let config: Config = serde_json::from_str("{}").unwrap();
    assert_eq!((config.hostname.as_str(), config.root_device.as_str()), ("voidrun", "/dev/vda"));
    assert_eq!((config.machine_id, config.network), (None, None));
    let text = r#"{"network":{"address":"192.0.0.2","prefix":30,"gateway":"192.0.0.1","mtu":1500,"aFieldOfTomorrow":1}}"#;
    let network = serde_json::from_str::<Config>(text).unwrap().network.unwrap();
    assert_eq!((network.ipv6, network.mac, network.mtu), (None, None, 1500));
}

#[test]
fn a_restored_machine_may_be_told_that_it_is_another() {
    let text = r#"{"type":"reseed","wallTimeNs":1,"entropy":[2],"config":{"hostname":"b","machineId":"0123456789abcdef0123456789abcdef","rootDevice":"/dev/vda","network":{"address":"192.0.0.2","prefix":30,"gateway":"192.0.0.1","ipv6":null,"mac":[2,0,0,0,0,255],"mtu":1500},"nameservers":["192.0.0.1"],"search":[],"hosts":{"db":"fd00::1"},"caCertificates":"PEM"}}"#;
    let config = Config {
        hostname: "b".into(),
        machine_id: Some("0123456789abcdef0123456789abcdef".into()),
        network: Some(NetworkConfig {
            address: [192, 0, 0, 2].into(),
            prefix: 30,
            gateway: [192, 0, 0, 1].into(),
            ipv6: None,
            mac: Some([2, 0, 0, 0, 0, 255]),
            mtu: 1500,
        }),
        nameservers: vec!["192.0.0.1".into()],
        hosts: [("db".to_owned(), "fd00::1".parse().unwrap())].into(),
        ca_certificates: Some("PEM".into()),
        ..Config::default()
    };
    let request = Request::Reseed { wall_time_ns: 1, entropy: vec![2], config: Some(Box::new(config)) };
    assert_eq!(json(&request), text);
    assert_eq!(parse::<Request>(text).unwrap(), request);
    // As an older host asks.
    let sparse = parse(r#"{"type":"reseed","wallTimeNs":1,"entropy":[2]}"#).unwrap();
    assert_eq!(Request::Reseed { wall_time_ns: 1, entropy: vec![2], config: None }, sparse);
}
