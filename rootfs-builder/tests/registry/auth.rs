//! Who may pull: Basic and Bearer, by a real registry and by servers that are particular about it.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rootfs_builder::image::Platform;
use rootfs_builder::registry::{Registry, RegistryError};
use serde_json::json;

use crate::content::{Content, Image};
use crate::real::RealRegistry;
use crate::server::{Ending, Reply, Request, Server};
use crate::{config, reference, within};

/// A client whose docker file has credentials for these hosts.
fn client_with(directory: &Path, entries: &serde_json::Value) -> Registry {
    let path = directory.join("docker.json");
    std::fs::write(&path, json!({ "auths": entries }).to_string()).unwrap();
    let mut config = config();
    config.credentials.docker = Some(path);
    Registry::new(config).unwrap()
}

fn password(user: &str, password: &str) -> serde_json::Value {
    json!({ "auth": STANDARD.encode(format!("{user}:{password}")) })
}

async fn pull(client: &Registry, host: &str, image: &Image) -> Result<(), RegistryError> {
    let app = reference(host, "team/app:1");
    let (manifest, _) = client.resolve(&app, &Platform::host(), &|_| {}).await?;
    assert_eq!(client.document(&app, &manifest.config, &|_| {}).await?, image.config);
    client.blob(&app, &manifest.layers[0], &tempfile::tempfile().unwrap(), &|_| {}).await
}

fn run(program: &str, arguments: &[&str], package: &str) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}; install the Debian package `{package}`"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A registry over `storage` with one image, pushed before anybody asked who pushes.
async fn filled(storage: &Path, image: &Image, auth: &str) -> RealRegistry {
    RealRegistry::start(storage, "").push("team/app", "1", image).await;
    RealRegistry::start(storage, auth)
}

#[tokio::test]
async fn basic_by_a_real_registry() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::new(1, 300_000);
        let users = run("htpasswd", &["-Bbn", "ann", "right: pass"], "apache2-utils");
        std::fs::write(dir.path().join("users"), users).unwrap();
        let auth = format!("auth:\n  htpasswd:\n    realm: r\n    path: {}/users\n", dir.path().display());
        let registry = filled(dir.path(), &image, &auth).await;
        let host = &registry.host;
        let client = client_with(dir.path(), &json!({ host: password("ann", "right: pass") }));
        pull(&client, host, &image).await.unwrap();

        let wrong = client_with(dir.path(), &json!({ host: password("ann", "wrong") }));
        let error = pull(&wrong, host, &image).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unauthorized { presented: true, .. }), "{error:?}");
        let none =
            client_with(dir.path(), &json!({ "elsewhere.example.com": password("ann", "right: pass") }));
        let error = pull(&none, host, &image).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unauthorized { presented: false, .. }), "{error:?}");
        let text = error.to_string();
        for part in ["docker.json (no entry)", &format!("voidrun login {host}"), "team/app:1"] {
            assert!(text.contains(part), "{text}");
        }
    })
    .await;
}

/// Signs tokens, as distribution's token specification wants them.
struct Signer {
    directory: tempfile::TempDir,
}

impl Signer {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let (key, certificate) = (path("key.pem"), path("certificate.pem"));
        let arguments = [
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=issuer",
            "-keyout",
            &key,
            "-out",
            &certificate,
        ];
        run("openssl", &arguments, "openssl");
        Self { directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// A token (RS256, the certificate in x5c) for what `scope` asks.
    fn token(&self, scope: &str) -> String {
        let parts: Vec<&str> = scope.split(':').collect();
        let pem = std::fs::read_to_string(self.path("certificate.pem")).unwrap();
        let der: String = pem.lines().filter(|line| !line.starts_with("--")).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let access = match parts[..] {
            [kind, name, actions] => json!([{"type": kind, "name": name, "actions": [actions]}]),
            _ => json!([]),
        };
        let claims = json!({
            "iss": "issuer", "sub": "ann", "aud": "the service", "jti": "1", "access": access,
            "iat": now, "nbf": now - 10, "exp": now + 300,
        });
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [der]});
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&header), part(&claims));
        std::fs::write(self.path("text"), &text).unwrap();
        let signature = run(
            "openssl",
            &["dgst", "-sha256", "-sign", &self.path("key.pem"), &self.path("text")],
            "openssl",
        );
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// The parameter of a query or form.
fn parameter(text: &str, name: &str) -> Option<String> {
    let url = reqwest::Url::parse(&format!("http://x/?{text}")).unwrap();
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

#[tokio::test]
async fn bearer_by_a_real_registry() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let (image, signer) = (Image::new(1, 300_000), Signer::new());
        let certificate = signer.path("certificate.pem");
        let ann = format!("Basic {}", STANDARD.encode("ann:secret"));
        let issuer = Server::start(move |request| {
            if request.header("authorization") != Some(&ann) {
                return Reply::new(401, r#"{"details":"incorrect username or password"}"#);
            }
            assert_eq!(parameter(&request.query, "service").as_deref(), Some("the service"));
            let scope = parameter(&request.query, "scope").unwrap_or_default();
            Reply::new(200, json!({"token": signer.token(&scope), "expires_in": 300}).to_string())
        })
        .await;
        let auth = format!(
            "auth:\n  token:\n    realm: http://{}/token\n    service: the service\n    issuer: issuer\n    \
             rootcertbundle: {certificate}\n",
            issuer.host(),
        );
        let registry = filled(dir.path(), &image, &auth).await;
        let client = client_with(dir.path(), &json!({ &registry.host: password("ann", "secret") }));
        pull(&client, &registry.host, &image).await.unwrap();
        // One token for the manifest, the configuration and the layer, and none to push with.
        let seen = issuer.seen();
        assert_eq!(seen.len(), 1);
        let scope = parameter(&seen[0].0.query, "scope");
        assert_eq!(scope.as_deref(), Some("repository:team/app:pull"));

        let wrong = client_with(dir.path(), &json!({ &registry.host: password("ann", "wrong") }));
        let error = pull(&wrong, &registry.host, &image).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unauthorized { presented: true, .. }), "{error:?}");
        assert!(error.to_string().contains("incorrect username or password"), "{error}");
    })
    .await;
}

