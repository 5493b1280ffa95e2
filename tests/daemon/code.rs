//! Code in the four languages, from its text to its result.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{Daemon, Ran, until};

const CODE: &str = "/v1/sandboxes/dev/code";

impl Daemon {
    fn with_code() -> Self {
        let daemon = Self::new();
        daemon.cli(&["create", "--name", "dev", "-m", "512m", "-e", "A=sandbox", "code"]).ends(0, &[]);
        daemon
    }

    #[track_caller]
    fn code(&self, language: &str, code: &str, more: Value) -> Value {
        let mut body = json!({ "language": language, "code": code });
        let Value::Object(more) = more else { panic!("{more}") };
        body.as_object_mut().unwrap().extend(more);
        let (status, result) = self.ask("POST", CODE, body);
        assert_eq!(status, 200, "{result}");
        result
    }

    #[track_caller]
    fn results(&self, language: &str, code: &str) -> Value {
        let mut result = self.code(language, code, json!({}));
        assert_eq!((&result["success"], &result["error"]), (&json!(true), &Value::Null), "{result}");
        result["results"].take()
    }

    /// What commands, and the languages, could have left.
    fn files(&self) -> String {
        let body = json!({ "command": "find /tmp /var/tmp /root /home /app /run /dev/shm | sort" });
        self.data("POST", "/v1/sandboxes/dev/exec", body)["stdout"].as_str().unwrap().to_owned()
    }
}

