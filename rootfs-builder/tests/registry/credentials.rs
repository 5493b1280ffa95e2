//! Logging in and out, and where credentials are kept: files and helpers.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rootfs_builder::image::Platform;
use rootfs_builder::registry::{Registry, RegistryError};
use serde_json::{Value, json};

use crate::content::{Content, Image};
use crate::server::{Reply, Server};
use crate::{config, reference, within};

/// A registry that wants ann's password for everything.
async fn server() -> Server {
    let content = Content::of("app", "1", &Image::new(1, 10));
    let ann = format!("Basic {}", STANDARD.encode("ann:secret"));
    Server::start(move |request| {
        if request.header("authorization") == Some(&ann) {
            content.reply(request)
        } else {
            Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x")
        }
    })
    .await
}

/// A user's home.
struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn docker(&self) -> PathBuf {
        self.path(".docker/config.json")
    }

    fn write(&self, name: &str, value: &Value) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, value.to_string()).unwrap();
    }

    /// A helper that runs `script` with the verb in $1.
    fn helper(&self, name: &str, script: &str) {
        let path = self.path(&format!("docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\ncd '{}'\n{script}\n", self.directory.path().display()))
            .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn client(&self) -> Registry {
        let mut config = config();
        config.credentials.docker = Some(self.docker());
        config.credentials.podman = vec![self.path("absent.json"), self.path("auth.json")];
        config.credentials.helper_path = self.directory.path().into();
        config.credentials.helper_timeout = Duration::from_millis(1500);
        Registry::new(config).unwrap()
    }

    async fn pull(&self, host: &str) -> Result<(), RegistryError> {
        let app = reference(host, "app:1");
        self.client().resolve(&app, &Platform::host(), &|_| {}).await.map(|_| ())
    }
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[tokio::test]
async fn login_is_kept_in_dockers_file() {
    within(async {
        let (home, server) = (Home::new(), server().await);
        let host = server.host();
        let error = home.client().login(&host, "ann", "wrong").await.unwrap_err();
        assert!(matches!(error, RegistryError::LoginRefused { .. }), "{error:?}");
        assert!(!home.docker().exists() && !error.to_string().contains("wrong"), "{error}");

        let login = home.client().login(&format!("http://{host}/"), "ann", "secret").await.unwrap();
        assert!(login.verified && login.registry == host && login.kept_in.ends_with("config.json"));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&home.docker()), mode(&home.path(".docker"))), (0o600, 0o700));
        home.pull(&host).await.unwrap();

        let logout = home.client().logout(&host).await.unwrap();
        assert!(logout.removed && logout.remaining.is_empty());
        assert!(home.pull(&host).await.is_err());
        assert!(!home.client().logout(&host).await.unwrap().removed);
    })
    .await;
}

#[tokio::test]
async fn what_others_wrote_stays() {
    within(async {
        let (home, server) = (Home::new(), server().await);
        let before = json!({
            "HttpHeaders": {"X": ["y"]}, "psFormat": "table", "auths": {"ghcr.io": {"auth": "dTpw", "email": "e"}},
        });
        // Behind a link, as those who keep such files in a repository have it.
        home.write("dotfiles/docker.json", &before);
        std::fs::create_dir(home.path(".docker")).unwrap();
        std::os::unix::fs::symlink(home.path("dotfiles/docker.json"), home.docker()).unwrap();
        home.client().login(&server.host(), "ann", "secret").await.unwrap();
        let mut after = json_of(&home.path("dotfiles/docker.json"));
        assert!(home.docker().is_symlink());
        assert_eq!(after["auths"][server.host()]["auth"], STANDARD.encode("ann:secret"));
        home.client().logout(&server.host()).await.unwrap();
        after = json_of(&home.docker());
        assert_eq!(after, before);
        // A file that makes no sense is not written over.
        std::fs::write(home.docker(), "{").unwrap();
        let error = home.client().login(&server.host(), "ann", "secret").await.unwrap_err();
        assert!(matches!(error, RegistryError::CredentialFile { .. }), "{error:?}");
        assert_eq!(std::fs::read_to_string(home.docker()).unwrap(), "{");
    })
    .await;
}

