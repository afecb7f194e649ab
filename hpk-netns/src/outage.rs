//! What is told of a link that is away: each reason once, since a job's output is not a log of dials.

use hpk_api::link::NetUpdate;
use hpk_link::client::ClientEvent;

/// How many reasons of one outage are told.
const REASONS: usize = 5;

/// Tells outages of one link, and passes on what the link brings.
#[derive(Debug)]
pub(crate) struct Outage {
    /// Begins each line: the process, and the part of it.
    who: &'static str,
    told: Vec<String>,
}

/// What a link brings while it stands.
#[derive(Debug, PartialEq)]
pub(crate) enum News {
    /// It stands anew: the kubelet is about to say everything once more.
    Fresh,
    Net(NetUpdate),
}

impl Outage {
    pub(crate) fn of(who: &'static str) -> Self {
        Self { who, told: Vec::new() }
    }

    /// Takes what the link tells of itself. None: the link is away, and that was told on standard error if it was news.
    pub(crate) fn take(&mut self, event: ClientEvent) -> Option<News> {
        match event {
            ClientEvent::Up => {
                self.told.clear();
                Some(News::Fresh)
            }
            ClientEvent::Down { reason } => {
                if self.is_news(&reason) {
                    hpk_api::say!("{}: link to the kubelet: {reason}; dialling on", self.who);
                }
                None
            }
            ClientEvent::Net(update) => Some(News::Net(update)),
        }
    }

    fn is_news(&mut self, reason: &str) -> bool {
        let news = self.told.len() < REASONS && !self.told.iter().any(|told| told == reason);
        if news {
            self.told.push(reason.to_owned());
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_of_an_outage_is_told_once() {
        let mut outage = Outage::of("test");
        let told = ["cut", "refused", "cut", "refused", "a", "b", "c", "d"].map(|reason| outage.is_news(reason));
        assert_eq!(told, [true, true, false, false, true, true, true, false]);
        assert_eq!(outage.take(ClientEvent::Up), Some(News::Fresh));
        assert!(outage.is_news("cut"));
        assert_eq!(outage.take(ClientEvent::Down { reason: "cut".to_owned() }), None);
        let update = NetUpdate::ServicesSynced;
        assert_eq!(outage.take(ClientEvent::Net(update.clone())), Some(News::Net(update)));
    }
}
