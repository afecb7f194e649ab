//! RFC3339 time stamps with nine digits, UTC, formatted by hand.
//!
//! One stamp is made per read of a pipe; the date and second are formatted only when the second changes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Length of `2026-11-23T20:00:00.123456789Z`.
pub(crate) const LENGTH: usize = 30;

/// Formats times, remembering the text of the last second.
#[derive(Debug, Clone)]
pub struct Stamper {
    second: u64,
    text: [u8; LENGTH],
}

impl Default for Stamper {
    fn default() -> Self {
        Self::new()
    }
}

impl Stamper {
    /// A stamper that has formatted nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { second: u64::MAX, text: *b"1970-01-01T00:00:00.000000000Z" }
    }

    /// The present as text.
    pub fn now(&mut self) -> [u8; LENGTH] {
        self.format(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
    }

    /// Formats a time since 1970; years beyond 9999 are not representable and read as 9999.
    pub fn format(&mut self, since_epoch: Duration) -> [u8; LENGTH] {
        const LAST: u64 = 253_402_300_799;
        let second = since_epoch.as_secs().min(LAST);
        if second != self.second {
            self.second = second;
            let (year, month, day) = civil(second / 86_400);
            let of_day = second % 86_400;
            put(&mut self.text[0..4], year);
            put(&mut self.text[5..7], month);
            put(&mut self.text[8..10], day);
            put(&mut self.text[11..13], of_day / 3600);
            put(&mut self.text[14..16], of_day / 60 % 60);
            put(&mut self.text[17..19], of_day % 60);
        }
        put(&mut self.text[20..29], u64::from(since_epoch.subsec_nanos()));
        self.text
    }
}

/// Writes `value` in decimal, filling `digits` from the right with zeros.
fn put(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

/// Days since 1970-01-01 to year, month and day of the proleptic Gregorian calendar (Hinnant's algorithm).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let of_era = z % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// `YYYYMMDD-HHMMSS`, the suffix of rotated files.
pub(crate) fn rotation_suffix(stamp: &[u8; LENGTH]) -> String {
    let digits = |range: std::ops::Range<usize>| String::from_utf8_lossy(&stamp[range]).replace(['-', ':'], "");
    format!("{}-{}", digits(0..10), digits(11..19))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments() {
        let mut stamper = Stamper::new();
        for (seconds, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (1_795_460_399, 999_999_999, "2026-11-23T18:59:59.999999999Z"),
            (253_402_300_799, 5, "9999-12-31T23:59:59.000000005Z"),
            (u64::MAX, 5, "9999-12-31T23:59:59.000000005Z"),
        ] {
            assert_eq!(String::from_utf8_lossy(&stamper.format(Duration::new(seconds, nanos))), text);
        }
        assert_eq!(rotation_suffix(b"2026-11-23T18:59:59.999999999Z"), "20261123-185959");
    }

    proptest! {
        #[test]
        fn agrees_with_jiff(seconds in 0i64..253_402_207_200, nanos in 0i32..1_000_000_000) {
            let expected = jiff::Timestamp::new(seconds, nanos).unwrap();
            let text = Stamper::new().format(Duration::new(u64::try_from(seconds).unwrap(), u32::try_from(nanos).unwrap()));
            let parsed: jiff::Timestamp = std::str::from_utf8(&text).unwrap().parse().unwrap();
            prop_assert_eq!(parsed, expected);
        }
    }
}