/// A registry that wants `Bearer TOKEN`, where `current` says which token that is, and gives them at /token. `grant` makes the answer
/// from a token, `spoil` changes the answers that hold content.
async fn token_registry(
    content: Content,
    current: impl Fn(&Request) -> usize + Send + Sync + 'static,
    grant: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    spoil: impl Fn(&mut Reply) + Send + Sync + 'static,
) -> Server {
    Server::start(move |request| {
        let number = current(request);
        let host = request.header("host").unwrap();
        if request.path == "/token" {
            return grant(request, number);
        }
        if request.header("authorization") == Some(&format!("Bearer token-{number}")) {
            let mut reply = content.reply(request);
            spoil(&mut reply);
            return reply;
        }
        let challenge = format!("Basic realm=\"x\", Bearer realm=\"http://{host}/token\",service=\"s\"");
        Reply::new(401, "").header("WWW-Authenticate", &challenge)
    })
    .await
}

fn grant(_: &Request, number: usize) -> Reply {
    Reply::new(200, json!({"access_token": format!("token-{number}")}).to_string())
}

#[tokio::test]
async fn one_token_for_parallel_layers() {
    within(async {
        let images: Vec<Image> = (0..8).map(|seed| Image::new(seed, 50_000)).collect();
        let mut content = Content::default();
        for image in &images {
            content.blob("team/app", &image.layer);
        }
        let server = token_registry(content, |_| 1, grant, |_| {}).await;
        let client = Registry::new(config()).unwrap();
        let mut pulls = tokio::task::JoinSet::new();
        for image in images {
            let (client, app) = (client.clone(), reference(&server.host(), "team/app:1"));
            pulls.spawn(async move {
                let part = tempfile::tempfile().unwrap();
                client.blob(&app, &image.layer(), &part, &|_| {}).await.unwrap();
            });
        }
        while let Some(pulled) = pulls.join_next().await {
            pulled.unwrap();
        }
        assert_eq!(server.paths().iter().filter(|path| *path == "/token").count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_token_that_ends_in_mid_pull_is_renewed() {
    within(async {
        let image = Image::new(1, 500_000);
        let content = Content::of("team/app", "1", &image);
        // The token is good until half of the blob has come; the connection drops there.
        let state = std::sync::Arc::new(AtomicUsize::new(0));
        let current = state.clone();
        let tokens = token_registry(
            content,
            move |_| current.load(Ordering::SeqCst),
            grant,
            move |reply| {
                if reply.body.len() == 500_000 {
                    state.store(1, Ordering::SeqCst);
                    reply.ending = Ending::Truncate(250_000);
                }
            },
        )
        .await;
        let client = Registry::new(config()).unwrap();
        let app = reference(&tokens.host(), "team/app:1");
        client.resolve(&app, &Platform::host(), &|_| {}).await.unwrap();
        let part = tempfile::tempfile().unwrap();
        client.blob(&app, &image.layer(), &part, &|_| {}).await.unwrap();
        assert_eq!(tokens.paths().iter().filter(|path| *path == "/token").count(), 2);
        assert_eq!(tokens.seen().pop().unwrap().1, 250_000);
    })
    .await;
}

type Grant = fn(&Request, usize) -> Reply;

#[tokio::test]
async fn tokens_that_are_of_no_use() {
    within(async {
        let image = Image::new(1, 10);
        let answers: [(&str, Grant); 5] = [
            ("never right", |_, _| Reply::new(200, r#"{"token":"other"}"#)),
            ("empty", |_, _| Reply::new(200, r#"{"token":""}"#)),
            ("no JSON", |_, _| Reply::new(200, "token")),
            ("not a header", |_, _| Reply::new(200, r#"{"token":"a\r\nHost: b"}"#)),
            ("too long", |_, _| Reply::new(200, vec![b' '; 2 << 20])),
        ];
        for (what, answer) in answers {
            let server = token_registry(Content::of("team/app", "1", &image), |_| 1, answer, |_| {}).await;
            let client = Registry::new(config()).unwrap();
            let error = pull(&client, &server.host(), &image).await.unwrap_err();
            let right = match what {
                "never right" => matches!(error, RegistryError::Unauthorized { presented: false, .. }),
                "too long" => matches!(error, RegistryError::TooLarge { .. }),
                _ => matches!(error, RegistryError::Authentication { .. }),
            };
            assert!(right, "{what}: {error:?}");
        }
        // A token server that is busy is waited for.
        let turn = AtomicUsize::new(0);
        let busy = move |request: &Request, number| match turn.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::new(503, "").header("Retry-After", "0"),
            1 => Reply::new(200, "").ending(Ending::Nothing),
            _ => grant(request, number),
        };
        let server = token_registry(Content::of("team/app", "1", &image), |_| 1, busy, |_| {}).await;
        pull(&Registry::new(config()).unwrap(), &server.host(), &image).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn identity_tokens_are_exchanged_in_a_form() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::new(1, 10);
        let exchange = |request: &Request, number| {
            let field = |name| parameter(&request.body, name).unwrap_or_default();
            let right = request.method == "POST"
                && field("grant_type") == "refresh_token"
                && field("refresh_token") == "identity & more"
                && field("scope") == "repository:team/app:pull";
            if right { grant(request, number) } else { Reply::new(400, r#"{"error":"invalid_grant"}"#) }
        };
        let server = token_registry(Content::of("team/app", "1", &image), |_| 1, exchange, |_| {}).await;
        let entry = json!({ server.host(): {"identitytoken": "identity & more"} });
        pull(&client_with(dir.path(), &entry), &server.host(), &image).await.unwrap();
        let (request, _) = server.seen().into_iter().find(|(request, _)| request.path == "/token").unwrap();
        assert!(request.query.is_empty() && request.header("authorization").is_none());
    })
    .await;
}

#[tokio::test]
async fn secrets_stay_with_their_host() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::new(1, 1000);
        // A redirect to another server, which then asks for credentials itself.
        let thief = Server::start(|_| Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x")).await;
        let content = Content::of("team/app", "1", &image);
        let target = format!("http://{}/blob", thief.host());
        let server = Server::start(move |request| {
            if request.header("authorization").is_none() && request.path != "/v2/" {
                return Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x");
            }
            if request.path.contains("/blobs/") {
                return Reply::new(307, "").header("Location", &target);
            }
            content.reply(request)
        })
        .await;
        let client = client_with(dir.path(), &json!({ server.host(): password("ann", "secret") }));
        let error = pull(&client, &server.host(), &image).await.unwrap_err();
        assert!(matches!(error, RegistryError::Status { status: 401, .. }), "{error:?}");
        assert!(!thief.seen().is_empty());
        assert!(thief.seen().iter().all(|(request, _)| request.header("authorization").is_none()));

        // A token server in the clear, elsewhere. Its name does not exist: asking it would be another error.
        for realm in ["http://auth.invalid/token", "ftp://x/", "token", ""] {
            let challenge = format!("Bearer realm=\"{realm}\"");
            let server = Server::start(move |request| {
                let status = if request.path == "/v2/" { 200 } else { 401 };
                Reply::new(status, "").header("WWW-Authenticate", &challenge)
            })
            .await;
            let client = client_with(dir.path(), &json!({ server.host(): password("ann", "secret") }));
            let error = pull(&client, &server.host(), &image).await.unwrap_err();
            assert!(matches!(error, RegistryError::Authentication { .. }), "{realm}: {error:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_short_life_is_believed() {
    within(async {
        let image = Image::new(1, 10);
        let short = |_: &Request, number| {
            Reply::new(200, json!({"token": format!("token-{number}"), "expires_in": 1}).to_string())
        };
        let server = token_registry(Content::of("team/app", "1", &image), |_| 1, short, |_| {}).await;
        pull(&Registry::new(config()).unwrap(), &server.host(), &image).await.unwrap();
        // Manifest, configuration and layer: a token each.
        assert_eq!(server.paths().iter().filter(|path| *path == "/token").count(), 3);
    })
    .await;
}
