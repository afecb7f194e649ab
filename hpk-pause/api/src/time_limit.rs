//! Slurm's time limits.

/// A job's time limit, or that of a partition; the longer is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimeLimit {
    /// Seconds.
    Seconds(u64),
    /// As long as it likes.
    Unlimited,
}

impl TimeLimit {
    /// Slurm's forms: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes,
    /// days-hours:minutes:seconds, UNLIMITED. None: something else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if ["unlimited", "infinite"].iter().any(|w| text.eq_ignore_ascii_case(w)) || text == "-1" {
            return Some(Self::Unlimited);
        }
        let numbers = |text: &str| text.split(':').map(|n| n.parse::<u64>().ok()).collect::<Option<Vec<_>>>();
        let (days, rest) = match text.split_once('-') {
            Some((days, rest)) => (Some(days.parse::<u64>().ok()?), numbers(rest)?),
            None => (None, numbers(text)?),
        };
        let (hours, minutes, seconds) = match (days, &rest[..]) {
            (None, [m]) => (0, *m, 0),
            (None, [m, s]) => (0, *m, *s),
            (Some(_), [h]) => (*h, 0, 0),
            (Some(_), [h, m]) => (*h, *m, 0),
            (_, [h, m, s]) => (*h, *m, *s),
            _ => return None,
        };
        let parts = [(days.unwrap_or(0), 86_400), (hours, 3600), (minutes, 60), (seconds, 1)];
        Some(Self::Seconds(parts.iter().fold(0, |sum: u64, (n, unit)| sum.saturating_add(n.saturating_mul(*unit)))))
    }
}

#[cfg(test)]
mod tests {
    use super::TimeLimit::{self, Seconds, Unlimited};

    #[test]
    fn time_limits() {
        for (text, limit) in [
            ("5", Some(Seconds(300))),
            ("5:30", Some(Seconds(330))),
            ("1:00:00", Some(Seconds(3600))),
            ("00:05:00", Some(Seconds(300))),
            ("2-0", Some(Seconds(172_800))),
            ("1-00:00:00", Some(Seconds(86_400))),
            ("1-2:30", Some(Seconds(95_400))),
            ("UNLIMITED", Some(Unlimited)),
            ("infinite", Some(Unlimited)),
            ("99999999999999999999", None),
            ("18446744073709551615", Some(Seconds(u64::MAX))),
            ("NONE", None),
            ("", None),
            ("1:2:3:4", None),
        ] {
            assert_eq!(TimeLimit::parse(text), limit, "{text}");
        }
        assert!(Unlimited > Seconds(u64::MAX));
    }
}
