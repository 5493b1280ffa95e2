//! `voidrun reset` where there is something to end.

use crate::{Daemon, socket_of};

#[test]
fn with_machines_that_run() {
    let mut daemon = Daemon::new();
    for name in ["one", "two", "stopped"] {
        daemon.create(name);
    }
    daemon.cli(&["stop", "stopped"]).ends(0, &[]);
    let mut session = daemon.store.command(&["exec", "one", "sleep", "1000"]).spawn().unwrap();
    crate::until(|| daemon.running("one") == 1);
    assert_eq!(daemon.store.machines().len(), 2);
    let store = daemon.store.path();
    let shared = store.join("images").read_link().unwrap();

    daemon.cli(&["reset"]).ends(2, &["--yes", &store.display().to_string()]);
    assert_eq!(daemon.store.machines().len(), 2);
    let said = daemon.cli(&["reset", "--yes"]).text();
    assert_eq!((said.matches("ended ").count(), said.contains("daemon.lock")), (3, true), "{said}");
    assert_eq!(daemon.store.machines(), Vec::<u32>::new());
    assert_eq!(socket_of(&daemon.store), None);
    for part in
        ["sandboxes", "images", "blobs", "refs", "ingest", "locks", "kernels", "store.json", "daemon.lock"]
    {
        assert!(store.join(part).symlink_metadata().is_err(), "{part} is still there");
    }
    assert_eq!(daemon.process.wait().unwrap().code(), Some(0));
    assert_eq!(session.wait().unwrap().code(), Some(125));
    // What a link leads to is somebody else's.
    assert!(shared.read_dir().unwrap().next().is_some());
}
