//! Login and logout: into docker's file, so that docker and everything that reads its file knows as well.

use std::path::{Path, PathBuf};

use reqwest::header::HeaderMap;

use super::Registry;
use super::auth::{Asked, Auth, Credentials};
use super::credentials::{AuthFile, Credential, Helper, HelperError, server_key};
use super::endpoint::Endpoint;
use super::error::RegistryError;
use super::retry::Attempts;
use super::status::Refusal;

/// What a login came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The registry, by the name its credentials are kept under.
    pub registry: String,
    /// The file, or the helper's name, that keeps the password.
    pub kept_in: String,
    /// False if the registry asked for no credentials, so that nothing says whether they are right.
    pub verified: bool,
}

/// What a logout came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logout {
    /// The registry.
    pub registry: String,
    /// There was something to remove.
    pub removed: bool,
    /// Other places that still have credentials for it, podman's files; they are not ours to change.
    pub remaining: Vec<String>,
}

impl Registry {
    /// Logs in: shows the registry the password first, then keeps it where docker's configuration says, in a helper or in the file.
    /// Nothing is kept that the registry refuses.
    pub async fn login(&self, registry: &str, user: &str, password: &str) -> Result<Login, RegistryError> {
        let endpoint = Endpoint::new(registry)?;
        let verified = self.verify(&endpoint, user, password).await?;
        let registry = endpoint.name;
        let mut file = self.docker_file()?;
        let helper = file.auths.helpers(&registry).into_iter().next();
        let kept_in = if let Some(name) = helper {
            let helper = Helper::new(&name, &self.inner.credentials);
            let stored = helper.store(&server_key(&registry), user, password).await;
            stored.map_err(|error| helper_failed(&helper, &error))?;
            file.change(|auths| auths.set(&registry, None))?;
            helper.program()
        } else {
            file.change(|auths| auths.set(&registry, Some((user, password))))?;
            file.path.display().to_string()
        };
        Ok(Login { registry, kept_in, verified })
    }

    /// Forgets the credentials that docker's file or its helpers have for a registry. It is fine if there are none.
    pub async fn logout(&self, registry: &str) -> Result<Logout, RegistryError> {
        let registry = Endpoint::new(registry)?.name;
        let mut file = self.docker_file()?;
        let mut removed = false;
        for name in file.auths.helpers(&registry) {
            let helper = Helper::new(&name, &self.inner.credentials);
            let key = server_key(&registry);
            removed |= matches!(helper.get(&key).await, Ok(Some(_)));
            helper.erase(&key).await.map_err(|error| helper_failed(&helper, &error))?;
        }
        if file.auths.remove(&registry) {
            removed = true;
            file.change(|_| Ok(()))?;
        }
        let has_entry = |path: &&PathBuf| {
            let file = AuthFile::read(path).ok().flatten();
            file.is_some_and(|file| matches!(file.credential(&registry, ""), Ok(Some(_))))
        };
        let podman = &self.inner.credentials.podman;
        let remaining = podman.iter().filter(has_entry).map(|path| path.display().to_string()).collect();
        Ok(Logout { registry, removed, remaining })
    }

    /// Whether the registry accepts the credentials: false if it did not ask for them, an error if it refuses them.
    async fn verify(&self, endpoint: &Endpoint, user: &str, password: &str) -> Result<bool, RegistryError> {
        let credential = Credential::Password { user: user.to_owned(), password: password.to_owned() };
        let auth = Auth::new(Credentials::Given(credential));
        let asked = Asked { endpoint, repository: "", subject: "login" };
        let http = &self.inner.http;
        // Who logs in waits at the keyboard.
        let mut attempts = Attempts::new(
            &self.inner.retry,
            3.min(self.inner.retry.attempts),
            endpoint.name.clone(),
            &|_| {},
        );
        loop {
            let attempt = async {
                let url = http.url(endpoint, "/v2/").await?;
                let answer = auth.get(http, asked, &url, &HeaderMap::new()).await?;
                if answer.status().is_success() {
                    return Ok(auth.presented(asked).await);
                }
                let refusal = Refusal::read(http, answer).await;
                Err(auth.failure(asked, refusal).await)
            };
            match attempt.await {
                Ok(verified) => return Ok(verified),
                Err(failure) => attempts.again(failure).await.map_err(refused)?,
            }
        }
    }

    fn docker_file(&self) -> Result<DockerFile, RegistryError> {
        let path = self.inner.credentials.docker.clone().ok_or(RegistryError::NoCredentialFile)?;
        // A file that cannot be read is not replaced: it may hold what the user still needs.
        let auths = AuthFile::read(&path).map_err(|error| file_failed(&path, error))?;
        Ok(DockerFile { auths: auths.unwrap_or_else(|| AuthFile::empty(&path)), path })
    }
}

/// Where credentials were looked for is no help to who has just typed them.
fn refused(error: RegistryError) -> RegistryError {
    match error {
        RegistryError::Unauthorized { registry, detail, .. } => {
            RegistryError::LoginRefused { registry, detail }
        }
        other => other,
    }
}

struct DockerFile {
    path: PathBuf,
    auths: AuthFile,
}

impl DockerFile {
    fn change(
        &mut self,
        change: impl FnOnce(&mut AuthFile) -> std::io::Result<()>,
    ) -> Result<(), RegistryError> {
        let changed = change(&mut self.auths).and_then(|()| self.auths.write());
        changed.map_err(|error| file_failed(&self.path, error))
    }
}

fn file_failed(path: &Path, error: std::io::Error) -> RegistryError {
    RegistryError::CredentialFile { path: path.to_owned(), source: error.into() }
}

fn helper_failed(helper: &Helper<'_>, error: &HelperError) -> RegistryError {
    RegistryError::Helper { helper: helper.program(), why: error.to_string() }
}
