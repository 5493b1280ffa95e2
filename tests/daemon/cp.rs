//! `voidrun cp`, both ways.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Stdio;

use serde_json::json;

use crate::{Daemon, Ran};

impl Daemon {
    #[track_caller]
    fn cp(&self, source: &str, target: &str) {
        self.cli(&["cp", source, target]).prints("");
    }

    #[track_caller]
    fn there(&self, line: &str) -> String {
        let data = self.data("POST", "/v1/sandboxes/dev/exec", json!({ "command": line }));
        data["stdout"].as_str().unwrap().to_owned() + data["stderr"].as_str().unwrap()
    }
}

fn at(directory: &Path, name: &str) -> String {
    directory.join(name).to_str().unwrap().to_owned()
}

#[test]
fn in_and_out() {
    let daemon = Daemon::new();
    daemon.create("dev");
    let dir = tempfile::tempdir().unwrap();
    let here = |name: &str| at(dir.path(), name);
    let strange = "a b\nü\u{1f980}";
    fs::create_dir_all(here("tree/empty")).unwrap();
    fs::write(here(&format!("tree/{strange}")), "strange").unwrap();
    fs::write(here("tree/run"), vec![7; 3 << 20]).unwrap();
    fs::set_permissions(here("tree/run"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("run", here("tree/link")).unwrap();

    // As the new one, into the one that is there, and what is in it.
    daemon.cp(&here("tree"), "dev:/srv/new");
    daemon.cp(&here("tree"), "dev:/srv");
    daemon.cp(&format!("{}/.", here("tree")), "dev:/mnt");
    for path in ["/srv/new", "/srv/tree", "/mnt"] {
        let seen = daemon
            .there(&format!("cd {path} && stat -c '%a %s %U' run && readlink link && ls | wc -l && cat a*"));
        assert_eq!(seen, "750 3145728 root\nrun\n5\nstrange", "{path}");
    }
    daemon.cp(&here("tree/run"), "dev:srv/other");
    daemon.cp(&here("tree/run"), "dev:/srv/tree/empty/");
    assert_eq!(
        daemon.there("stat -c '%a %n' /srv/other /srv/tree/empty/run"),
        "750 /srv/other\n750 /srv/tree/empty/run\n"
    );
    daemon.cli(&["cp", "-L", &here("tree/link"), "dev:/srv/followed"]).prints("");
    assert_eq!(daemon.there("stat -c '%F %s' /srv/followed"), "regular file 3145728\n");

    daemon.there("chown 1000:1000 /srv/tree/run; chmod 6751 /srv/tree/run; mkfifo /srv/tree/pipe");
    daemon.cp("dev:/srv/tree", &here("out"));
    fs::create_dir(here("dir")).unwrap();
    daemon.cp("dev:/srv/tree/.", &here("dir"));
    daemon.cp("dev:/srv/tree/run", &here("dir/named"));
    daemon.cp("dev:/srv/tree/run", &here("dir"));
    let stat = |name: &str| fs::symlink_metadata(here(name)).unwrap();
    for name in ["out", "dir"] {
        assert_eq!(fs::read(here(&format!("{name}/{strange}"))).unwrap(), b"strange");
        let run = stat(&format!("{name}/run"));
        assert_eq!(
            (run.len(), run.mode() & 0o7777, run.uid()),
            (3 << 20, 0o751, rustix::process::getuid().as_raw())
        );
        assert_eq!(fs::read_link(here(&format!("{name}/link"))).unwrap(), Path::new("run"));
        assert!(
            stat(&format!("{name}/empty")).is_dir() && !Path::new(&here(&format!("{name}/pipe"))).exists()
        );
    }
    assert_eq!(stat("dir/named").len(), 3 << 20);

    // Tar streams.
    let archive = daemon.cli(&["cp", "dev:/srv/tree", "-"]);
    assert_eq!((archive.code, &*archive.stderr), (Some(0), ""));
    let mut names: Vec<_> = tar::Archive::new(&archive.stdout[..])
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    names.sort();
    assert_eq!(names[..2], ["tree/", &format!("tree/{strange}")]);
    let mut child = daemon.store.command(&["cp", "-", "dev:/opt"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&archive.stdout).unwrap();
    Ran::from(child.wait_with_output().unwrap()).prints("");
    assert_eq!(daemon.there("stat -c %a /opt/tree/run"), "6751\n");

    for (arguments, code, words) in [
        (["dev:/missing", &here("x")], 1, "/missing"),
        ([&here("missing"), "dev:/x"], 1, "missing"),
        ([&here("tree"), "dev:/srv/other"], 2, "/srv/other"),
        ([&here("tree/run"), "dev:/nowhere/"], 2, "/nowhere/"),
        (["dev:/srv/tree", &here("tree/run")], 2, "tree/run"),
        (["dev:/srv/tree", &here("no/such/dir")], 2, "no/such"),
        ([&here("tree"), &here("x")], 2, "SANDBOX:PATH"),
        (["dev:/srv", "dev:/x"], 2, "SANDBOX:PATH"),
        (["nope:/srv", &here("x")], 1, "no sandbox nope"),
        (["-", "dev:/srv/other"], 2, "/srv/other"),
    ] {
        daemon.cli(&["cp", arguments[0], arguments[1]]).ends(code, &[words]);
    }
    daemon.cli(&["cp", &here("tree/run"), "dev:/proc/x"]).ends(1, &["/proc/x"]);
    daemon.there("mount -t tmpfs -o size=1m none /media && echo old > /media/run");
    daemon.cli(&["cp", &here("tree/run"), "dev:/media"]).ends(1, &["/media/run", "No space left"]);
    assert_eq!(daemon.there("cd /media; cat run; ls -A"), "old\nrun\n");
    assert!(!Path::new(&here("x")).exists());
    let left = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with('.')));
}

#[test]
fn a_guest_does_not_get_out() {
    let daemon = Daemon::new();
    daemon.create("dev");
    let dir = tempfile::tempdir().unwrap();
    let here = |name: &str| at(dir.path(), name);
    fs::create_dir(here("outside")).unwrap();
    fs::create_dir(here("to")).unwrap();
    // First a symlink, then a directory of that name with a file in it.
    daemon.there(&format!("mkdir -p /srv/d && ln -s '{}' /srv/d/link", here("outside")));
    daemon.cp("dev:/srv/d", &here("to"));
    daemon.there("rm /srv/d/link; mkdir /srv/d/link; echo evil > /srv/d/link/evil");
    let refused = daemon.cli(&["cp", "dev:/srv/d", &here("to")]);
    refused.ends(1, &["leaves the directory", "link"]);
    assert_eq!(fs::read_dir(here("outside")).unwrap().count(), 0);
    // The name is the caller's, also where the guest's leads elsewhere.
    daemon.there("rm -r /srv/d; ln -s /etc/hostname /srv/file");
    fs::write(here("outside/f"), "mine").unwrap();
    symlink(here("outside/f"), here("to/file")).unwrap();
    daemon.cli(&["cp", "-L", "dev:/srv/file", &here("to/file")]).prints("");
    assert_eq!(fs::read(here("outside/f")).unwrap(), b"mine");
    assert!(fs::symlink_metadata(here("to/file")).unwrap().is_file());
}
