//! What the policy has denied lately.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use net::engine::{Denial, Journal};
use serde::{Deserialize, Serialize};

/// So many denials are kept.
const KEPT: usize = 512;
/// Longer texts are cut, in bytes: a name has at most 253, but nothing bounds a rule here.
const LONGEST: usize = 1024;
/// At most so many bytes of JSON are told at once: a line of the control socket is bounded.
const TOLD: usize = 48 << 10;

/// The last denials. A clone is the same list.
#[derive(Clone, Debug, Default)]
pub struct Denials {
    list: Arc<Mutex<List>>,
}

#[derive(Debug, Default)]
struct List {
    denials: VecDeque<Denial>,
    /// The number of the last one.
    last: u64,
}

/// A denial with its number: they count from 1 as they come, so that a gap tells how many were forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NumberedDenial {
    /// Its number.
    pub number: u64,
    /// What was denied.
    #[serde(flatten)]
    pub denial: Denial,
}

impl Denials {
    /// What tells this list, to be given to an engine.
    pub fn journal(&self) -> Journal {
        let denials = self.clone();
        Box::new(move |denial| denials.push(denial))
    }

    fn push(&self, mut denial: Denial) {
        let texts = [&mut denial.protocol, &mut denial.destination, &mut denial.rule];
        for text in texts.into_iter().chain(&mut denial.name) {
            text.truncate(text.floor_char_boundary(LONGEST));
        }
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if list.denials.len() == KEPT {
            list.denials.pop_front();
        }
        list.denials.push_back(denial);
        list.last += 1;
    }

    /// Those after number `after`, oldest first; not all of them where they are many: the next question is for those after the last
    /// one of these.
    pub fn after(&self, after: u64) -> Vec<NumberedDenial> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let forgotten = list.last - list.denials.len() as u64;
        let skip = usize::try_from(after.saturating_sub(forgotten)).unwrap_or(usize::MAX);
        let mut left = TOLD;
        let numbered = (forgotten + 1..).zip(&list.denials).skip(skip);
        let numbered = numbered.map(|(number, denial)| NumberedDenial { number, denial: denial.clone() });
        numbered
            .take_while(|denial| {
                let len = serde_json::to_vec(denial).map_or(usize::MAX, |json| json.len() + 1);
                let fits = len <= left;
                left = left.saturating_sub(len);
                fits
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(destination: &str) -> Denial {
        Denial {
            time_ms: 1,
            protocol: "tcp".into(),
            destination: destination.into(),
            name: None,
            rule: "private".into(),
        }
    }

    #[test]
    fn keeps_the_last_ones() {
        let denials = Denials::default();
        assert_eq!(denials.after(0), []);
        let mut journal = denials.journal();
        for number in 1..=600 {
            journal(denial(&format!("10.0.0.1:{number}")));
        }
        // 600 of about 100 bytes are more than one answer holds.
        let first = denials.after(0);
        assert_eq!((first[0].number, &*first[0].denial.destination), (89, "10.0.0.1:89"));
        let mut all = first;
        while let Some(last) = all.last()
            && last.number < 600
        {
            let more = denials.after(last.number);
            assert_eq!(more[0].number, last.number + 1);
            all.extend(more);
        }
        assert_eq!(all.len(), KEPT);
        assert_eq!(denials.after(599).len(), 1);
        assert_eq!(denials.after(600), []);
        assert_eq!(denials.after(u64::MAX), []);
    }

    #[test]
    fn an_answer_is_bounded() {
        let denials = Denials::default();
        let mut journal = denials.journal();
        for _ in 0..KEPT {
            journal(denial(&"\0".repeat(20000)));
        }
        let told = serde_json::to_vec(&denials.after(0)).unwrap().len();
        assert!(told > TOLD / 2 && told <= TOLD + 2, "{told}");
    }
}
