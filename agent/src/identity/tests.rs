//! In directories that stand for the guest's /. A hard link stands for a bind mount, which takes root: that test says so where it is
//! skipped.

use super::*;
use protocol::NetworkConfig;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tempfile::TempDir;

const ID: &str = "0123456789abcdef0123456789abcdef";

/// A machine with everything that can be told of one.
fn config(name: &str) -> Config {
    Config {
        hostname: name.to_owned(),
        machine_id: Some(ID.replace('0', &name[..1])),
        nameservers: vec!["192.0.0.1".to_owned()],
        search: vec!["lan".to_owned(), "corp".to_owned()],
        hosts: [("db".to_owned(), [10, 0, 0, 1].into())].into(),
        ..Config::default()
    }
}

/// A / where these are bound into /etc, empty as yet.
fn root(bound: &[&str]) -> TempDir {
    let root = TempDir::new().unwrap();
    fs::create_dir_all(root.path().join(RUN)).unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    for name in bound {
        let file = root.path().join(RUN).join(name);
        fs::write(&file, "").unwrap();
        fs::hard_link(&file, root.path().join("etc").join(name)).unwrap();
    }
    root
}

/// Where all four are.
fn all() -> TempDir {
    root(&["hostname", "machine-id", "hosts", "resolv.conf"])
}

fn read(root: &TempDir, path: &str) -> String {
    fs::read_to_string(root.path().join(path)).unwrap()
}

#[test]
fn the_files_say_who_the_machine_is() {
    let root = all();
    write_files(root.path(), None, &config("a")).unwrap();
    assert_eq!(read(&root, "etc/hostname"), "a\n");
    assert_eq!(read(&root, "etc/machine-id"), format!("{}\n", ID.replace('0', "a")));
    assert_eq!(
        read(&root, "etc/hosts"),
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\ta\n10.0.0.1\tdb\n"
    );
    assert_eq!(read(&root, "etc/resolv.conf"), "nameserver 192.0.0.1\nsearch lan corp\n");
}

#[test]
fn without_a_machine_id_and_name_servers_the_images_own_files_stay() {
    let root = root(&["hostname", "hosts"]);
    fs::write(root.path().join("etc/machine-id"), "mine\n").unwrap();
    let bare = Config { machine_id: None, nameservers: Vec::new(), ..config("a") };
    write_files(root.path(), None, &bare).unwrap();
    write_files(root.path(), Some(&bare), &Config { hostname: "b".into(), ..bare.clone() }).unwrap();
    assert_eq!(read(&root, "etc/machine-id"), "mine\n");
    assert!(!root.path().join("etc/resolv.conf").exists());
    assert_eq!(fs::read_dir(root.path().join(RUN)).unwrap().count(), 2);
}

#[test]
fn another_machine_is_written_over_the_old_one_in_its_place() {
    let root = all();
    write_files(root.path(), None, &config("a")).unwrap();
    // As a program that has it open sees it.
    let open = fs::File::open(root.path().join("etc/hosts")).unwrap();
    write_files(root.path(), Some(&config("a")), &config("long-name")).unwrap();
    write_files(root.path(), Some(&config("long-name")), &config("c")).unwrap();
    let expected = files(&config("c"));
    for (name, content) in &expected {
        assert_eq!(Some(read(&root, &format!("etc/{name}"))), *content);
    }
    assert_eq!(Some(std::io::read_to_string(open).unwrap()), expected[2].1);
}

#[test]
fn what_the_user_has_written_stays_but_for_the_names() {
    let root = all();
    write_files(root.path(), None, &config("a")).unwrap();
    for name in ["hostname", "machine-id", "hosts", "resolv.conf"] {
        fs::write(root.path().join("etc").join(name), "the user's\n").unwrap();
    }
    let renamed = Config { nameservers: Vec::new(), ..config("b") };
    // A clone, and a clone of that.
    for (before, config) in [(config("a"), config("b")), (config("b"), renamed)] {
        write_files(root.path(), Some(&before), &config).unwrap();
        assert_eq!(read(&root, "etc/hosts"), "the user's\n");
        assert_eq!(read(&root, "etc/resolv.conf"), "the user's\n");
        assert_eq!(read(&root, "etc/hostname"), "b\n");
        assert_eq!(read(&root, "etc/machine-id"), format!("{}\n", ID.replace('0', "b")));
    }
}

#[test]
fn what_the_user_has_put_in_the_place_of_a_bound_file_stays() {
    let root = all();
    write_files(root.path(), None, &config("a")).unwrap();
    // As after an unmount.
    let hosts = root.path().join("etc/hosts");
    fs::remove_file(&hosts).unwrap();
    fs::write(&hosts, "the image's\n").unwrap();
    write_files(root.path(), Some(&config("a")), &config("b")).unwrap();
    assert_eq!(read(&root, "etc/hosts"), "the image's\n");
}

