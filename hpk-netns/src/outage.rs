//! What is told of a link that is away: each reason once, since a job's output is not a log of dials.

/// How many reasons of one outage are told.
const REASONS: usize = 5;

/// One outage.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    told: Vec<String>,
}

impl Outage {
    /// The link stands.
    pub(crate) fn over(&mut self) {
        self.told.clear();
    }

    /// It does not, and why; whether that is to be told.
    pub(crate) fn is_news(&mut self, reason: &str) -> bool {
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
        let mut outage = Outage::default();
        let told = ["cut", "refused", "cut", "refused", "a", "b", "c", "d"].map(|reason| outage.is_news(reason));
        assert_eq!(told, [true, true, false, false, true, true, true, false]);
        outage.over();
        assert!(outage.is_news("cut"));
    }
}
