//! `--label`: each line begins with the number of its rank, as srun writes it. Pure.

use hpk_api::step::StepNews;

/// Puts the numbers before lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Label {
    wanted: bool,
    /// Digits of the largest number.
    width: usize,
}

/// How srun calls it.
const FLAGS: [&str; 2] = ["--label", "-l"];

impl Label {
    /// Whether the user's flags ask for it, and the flags without: srun would put its numbers before HPK's own records.
    pub(crate) fn of_flags(flags: Vec<String>) -> (Self, Vec<String>) {
        let before = flags.len();
        let rest: Vec<String> = flags.into_iter().filter(|flag| !FLAGS.contains(&flag.as_str())).collect();
        (Self { wanted: rest.len() < before, width: 1 }, rest)
    }

    /// A rank's first news tell how many there are; they come before its output.
    pub(crate) fn hear(&mut self, news: &StepNews) {
        if let StepNews::Started { ranks, .. } = news {
            self.width = self.width.max(ranks.saturating_sub(1).to_string().len());
        }
    }

    /// The line as it goes to the log.
    pub(crate) fn put(self, rank: u32, mut line: Vec<u8>) -> Vec<u8> {
        if self.wanted {
            line.splice(..0, format!("{rank:0width$}: ", width = self.width).into_bytes());
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::step::Rank;

    #[test]
    fn numbers_as_sruns() {
        let flags = |list: &[&str]| list.iter().map(|&flag| flag.to_owned()).collect::<Vec<_>>();
        let (mut label, rest) = Label::of_flags(flags(&["--label", "--mpi=pmix"]));
        assert_eq!(rest, ["--mpi=pmix"]);
        assert_eq!(label.put(3, b"x\n".into()), b"3: x\n");
        label.hear(&StepNews::Started { of: Rank::default(), ranks: 10 });
        assert_eq!(label.put(3, b"x\n".into()), b"3: x\n");
        label.hear(&StepNews::Started { of: Rank::default(), ranks: 11 });
        assert_eq!(label.put(3, b"x\n".into()), b"03: x\n");
        let (label, rest) = Label::of_flags(flags(&["--mpi=pmix"]));
        assert_eq!((label.put(3, b"x\n".into()), rest.len()), (b"x\n".to_vec(), 1));
    }
}