#[test]
fn nobody_waits_for_a_fifo_or_is_led_elsewhere_by_a_symlink() {
    for editable in [false, true] {
        let root = all();
        write_files(root.path(), None, &config("a")).unwrap();
        let name = if editable { "hosts" } else { "hostname" };
        let (file, other) = (root.path().join(RUN).join(name), root.path().join("other"));
        fs::write(&other, "other\n").unwrap();
        for fifo in [false, true] {
            fs::remove_file(&file).unwrap();
            if fifo {
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(rustix::fs::CWD, &file, kind, Mode::RWXU, 0).unwrap();
            } else {
                std::os::unix::fs::symlink(&other, &file).unwrap();
            }
            let error = write_files(root.path(), Some(&config("a")), &config("b")).unwrap_err();
            assert!(matches!(&error, IdentityError::File { path, .. } if *path == file), "{error}");
            assert_eq!(read(&root, "other"), "other\n");
        }
    }
}

#[test]
fn authorities_are_those_of_the_image_and_those_that_are_given() {
    let root = all();
    let path = "run/voidrun/ca-certificates.crt";
    let with = |given: &str| Config { ca_certificates: Some(given.to_owned()), ..config("a") };
    fs::create_dir_all(root.path().join("etc/ssl/certs")).unwrap();
    fs::write(root.path().join(BUNDLES[0]), "the image's").unwrap();
    write_files(root.path(), None, &with("ours\n")).unwrap();
    assert_eq!(read(&root, path), "the image's\nours\n");
    write_files(root.path(), Some(&with("ours\n")), &with("others\n")).unwrap();
    assert_eq!(read(&root, path), "the image's\nothers\n");

    write_files(root.path(), Some(&with("others\n")), &config("a")).unwrap();
    assert!(!root.path().join(path).exists());
    // The user's own stays where there was none of ours.
    fs::write(root.path().join(path), "the user's\n").unwrap();
    write_files(root.path(), Some(&config("a")), &config("b")).unwrap();
    assert_eq!(read(&root, path), "the user's\n");
}

#[test]
fn the_network_does_not_concern_the_files() {
    let root = all();
    let network = NetworkConfig {
        address: [192, 0, 0, 2].into(),
        prefix: 30,
        gateway: [192, 0, 0, 1].into(),
        ipv6: None,
        mac: Some([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
    };
    write_files(root.path(), None, &config("a")).unwrap();
    let hosts = fs::metadata(root.path().join("etc/hosts")).unwrap().modified().unwrap();
    let moved = Config { network: Some(network), ..config("a") };
    write_files(root.path(), Some(&config("a")), &moved).unwrap();
    assert_eq!(fs::metadata(root.path().join("etc/hosts")).unwrap().modified().unwrap(), hosts);
}

#[test]
fn a_file_is_bound_once_and_given_back() {
    // SAFETY: of the mounts alone, which no other thread's memory or descriptors depend on.
    if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWNS) } {
        eprintln!("skipped: mounts need root: {error}");
        return;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let root = root(&[]);
    let mounts = || {
        let all = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let below = root.path().join("etc");
        all.lines().filter(|line| line.contains(below.to_str().unwrap())).count()
    };
    fs::write(root.path().join("etc/resolv.conf"), "the image's\n").unwrap();
    // As systemd-resolved leaves it, but for another file.
    std::os::unix::fs::symlink("../run/nowhere", root.path().join("etc/hosts")).unwrap();
    let without = Config { nameservers: Vec::new(), ..config("a") };
    write_files(root.path(), None, &without).unwrap();
    assert_eq!((read(&root, "etc/resolv.conf").as_str(), mounts()), ("the image's\n", 3));

    write_files(root.path(), Some(&without), &config("b")).unwrap();
    assert_eq!(
        (read(&root, "etc/resolv.conf").as_str(), mounts()),
        (&*resolv_conf(&config("b")).unwrap(), 4)
    );
    assert_eq!(
        (read(&root, "etc/hostname").as_str(), read(&root, "run/voidrun/hostname")),
        ("b\n", "b\n".into())
    );
    assert_eq!(Some(read(&root, "etc/hosts")), files(&config("b"))[2].1);

    let bare = Config { machine_id: None, ..without };
    write_files(root.path(), Some(&config("b")), &bare).unwrap();
    assert_eq!((read(&root, "etc/resolv.conf").as_str(), mounts()), ("the image's\n", 2));
    // It was not there, and is nobody's now.
    assert_eq!(read(&root, "etc/machine-id"), "");
    assert!(!root.path().join("run/voidrun/machine-id").exists());

    // As by whoever empties /run before a snapshot: a new file is bound in the old one's place.
    fs::remove_dir_all(root.path().join(RUN)).unwrap();
    write_files(root.path(), Some(&bare), &Config { hostname: "c".into(), ..bare.clone() }).unwrap();
    assert_eq!((read(&root, "etc/hostname").as_str(), mounts()), ("c\n", 2));
}
