//! An authority of a test's own.

use std::path::Path;
use std::process::Command;

/// Makes an authority, `ca.pem` and `ca.key`, and a server's certificate by it for these names, `server.pem` and `server.key`.
pub(crate) fn certify(directory: &Path, names: &[&str]) {
    let new = "req -x509 -newkey rsa:2048 -nodes -days 2";
    let names: Vec<String> = names.iter().map(|name| format!("DNS:{name}")).collect();
    for arguments in [
        format!("{new} -subj /CN=authority -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.pem"),
        format!(
            "{new} -subj /CN=server -CA ca.pem -CAkey ca.key -addext basicConstraints=critical,CA:FALSE \
             -addext subjectAltName={} -keyout server.key -out server.pem",
            names.join(",")
        ),
    ] {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output();
        let output = output.expect("install the Debian package `openssl`");
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
