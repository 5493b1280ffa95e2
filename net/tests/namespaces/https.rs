//! TLS by an authority of the test's own: curl in the guest, OpenSSL on the other machine.

use std::net::TcpStream;
use std::process::{Child, Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::names::{place, resolving};
use super::place::{OTHER, PUBLIC, Place};

/// A server, which ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `openssl` with each line's arguments, in `files`.
fn openssl(files: &TempDir, lines: &str) {
    for line in lines.lines().map(str::trim) {
        let output =
            Command::new("openssl").args(line.split_whitespace()).current_dir(files.path()).output().unwrap();
        assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Serves two names at PUBLIC and at OTHER, with a certificate of an authority in `ca.pem`.
fn serve(place: &Place, files: &TempDir) -> Vec<Server> {
    openssl(
        files,
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
         req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=server -keyout key.pem -out cert.pem \
             -CA ca.pem -CAkey ca.key -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:www.example.org,DNS:bad.example.org",
    );
    let path = files.path().to_owned();
    [PUBLIC, OTHER]
        .map(|ip| {
            let path = path.clone();
            let (server, _) = place.serve(move |ready| {
                let address = format!("{ip}:443");
                let server = Command::new("openssl")
                    .args([
                        "s_server", "-quiet", "-www", "-cert", "cert.pem", "-key", "key.pem", "-accept",
                        &address,
                    ])
                    .current_dir(path)
                    .spawn()
                    .unwrap();
                let server = Server(server);
                let deadline = Instant::now() + Duration::from_secs(20);
                while let Err(error) = TcpStream::connect(&address) {
                    assert!(Instant::now() < deadline, "{address}: {error}");
                    thread::sleep(Duration::from_millis(20));
                }
                ready.send(server).unwrap();
            });
            server
        })
        .into()
}

/// One request of the guest's.
fn curl(files: &TempDir, arguments: &[&str]) -> Output {
    resolving(files, "curl")
        .args(["--silent", "--show-error", "--max-time", "30", "--cacert"])
        .arg(files.path().join("ca.pem"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Its answer, which it has to have got.
fn page(files: &TempDir, arguments: &[&str]) -> String {
    let output = curl(files, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn https_goes_to_the_server_whose_name_is_allowed() {
    let Some((place, _)) = place(r#"{"mode": "allow", "allow": ["www.example.org:443"]}"#) else { return };
    let files = tempfile::tempdir().unwrap();
    let _servers = serve(&place, &files);
    assert!(page(&files, &["https://www.example.org/"]).contains("TLSv1.3"));
    let bad = format!("bad.example.org:443:{PUBLIC}");
    let elsewhere = format!("www.example.org:443:{OTHER}");
    // RECV_ERROR or SSL_CONNECT_ERROR; COULDNT_RESOLVE_HOST; COULDNT_CONNECT.
    for (arguments, codes) in [
        (&["--resolve", &bad, "https://bad.example.org/"][..], &[35, 56][..]),
        (&["https://bad.example.org/"], &[6]),
        (&["--resolve", &elsewhere, "https://www.example.org/"], &[7]),
        (&["--insecure", &format!("https://{PUBLIC}/")], &[35, 56]),
    ] {
        let output = curl(&files, arguments);
        assert!(output.status.code().is_some_and(|code| codes.contains(&code)), "{arguments:?}: {output:?}");
    }
    let denials = place.denials.lock().unwrap();
    for (destination, name, rule) in [
        (
            &format!("{PUBLIC}:443"),
            Some("bad.example.org"),
            "allow: no rule for the server name bad.example.org",
        ),
        (&"bad.example.org".to_owned(), None, "allow: no rule for it"),
        (&format!("{OTHER}:443"), None, "allow: no rule for it"),
        (&format!("{PUBLIC}:443"), None, "allow: the connection shows no server name"),
    ] {
        let told = |denial: &&net::engine::Denial| {
            denial.destination == *destination && denial.name.as_deref() == name && denial.rule == rule
        };
        assert!(denials.iter().any(|denial| told(&denial)), "{destination} {rule}: {denials:?}");
    }
}

#[test]
fn https_goes_anywhere_but_where_a_name_is_denied() {
    let Some((place, _)) = place(r#"{"deny": ["bad.example.org"]}"#) else { return };
    let files = tempfile::tempdir().unwrap();
    let _servers = serve(&place, &files);
    assert!(page(&files, &["https://www.example.org/"]).contains("TLSv1.3"));
    let bad = format!("bad.example.org:443:{PUBLIC}");
    let output = curl(&files, &["--resolve", &bad, "https://bad.example.org/"]);
    assert!(matches!(output.status.code(), Some(35 | 56)), "{output:?}");
    let denials = place.denials.lock().unwrap();
    assert!(denials.iter().any(|denial| denial.rule == "deny: bad.example.org"), "{denials:?}");
}
