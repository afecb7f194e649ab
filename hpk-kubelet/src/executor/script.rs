//! The first program of a run: it only hands the run over to hpk-netns.

use hpk_api::plan::PodRef;
use std::path::Path;

/// Text of `job.sh`. The last line replaces the shell, so that signals reach hpk-netns. `command` and
/// `arguments` say what the executor was asked for, for who reads the file.
#[must_use]
pub(crate) fn script(who: &PodRef, netns: &Path, folder: &Path, command: &str, arguments: &[String]) -> String {
    let quoted: Vec<String> = arguments.iter().map(|a| quote(a)).collect();
    format!(
        "#!/bin/sh\n# pod {}/{} {}\n# {} {}\nexec {} run {}\n",
        comment(&who.namespace),
        comment(&who.name),
        comment(&who.uid),
        comment(command),
        comment(&quoted.join(" ")),
        quote(&netns.to_string_lossy()),
        quote(&folder.to_string_lossy()),
    )
}

/// A line break would end the comment and begin a command.
fn comment(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// Quotes a word for a POSIX shell, when it needs it.
#[must_use]
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@,+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_over() {
        let who = PodRef { namespace: "ns".into(), name: "p".into(), uid: "u".into() };
        let text = script(
            &who,
            Path::new("/home/a b/hpk-netns"),
            Path::new("/home/it's/pods/u"),
            "sbatch",
            &["--x=a\nb".into()],
        );
        assert_eq!(
            text,
            "#!/bin/sh\n# pod ns/p u\n# sbatch '--x=a b'\nexec '/home/a b/hpk-netns' run '/home/it'\\''s/pods/u'\n"
        );
    }
}
