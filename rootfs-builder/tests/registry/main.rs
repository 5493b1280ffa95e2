//! The registry client against a real registry (Debian's docker-registry), and against servers that misbehave to order.

// Everything here is a test; what cannot be is a failure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::format_push_string)]

mod auth;
mod content;
mod credentials;
mod environment;
mod faults;
mod hostile;
mod http2;
mod mirrors;
mod pull;
mod real;
mod server;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rootfs_builder::progress::Event;
use rootfs_builder::registry::{CredentialSources, Reference, Registry, RegistryConfig, RetryPolicy};

/// Ends a test that hangs.
async fn within<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_mins(1), test).await.expect("the test takes longer than a minute")
}

/// A patience that does not slow a test down.
fn quick() -> RetryPolicy {
    RetryPolicy {
        attempts: 4,
        base_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(4),
        max_retry_after: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(10),
        read_timeout: Duration::from_secs(10),
    }
}

/// No mirrors, no credentials.
fn config() -> RegistryConfig {
    RegistryConfig {
        mirrors: std::collections::BTreeMap::default(),
        insecure: Vec::new(),
        retry: quick(),
        credentials: CredentialSources::none(),
    }
}

fn client() -> Registry {
    Registry::new(config()).unwrap()
}

fn reference(host: &str, rest: &str) -> Reference {
    format!("{host}/{rest}").parse().unwrap()
}

/// An error with its sources, as a user sees it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// Collects events.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<Event>>>);

impl Events {
    fn take(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }

    /// Why something was tried again, and after how many ms.
    fn retries(&self) -> Vec<(String, u64)> {
        let events = self.0.lock().unwrap();
        let retries = events.iter().filter_map(|event| match event {
            Event::Retrying { reason, delay_ms, .. } => Some((reason.clone(), *delay_ms)),
            _ => None,
        });
        retries.collect()
    }
}