#[tokio::test]
async fn login_may_be_unverified() {
    within(async {
        let home = Home::new();
        let open = Server::start(|_| Reply::new(200, "{}")).await;
        assert!(!home.client().login(&open.host(), "ann", "any").await.unwrap().verified);
        let broken = Server::start(|_| Reply::new(404, "")).await;
        let error = home.client().login(&broken.host(), "ann", "any").await.unwrap_err();
        assert!(matches!(error, RegistryError::Status { status: 404, .. }), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn helpers_keep_passwords() {
    within(async {
        let (home, server) = (Home::new(), server().await);
        let host = server.host();
        home.write(".docker/config.json", &json!({"credsStore": "test"}));
        home.helper(
            "test",
            r#"case $1 in
            store) cat > kept;;
            get) read -r server || true
                 if [ -e kept ]; then sed 's/"Secret"/"Secret"/' kept
                 else echo "credentials not found in native keychain"; exit 1; fi;;
            erase) cat > erased; rm -f kept;;
            esac"#,
        );
        assert!(matches!(home.pull(&host).await, Err(RegistryError::Unauthorized { presented: false, .. })));
        let login = home.client().login(&host, "ann", "secret").await.unwrap();
        assert_eq!(login.kept_in, "docker-credential-test");
        let kept = json_of(&home.path("kept"));
        assert_eq!(kept, json!({"ServerURL": host, "Username": "ann", "Secret": "secret"}));
        // As docker has it: an empty entry, no password.
        assert_eq!(json_of(&home.docker())["auths"], json!({ host.as_str(): {} }));
        home.pull(&host).await.unwrap();
        let logout = home.client().logout(&host).await.unwrap();
        assert!(logout.removed && !home.path("kept").exists());
        assert_eq!(std::fs::read_to_string(home.path("erased")).unwrap(), host);
    })
    .await;
}

#[tokio::test]
async fn helpers_that_fail_are_named() {
    within(async {
        let (home, server) = (Home::new(), server().await);
        let host = server.host();
        home.helper("fails", "echo 'the vault is locked'; exit 3");
        home.helper("crashes", "echo 'no such display' >&2; exit 3");
        home.helper("hangs", "exec sleep 1000");
        home.helper("odd", "echo '{}'");
        home.helper("leaks", "echo '{\"Secret\":\"hunter2\"'");
        for (name, says) in [
            ("fails", "the vault is locked"),
            ("crashes", "no such display"),
            ("hangs", "no answer for"),
            ("odd", "not the JSON"),
            ("leaks", "not the JSON"),
            ("absent", "not found in PATH"),
            ("../x", "not found in PATH"),
        ] {
            home.write(".docker/config.json", &json!({"credHelpers": { host.as_str(): name }}));
            let error = home.pull(&host).await.unwrap_err();
            assert!(matches!(error, RegistryError::Unauthorized { presented: false, .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(says) && text.contains(&format!("docker-credential-{name}")), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
        // But what the next place has is used, and a public image needs nothing.
        home.write(
            "auth.json",
            &json!({"auths": { format!("{host}/app"): {"auth": STANDARD.encode("ann:secret")} }}),
        );
        home.pull(&host).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn places_are_tried_in_order() {
    within(async {
        let (home, server) = (Home::new(), server().await);
        let host = server.host();
        let error = home.pull(&host).await.unwrap_err().to_string();
        for place in [".docker/config.json (no such file)", "auth.json (no such file)"] {
            assert!(error.contains(place), "{error}");
        }
        home.write(
            "auth.json",
            &json!({"auths": { host.as_str(): {"auth": STANDARD.encode("ann:secret")} }}),
        );
        std::fs::create_dir(home.path(".docker")).unwrap();
        std::fs::write(home.docker(), "not JSON").unwrap();
        home.pull(&host).await.unwrap();
        // docker's comes first, right or wrong.
        home.write(
            ".docker/config.json",
            &json!({"auths": { host.as_str(): {"auth": STANDARD.encode("ann:old")} }}),
        );
        let error = home.pull(&host).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unauthorized { presented: true, .. }), "{error:?}");
        assert!(error.to_string().contains(".docker/config.json"), "{error}");
        // A logout says who else still knows.
        let logout = home.client().logout(&host).await.unwrap();
        assert!(logout.removed && logout.remaining.len() == 1, "{logout:?}");
    })
    .await;
}
