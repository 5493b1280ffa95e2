//! What happens to sandboxes, told to those who follow. Who follows slowly misses the oldest, and is told so: nobody holds up a
//! sandbox, or takes more memory than all others together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

use super::error::DaemonError;
use super::{Daemon, Sandbox, State};

/// So many are kept for the slowest. With all its labels one has 33 KiB at most.
const KEPT: usize = 256;
const MAX_FOLLOWERS: usize = 64;
/// Of a reason, in characters.
const MAX_REASON: usize = 500;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// It has its place, and no machine yet.
    Created,
    /// Commands can be run in it.
    Started,
    /// It has another name, or other labels.
    Changed,
    Paused,
    Resumed,
    /// Its memory is on the disk.
    Slept,
    /// It has gone on from there.
    Woken,
    /// Its machine has ended as it was to: by a user, the guest's own shutdown, or a limit of time.
    Stopped,
    /// Its machine has ended otherwise, or could not be started.
    Failed,
    /// Its machine, which could not be talked to, can be again.
    Adopted,
    /// Nothing of it is left.
    Removed,
}

impl std::fmt::Display for Kind {
    /// As it stands on the wire.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

/// Something that has happened to a sandbox, which is shown as it is since then.
#[derive(Debug)]
pub(crate) struct Event {
    /// Milliseconds since 1970.
    pub(crate) time_ms: u64,
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Why, of what is not done by a request for just that. One line.
    pub(crate) reason: Option<String>,
}

/// Of which sandboxes somebody wants to know.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    /// An id, the beginning of one, or a name. The sandbox need not be there yet.
    pub(crate) sandbox: Option<String>,
    /// It has all of them.
    pub(crate) labels: Vec<(String, String)>,
}

/// Where events are told.
#[derive(Clone, Debug)]
pub(super) struct Events {
    sender: broadcast::Sender<Arc<Event>>,
    places: Arc<Semaphore>,
    ended: CancellationToken,
}

/// Somebody who is told.
pub(crate) struct Follower {
    events: broadcast::Receiver<Arc<Event>>,
    filter: Filter,
    ended: CancellationToken,
    _place: OwnedSemaphorePermit,
}

/// What a follower is told.
#[derive(Debug)]
pub(crate) enum Told {
    Event(Arc<Event>),
    /// So many events are not told any more, of whatever sandbox: it was too slow.
    Missed(u64),
}

impl Events {
    pub(super) fn new() -> Self {
        let (sender, _) = broadcast::channel(KEPT);
        Self { sender, places: Arc::new(Semaphore::new(MAX_FOLLOWERS)), ended: CancellationToken::new() }
    }

    /// Those who follow are told what there is, and then that it was all.
    pub(super) fn end(&self) {
        self.ended.cancel();
    }

    fn follow(&self, filter: Filter) -> Result<Follower, DaemonError> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| DaemonError::TooManyFollowers(MAX_FOLLOWERS))?;
        Ok(Follower { events: self.sender.subscribe(), filter, ended: self.ended.clone(), _place: place })
    }
}

impl Follower {
    /// What comes next; none when the daemon ends. Dropped before it returns, nothing is lost.
    pub(crate) async fn next(&mut self) -> Option<Told> {
        loop {
            let next = tokio::select! {
                biased;
                next = self.events.recv() => next,
                () = self.ended.cancelled() => return None,
            };
            match next {
                Ok(event) if self.filter.wants(&event) => return Some(Told::Event(event)),
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => return Some(Told::Missed(missed)),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

impl Filter {
    fn wants(&self, event: &Event) -> bool {
        let is = |key: &String| event.name == *key || event.id.starts_with(key.as_str());
        self.sandbox.as_ref().is_none_or(is)
            && self.labels.iter().all(|(key, value)| event.labels.get(key) == Some(value))
    }
}

impl Daemon {
    /// What happens from now on.
    pub(crate) fn follow_events(&self, filter: Filter) -> Result<Follower, DaemonError> {
        self.events.follow(filter)
    }
}

impl Sandbox {
    /// Tells of what has happened to it. Where its state has changed, before anybody else can change it.
    pub(super) fn tell(&self, kind: Kind, reason: Option<&str>) {
        if self.events.sender.receiver_count() == 0 {
            return;
        }
        let (name, image, labels) = {
            let record = self.record();
            (record.name.clone(), record.image_name.clone(), record.labels.clone())
        };
        // What follows the first line is the guest's.
        let first =
            |reason: &str| reason.lines().next().unwrap_or_default().chars().take(MAX_REASON).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (time_ms, reason) = (now.as_millis() as u64, reason.map(first));
        let event = Event { time_ms, kind, id: self.id().to_owned(), name, image, labels, reason };
        // The last of those who follow may just have gone.
        let _ = self.events.sender.send(Arc::new(event));
    }

    /// That its machine has ended, or could not be started.
    pub(super) fn tell_end(&self, state: State, reason: Option<&str>) {
        self.tell(if state == State::Stopped { Kind::Stopped } else { Kind::Failed }, reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: usize) -> Arc<Event> {
        Arc::new(Event {
            time_ms: 0,
            kind: Kind::Started,
            id: format!("{number:012x}"),
            name: format!("name-{number}"),
            image: "code".to_owned(),
            labels: BTreeMap::from([("parity".to_owned(), (number % 2).to_string())]),
            reason: None,
        })
    }

    fn id(told: Option<Told>) -> String {
        let Some(Told::Event(event)) = told else { panic!("{told:?}") };
        event.id.clone()
    }

    #[tokio::test]
    async fn who_is_slow_is_told_what_was_missed() {
        let events = Events::new();
        let mut slow = events.follow(Filter::default()).unwrap();
        for number in 0..KEPT + 3 {
            events.sender.send(event(number)).unwrap();
        }
        events.end();
        assert!(matches!(slow.next().await, Some(Told::Missed(3))));
        // What there still is comes in order, also after the end.
        for number in 3..KEPT + 3 {
            assert_eq!(id(slow.next().await), event(number).id);
        }
        assert!(slow.next().await.is_none());
    }

    #[tokio::test]
    async fn only_what_is_wanted() {
        let label = |value: &str| vec![("parity".to_owned(), value.to_owned())];
        for (sandbox, labels, wanted) in [
            (None, vec![], vec![17, 18, 19]),
            (Some("name-18"), vec![], vec![18]),
            (Some("name-1"), vec![], vec![]),
            (Some("0000000000"), vec![], vec![17, 18, 19]),
            (Some("000000000012"), label("0"), vec![18]),
            (Some("000000000012"), label("1"), vec![]),
            (None, label("1"), vec![17, 19]),
        ] {
            let events = Events::new();
            let filter = Filter { sandbox: sandbox.map(str::to_owned), labels };
            let mut follower = events.follow(filter).unwrap();
            for number in 17..20 {
                events.sender.send(event(number)).unwrap();
            }
            events.end();
            for number in wanted {
                assert_eq!(id(follower.next().await), event(number).id, "{sandbox:?}");
            }
            assert!(follower.next().await.is_none(), "{sandbox:?}");
        }
    }

    #[test]
    fn a_place_is_free_again_when_a_follower_goes() {
        let events = Events::new();
        let follow = || events.follow(Filter::default());
        let mut followers: Vec<Follower> = (0..MAX_FOLLOWERS).map(|_| follow().unwrap()).collect();
        assert!(matches!(follow(), Err(DaemonError::TooManyFollowers(MAX_FOLLOWERS))));
        followers.pop();
        assert!(follow().is_ok());
    }
}
