//! What a sandbox gets of this machine's settings: package indexes, proxies, authorities.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};

use serde_json::json;

use crate::Daemon;
use crate::authority::certify;
use crate::guests::Ran;

/// An index by HTTPS, of an authority that nobody else knows, and a proxy, on this machine's loopback.
struct Mirror {
    process: Child,
    index: u16,
    proxy: u16,
    log: Option<JoinHandle<Vec<String>>>,
}

impl Mirror {
    /// The authority is then in `ca.pem`.
    fn new(directory: &Path) -> Self {
        certify(directory, &["host.voidrun.internal"]);
        let mut process = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/daemon/mirror.py"))
            .args(["server.pem", "server.key"])
            .current_dir(directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let ports = lines.next().unwrap().unwrap();
        let (index, proxy) = ports.split_once(' ').unwrap();
        let (index, proxy) = (index.parse().unwrap(), proxy.parse().unwrap());
        let log = Some(thread::spawn(move || lines.map_while(Result::ok).collect()));
        Self { process, index, proxy, log }
    }

    /// Ends it; what it was asked for.
    fn asked(mut self) -> Vec<String> {
        self.process.kill().unwrap();
        self.log.take().unwrap().join().unwrap()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_mirror_of_this_machine_is_reached_without_its_password() {
    let daemon = Daemon::new();
    let mirror = Mirror::new(daemon.store.path());
    let script = "env; pip install --quiet --root-user-action=ignore tiny && python3 -c 'import tiny; print(tiny.WORD)' &&
        cd /tmp && npm install --silent tinyjs >&2 && node -p 'require(\"tinyjs\")' &&
        http_proxy=http://host.voidrun.internal:$PROXY curl -sS http://nowhere.test/page";
    let (index, proxy) = (mirror.index, mirror.proxy);
    let output = daemon
        .store
        .command(&["run", "--inherit", "indexes,proxy,ca", "-e", "PROXY", "code", "sh", "-c", script])
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("PIP_INDEX_URL", format!("https://me:secret@127.0.0.1:{index}/pypi/simple"))
        .env("npm_config_registry", format!("https://me:secret@localhost:{index}/npm/"))
        .env("SSL_CERT_FILE", daemon.store.path().join("ca.pem"))
        .env("http_proxy", format!("http://me:secret@127.0.0.1:{proxy}"))
        .env("no_proxy", "localhost,127.0.0.1")
        .env("PROXY", proxy.to_string())
        .output();
    let ran = Ran::from(output.unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let text = String::from_utf8_lossy(&ran.stdout);
    for line in [
        &format!("PIP_INDEX_URL=https://host.voidrun.internal:{index}/pypi/simple") as &str,
        &format!("NPM_CONFIG_REGISTRY=https://host.voidrun.internal:{index}/npm/"),
        &format!("http_proxy=http://host.voidrun.internal:{proxy}"),
        "NO_PROXY=localhost,127.0.0.1,host.voidrun.internal",
        "from the wheel",
        "from the tarball",
        "by the proxy: http://nowhere.test/page",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert!(!text.contains("secret"), "{text}");
    // Three passwords have stayed here, which is said.
    assert_eq!(ran.stderr.matches("without its user name and password").count(), 3, "{}", ran.stderr);
    let asked = mirror.asked();
    assert!(asked.iter().all(|request| request.ends_with(" by nobody")), "{asked:?}");
    assert!(asked.iter().any(|request| request.starts_with("GET /npm/tinyjs-1.0.0.tgz ")), "{asked:?}");
}

#[test]
fn authorities_are_trusted_beside_the_images_and_stay_with_a_sandbox() {
    let daemon = Daemon::new();
    let mirror = Mirror::new(daemon.store.path());
    let ca = std::fs::read_to_string(daemon.store.path().join("ca.pem")).unwrap();
    let create = json!({
        "image": "code", "name": "trusting", "caCertificates": ca,
        "envVars": { "CURL_CA_BUNDLE": "/none" }, "network": { "hostPorts": [mirror.index] },
    });
    daemon.data("POST", "/v1/sandboxes", create.clone());
    let url = format!("https://host.voidrun.internal:{}/npm/tinyjs", mirror.index);
    let get = |url: &str| {
        let fetch = format!("fetch({url:?}).then(answer => console.log(answer.status))");
        daemon.cli(&["exec", "trusting", "node", "-e", &fetch]).prints("200\n");
        let python = format!("import urllib.request as r; print(r.urlopen({url:?}).status)");
        daemon.cli(&["exec", "trusting", "python3", "-c", &python]).prints("200\n");
    };
    get(&url);
    // The user's own word comes before ours.
    daemon.cli(&["exec", "trusting", "printenv", "CURL_CA_BUNDLE"]).prints("/none\n");
    let count = "grep -c BEGIN.CERT $SSL_CERT_FILE; grep -c BEGIN.CERT /etc/ssl/certs/ca-certificates.crt";
    let counts = daemon.cli(&["exec", "trusting", "sh", "-c", count]).text();
    let counts: Vec<u32> = counts.lines().map(|line| line.parse().unwrap()).collect();
    assert!(counts[1] > 100 && counts[0] == counts[1] + 1, "{counts:?}");
    daemon.cli(&["stop", "trusting"]);
    daemon.cli(&["start", "trusting"]);
    get(&url);

    let key = std::fs::read_to_string(daemon.store.path().join("ca.key")).unwrap();
    let mut wrong = create;
    wrong["caCertificates"] = json!(ca + &key);
    let detail = daemon.refuses(422, "POST", "/v1/sandboxes", wrong);
    assert!(detail.starts_with("caCertificates: holds a key"), "{detail}");
}

/// In a lab with a network, or on a machine with one: from the indexes that this machine's pip and npm use.
#[test]
fn packages_of_the_public_indexes_are_installed() {
    let daemon = Daemon::new();
    let script = "pip install --quiet --root-user-action=ignore --no-cache-dir six==1.17.0 && python3 -c 'import six; print(six.__version__)' &&
        cd /tmp && npm install --silent is-number@7.0.0 >&2 && node -p 'require(\"is-number\")(6 * 7)'";
    let output = Command::new(env!("CARGO_BIN_EXE_voidrun"))
        .args(["run", "--inherit", "indexes,proxy,ca", "code", "sh", "-c", script])
        .env("VOIDRUN_HOME", daemon.store.path())
        .env("XDG_RUNTIME_DIR", daemon.store.path())
        .stdin(Stdio::null())
        .output();
    Ran::from(output.unwrap()).prints("1.17.0\ntrue\n");
}
