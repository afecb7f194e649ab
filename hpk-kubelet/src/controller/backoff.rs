//! When an image whose pull failed is tried again: after 10 s, 20 s … 300 s, per pod and image, as by upstream's image manager.

use hpk_api::plan::Blocked;
use std::collections::HashMap;
use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);

/// Back-off of one pod's images.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    images: HashMap<String, Failure>,
}

#[derive(Clone, Debug)]
struct Failure {
    wait: Duration,
    until: Instant,
    reason: &'static str,
    message: String,
}

impl Backoff {
    /// When an image may be tried again; None: no image has failed.
    #[must_use]
    pub fn retry_after(&self, now: Instant) -> Option<Duration> {
        self.images.values().map(|f| f.until.saturating_duration_since(now)).min()
    }

    pub(super) fn blocked(&self, image: &str, now: Instant) -> Option<Blocked> {
        let failure = self.images.get(image).filter(|f| f.until > now)?;
        // A name that cannot be parsed and a policy of Never are not waited for: the reason stays.
        let reason = match failure.reason {
            "InvalidImageName" | "ErrImageNeverPull" => failure.reason,
            _ => "ImagePullBackOff",
        };
        let message = match reason {
            "ImagePullBackOff" => format!("Back-off pulling image {image:?}: {}: {}", failure.reason, failure.message),
            _ => failure.message.clone(),
        };
        Some(Blocked { reason: reason.to_owned(), message })
    }

    pub(super) fn worked(&mut self, image: &str) {
        self.images.remove(image);
    }

    pub(super) fn failed(&mut self, image: &str, reason: &'static str, message: String, now: Instant) {
        let wait = self.images.get(image).map_or(FIRST, |f| (f.wait * 2).min(LONGEST));
        self.images.insert(image.to_owned(), Failure { wait, until: now + wait, reason, message });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_up_to_five_minutes() {
        let mut backoff = Backoff::default();
        let start = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..7 {
            backoff.failed("x", "ErrImagePull", "no".into(), start);
            waits.push(backoff.retry_after(start).expect("a wait").as_secs());
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
        let blocked = backoff.blocked("x", start).expect("blocked");
        assert_eq!(blocked.reason, "ImagePullBackOff");
        assert_eq!(blocked.message, "Back-off pulling image \"x\": ErrImagePull: no");
        assert_eq!(backoff.blocked("x", start + LONGEST), None);
        assert_eq!(backoff.blocked("y", start), None);
    }
}
