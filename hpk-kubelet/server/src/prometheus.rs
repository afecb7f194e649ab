//! Metrics in Prometheus' text format. Pure.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>. The crate prometheus-client writes
//! OpenMetrics, in which the names of counters and the stamps of samples are not those of upstream's kubelet.

use jiff::Timestamp;
use std::fmt::{Display, Write};

/// All samples of one name.
#[derive(Clone, Debug)]
pub struct Family {
    name: &'static str,
    text: String,
}

impl Family {
    /// Values that only grow.
    #[must_use]
    pub fn counter(name: &'static str, help: &str) -> Self {
        Self::new(name, "counter", help)
    }

    /// Values that go up and down.
    #[must_use]
    pub fn gauge(name: &'static str, help: &str) -> Self {
        Self::new(name, "gauge", help)
    }

    /// Distributions: [`Self::part`] adds their buckets, sums and counts.
    #[must_use]
    pub fn histogram(name: &'static str, help: &str) -> Self {
        Self::new(name, "histogram", help)
    }

    fn new(name: &'static str, kind: &str, help: &str) -> Self {
        Self { name, text: format!("# HELP {name} {help}\n# TYPE {name} {kind}\n") }
    }

    /// Adds a sample of now.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, value, None);
    }

    /// Adds a sample of another time.
    pub(crate) fn sample_at(&mut self, labels: &[(&str, &str)], value: impl Display, at: Timestamp) {
        self.line("", labels, value, Some(at));
    }

    /// Adds a sample whose name has a suffix, such as `_bucket`.
    pub fn part(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        self.line(suffix, labels, value, None);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display, at: Option<Timestamp>) {
        let out = &mut self.text;
        out.push_str(self.name);
        out.push_str(suffix);
        for (index, (key, value)) in labels.iter().enumerate() {
            out.push(if index == 0 { '{' } else { ',' });
            out.push_str(key);
            out.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => out.push_str("\\\\"),
                    '"' => out.push_str("\\\""),
                    '\n' => out.push_str("\\n"),
                    c => out.push(c),
                }
            }
            out.push('"');
        }
        if !labels.is_empty() {
            out.push('}');
        }
        // Writing to a String does not fail.
        let _ = write!(out, " {value}");
        if let Some(at) = at {
            let _ = write!(out, " {}", at.as_millisecond());
        }
        out.push('\n');
    }
}

/// The families one after the other.
#[must_use]
pub fn text(families: impl IntoIterator<Item = Family>) -> String {
    families.into_iter().map(|family| family.text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_samples_and_escapes() {
        let mut one = Family::gauge("one", "What it is.");
        one.sample(&[], 1);
        one.sample(&[("a", "say \"x\\y\"\n"), ("b", "")], 0.5);
        one.sample_at(&[("a", "z")], 3, Timestamp::from_millisecond(1234).unwrap());
        let mut two = Family::histogram("two", "Times.");
        two.part("_bucket", &[("le", "+Inf")], 4);
        assert_eq!(
            text([one, two]),
            "# HELP one What it is.\n# TYPE one gauge\none 1\none{a=\"say \\\"x\\\\y\\\"\\n\",b=\"\"} 0.5\none{a=\"z\"} 3 1234\n\
             # HELP two Times.\n# TYPE two histogram\ntwo_bucket{le=\"+Inf\"} 4\n"
        );
    }
}