#[test]
fn four_languages() {
    let daemon = Daemon::with_code();
    let before = daemon.files();

    let fibonacci = "import json\ndef fibonacci(n):\n    return n if n <= 1 else fibonacci(n-1) + fibonacci(n-2)\n\
                     print('on the way')\nprint(json.dumps([fibonacci(i) for i in range(10)]))\n";
    let result = daemon.code("python", fibonacci, json!({}));
    assert_eq!(result["results"], json!([0, 1, 1, 2, 3, 5, 8, 13, 21, 34]));
    assert_eq!(
        (&result["success"], &result["exitCode"], &result["stderr"]),
        (&json!(true), &json!(0), &json!(""))
    );
    assert_eq!(
        result["logs"],
        json!({ "stdout": ["on the way", "[0, 1, 1, 2, 3, 5, 8, 13, 21, 34]"], "stderr": [] })
    );
    let (_, text) = daemon.raw("POST", CODE, "", &json!({ "code": "print('{\"b\": 1.0, \"a\": 2}')" }));
    // Python where nothing is said; the members as they were printed.
    assert!(text.contains(r#""results":{"b": 1.0, "a": 2}"#), "{text}");

    let sum = "const numbers = [1, 2, 3, 4, 5];\nconst sum = numbers.reduce((a, b) => a + b, 0);\n\
               console.log(JSON.stringify({ sum, count: numbers.length }));";
    assert_eq!(daemon.results("javascript", sum), json!({ "sum": 15, "count": 5 }));
    // Scripts and modules.
    assert_eq!(daemon.results("js", "console.log(typeof require('fs').readFileSync)"), "function");
    let module = "import fs from 'node:fs';\nconsole.log(await Promise.resolve(typeof fs.readFileSync));";
    assert_eq!(daemon.results("node", module), "function");
    let typed = "import os from 'node:os';\nenum Colour { Red = 7 }\nclass Point { constructor(public x: number) {} }\n\
                 const point: Point = new Point(Colour.Red);\nconsole.log(point.x, typeof os.cpus);";
    assert_eq!(daemon.results("typescript", typed), "7 function");
    assert_eq!(daemon.results("ts", "const x: number = 5; console.log(x);"), 5);
    let script = "cat <<EOF\n\"$((1 + 2))\" `echo x`\nEOF\nread -r line; echo \"read:$line $A\"";
    assert_eq!(daemon.results("bash", script), "read: sandbox");
    assert_eq!(daemon.results("sh", "for i in {1..3}; do echo $i; done"), 3);
    assert_eq!(daemon.results("bash", "true"), Value::Null);
    for (language, code) in [
        ("python", "import sys; print(repr(sys.stdin.read()))"),
        ("javascript", "console.log(JSON.stringify(require('fs').readFileSync(0, 'utf8')))"),
    ] {
        let nothing = daemon.results(language, code);
        assert!(nothing == "''" || nothing == "", "{language}: {nothing}");
    }

    let module = "mkdir /srv/job; echo 'answer = 42' > /srv/job/mine.py; echo 'export const seven: number = 7' > /srv/job/seven.ts";
    daemon.data("POST", "/v1/sandboxes/dev/exec", json!({ "command": module }));
    let more =
        json!({ "cwd": "/srv/job", "user": "user", "env": { "B": "code", "PYTHONDONTWRITEBYTECODE": "1" } });
    let code =
        "import mine, os; print(mine.answer, os.getcwd(), os.getuid(), os.environ['A'], os.environ['B'])";
    assert_eq!(daemon.code("python", code, more.clone())["results"], "42 /srv/job 1000 sandbox code");
    let code = "import { seven } from './seven.ts'; console.log(seven, process.env.B)";
    assert_eq!(daemon.code("ts", code, more.clone())["results"], "7 code");
    assert_eq!(daemon.code("bash", "echo $(id -u) $PWD", more)["results"], "1000 /srv/job");

    for (language, code, exit_code, error) in [
        ("python", "print(1)\n1/0", 1, "exit code 1: ZeroDivisionError: division by zero"),
        ("javascript", "console.log(1); process.exit(3)", 3, "exit code 3"),
        ("javascript", "await nothing()", 1, "exit code 1: Node.js"),
        ("typescript", "console.log('ä'); throw new Error('no' as string)", 1, "exit code 1: Node.js"),
        ("bash", "echo why >&2; exit 42", 42, "exit code 42: why"),
        ("bash", "kill -9 $$", 137, "signal 9"),
    ] {
        let result = daemon.code(language, code, json!({}));
        assert_eq!((&result["success"], &result["exitCode"]), (&json!(false), &json!(exit_code)), "{result}");
        assert!(result["error"].as_str().unwrap().starts_with(error) || error == "signal 9", "{result}");
    }
    for (language, code) in [
        ("python", "print('before')\nimport time, subprocess; subprocess.run(['setsid', 'sleep', '1000'])"),
        ("javascript", "console.log('before'); setInterval(() => {}, 1000)"),
        ("bash", "echo before; sleep 1000"),
    ] {
        // Time enough for the interpreter to come as far as that, beside another test.
        let result = daemon.code(language, code, json!({ "timeout": 10 }));
        assert_eq!((&result["exitCode"], &result["timedOut"]), (&json!(124), &json!(true)), "{result}");
        assert_eq!((&result["results"], &result["success"]), (&json!("before"), &json!(false)), "{result}");
        assert!(result["error"].as_str().unwrap().contains("timeout"), "{result}");
    }
    let result = daemon.code(
        "python",
        "def f():\n    return 1/0 # here\nprint(sorted(set(globals()) - {'f'})[-1])\nf()",
        json!({}),
    );
    assert_eq!(result["results"], "__spec__");
    let trace = result["stderr"].as_str().unwrap();
    assert!(trace.contains("line 2, in f\n    return 1/0 # here") && !trace.contains("run.py"), "{trace}");
    assert_eq!(trace.matches("File ").count(), 2, "{trace}");
    // The list forgets a command a moment after it has told of its end.
    until(|| daemon.running("dev") == 0);
    assert_eq!(daemon.files(), before);
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn code_of_any_size_and_content() {
    let daemon = Daemon::with_code();
    let piece =
        "'\"`$(exit 9)${x}\\n\u{1}\u{7f} EOF\nEOF\n'EOF'\n\r\n\ttäglich € 𝕏 \u{2028} %s $$ !! &&;|<>\n";
    let large = piece.repeat((3 << 20) / piece.len());
    // As a template's own text, neither of these ends it; a carriage return would be read as a newline.
    let raw = large.replace(['`', '\r'], "").replace("${", "$").replace('\\', "/");
    let hash = |text: &str| {
        let hash = Sha256::digest(text.as_bytes());
        hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let python = format!("import hashlib\ns = '''{}'''\nprint(hashlib.sha256(s.encode()).hexdigest())", {
        raw.replace('\'', "\"")
    });
    assert_eq!(daemon.results("python", &python), hash(&raw.replace('\'', "\"")));
    let node = format!(
        "const s = String.raw`{raw}`;\nconsole.log(require('crypto').createHash('sha256').update(s).digest('hex'))"
    );
    assert_eq!(daemon.results("javascript", &node), hash(&raw));
    assert_eq!(daemon.results("typescript", &node), hash(&raw));
    let bash = format!("sha256sum <<'END OF IT' | cut -c1-64\n{large}END OF IT\n");
    assert_eq!(daemon.results("bash", &bash), hash(&large));

    // More output than is kept: the last line is there.
    let code = "print('x' * 9_000_000)\nprint('[1]')";
    let result = daemon.code("python", code, json!({}));
    assert_eq!((&result["results"], &result["truncated"]), (&json!([1]), &json!(true)));
    assert_eq!(result["stdout"].as_str().unwrap().len(), 8 << 20);

    let whole = "#".repeat(4 << 20);
    assert_eq!(daemon.results("python", &whole), Value::Null);
    for (status, body, words) in [
        (422, json!({ "code": format!("{whole}#") }), "code: is 4194305 bytes"),
        (422, json!({ "code": "a\0b" }), "code: has a NUL byte at byte 1"),
        (422, json!({ "language": "python" }), "code"),
        (422, json!({ "code": "1", "language": "ruby" }), "language: \"ruby\""),
        (422, json!({ "code": "1", "langauge": "ts" }), "did you mean language?"),
        (422, json!({ "code": "1", "cwd": "/no/such" }), "/no/such"),
        (422, json!({ "code": "1", "timeout": -1 }), "timeout: "),
        (501, json!({ "code": "1", "contextId": "c" }), "contextId"),
    ] {
        let detail = daemon.refuses(status, "POST", CODE, body);
        assert!(detail.contains(words), "{detail}");
    }
    // The list forgets a command a moment after it has told of its end.
    until(|| daemon.running("dev") == 0);
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn code_as_it_prints() {
    let daemon = Daemon::with_code();
    let body = json!({ "code": "import sys\nprint('one')\nprint('why', file=sys.stderr)\nprint('{\"b\": 1, \"a\": 2}')\nsys.exit(3)" });
    let (status, lines) = daemon.raw("POST", CODE, "Accept: application/x-ndjson\r\n", &body);
    assert_eq!(status, 200);
    let end = lines.lines().last().unwrap();
    let wanted = r#"{"stream":"exit","success":false,"results":{"b": 1, "a": 2},"error":"exit code 3: why","exitCode":3,"#;
    assert!(end.starts_with(wanted), "{end}");
    // "one\n"
    assert!(lines.starts_with(r#"{"stream":"stdout","data":"b25l"#), "{lines}");
    let (_, events) = daemon.raw("POST", CODE, "Accept: text/event-stream\r\n", &body);
    assert!(events.starts_with("event:stdout\ndata:one\n"), "{events}");
    assert!(
        events.contains("event:exit\ndata:{\"success\":false,\"results\":{\"b\": 1, \"a\": 2},"),
        "{events}"
    );

    // Clients that go away end their code.
    let endless = json!({ "code": "while True: pass", "timeout": 0 });
    for headers in ["", "Accept: text/event-stream\r\n"] {
        let stream = daemon.send("POST", CODE, headers, &endless);
        until(|| daemon.running("dev") == 1);
        drop(stream);
        until(|| daemon.running("dev") == 0);
    }
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
}

#[test]
fn code_by_the_command_line() {
    let daemon = Daemon::new();
    daemon.create("dev");
    let detail = daemon.refuses(422, "POST", CODE, json!({ "code": "1", "language": "node" }));
    assert!(["node", "image debian", "image code"].iter().all(|word| detail.contains(word)), "{detail}");
    let dir = daemon.store.path();
    let file = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).unwrap();
        dir.join(name).to_str().unwrap().to_owned()
    };
    let script = file("script.sh", "echo out; echo err >&2; pwd; exit 7");
    let ran = daemon.cli(&["code", "--sandbox", "dev", "-w", "/tmp", &script]);
    assert_eq!((ran.code, &*ran.stdout, &*ran.stderr), (Some(7), &b"out\n/tmp\n"[..], "err\n"));
    let python = file("script.py", "import sys, os\nprint('{\"b\": %s}' % os.environ['N'])\nsys.exit(4)");
    daemon
        .cli(&["code", "--sandbox", "dev", "--language", "js", &python])
        .ends(127, &["node", "the sandbox dev"]);
    daemon
        .cli(&["code", "--image", "debian", "--language", "js", &python])
        .ends(127, &["node", "the image debian"]);

    let ran = daemon.cli(&["--json", "code", "-e", "N=1", "--image", "code", &python]);
    let result: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((ran.code, &result["results"], &result["exitCode"]), (Some(4), &json!({ "b": 1 }), &json!(4)));
    let name = file("name.py", "import socket\nprint(socket.gethostbyname('db'))");
    let with_host = ["code", "--add-host", "db:10.0.0.1", &name];
    assert_eq!(daemon.cli(&[&with_host[..], &["--image", "code"]].concat()).text(), "10.0.0.1\n");
    daemon.cli(&[&with_host[..], &["--sandbox", "dev"]].concat()).ends(125, &["--add-host"]);
    let mut child =
        daemon.store.command(&["--json", "code", "--sandbox", "dev", "-l", "bash", "--timeout", "1"]);
    let mut child = child.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"echo [1]; sleep 100").unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    let result: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((ran.code, &result["results"], &result["timedOut"]), (Some(124), &json!([1]), &json!(true)));

    let text = file("text.txt", "x");
    daemon.cli(&["code", &text]).ends(125, &["text.txt", "--language"]);
    daemon.cli(&["code", "-l", "ruby", &text]).ends(125, &["ruby", "python"]);
    daemon.cli(&["code", "no-such-file.py"]).ends(125, &["no-such-file.py"]);
    let nul = file("nul.py", "a\0b");
    daemon.cli(&["code", &nul]).ends(125, &["nul.py", "NUL"]);
    daemon.cli(&["rm", "-f", "dev"]).ends(0, &[]);
    daemon.is_clean();
}
