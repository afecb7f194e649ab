//! `$(VAR)` expansion of environment, command and arguments.
//!
//! The rule of <https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/>:
//! `$(VAR)` is replaced when VAR is known and left as it is otherwise; `$$` stands for one `$`.

/// Expands `input` with what `lookup` knows.
pub(crate) fn expand<'a>(input: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    match try_expand(input, |name| Ok::<_, std::convert::Infallible>(lookup(name))) {
        Ok(text) => text,
        Err(never) => match never {},
    }
}

/// Replaces `$(VAR)` of names that are known and takes `$$(VAR)` of them for the text itself; all else, `$$` of a shell
/// among it, stays as it is.
pub(crate) fn expand_known<'a>(input: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut output = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find("$(") {
        let (before, reference) = rest.split_at(at);
        let inner = &reference[2..];
        output.push_str(before);
        match inner.find(')').and_then(|close| Some((lookup(&inner[..close])?, close))) {
            Some((value, close)) => {
                if output.ends_with('$') {
                    output.push_str(&reference[1..close + 3]);
                } else {
                    output.push_str(value);
                }
                rest = &inner[close + 1..];
            }
            None => {
                output.push_str("$(");
                rest = inner;
            }
        }
    }
    output.push_str(rest);
    output
}

/// As [`expand`], for callers to whom an unknown name is an error (`subPathExpr`).
///
/// # Errors
/// The first error of `lookup`.
pub(crate) fn try_expand<'a, E>(input: &str, lookup: impl Fn(&str) -> Result<Option<&'a str>, E>) -> Result<String, E> {
    let mut output = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        output.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            output.push('$');
            rest = after;
        } else if let Some(close) = rest.strip_prefix('(').and_then(|inner| inner.find(')')) {
            let name = &rest[1..=close];
            match lookup(name)? {
                Some(value) => output.push_str(value),
                None => {
                    output.push_str("$(");
                    output.push_str(name);
                    output.push(')');
                }
            }
            rest = &rest[close + 2..];
        } else {
            output.push('$');
        }
    }
    output.push_str(rest);
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn of_a_shells_text_only_known_names_are_taken() {
        let lookup = |name: &str| (name == "A").then_some("1");
        for (text, expected) in [
            ("$(A) x$(A)y", "1 x1y"),
            ("$$(A)", "$(A)"),
            ("kill $$; $(date) $(B) $$(B) $A ${A}", "kill $$; $(date) $(B) $$(B) $A ${A}"),
            ("$(echo $(A))", "$(echo 1)"),
            ("$(A", "$(A"),
            ("$()", "$()"),
            ("", ""),
        ] {
            assert_eq!(expand_known(text, lookup), expected, "{text}");
        }
    }

    fn lookup(name: &str) -> Option<&'static str> {
        match name {
            "A" => Some("1"),
            "B" => Some("$(A)"),
            "EMPTY" => Some(""),
            _ => None,
        }
    }

    #[test]
    fn as_documented() {
        for (input, output) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(A)"),
            ("$(EMPTY)", ""),
            ("$(NOPE)", "$(NOPE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$(A)", "$$(A)"),
            ("$A", "$A"),
            ("$", "$"),
            ("a$", "a$"),
            ("$(A", "$(A"),
            ("$()", "$()"),
            ("é$(A)ü", "é1ü"),
        ] {
            assert_eq!(expand(input, lookup), output, "{input}");
        }
    }

    proptest! {
        #[test]
        fn text_without_dollar_is_kept(text in "[^$]{0,40}") {
            prop_assert_eq!(expand(&text, lookup), text);
        }

        #[test]
        fn total(text in "[$()AB é]{0,40}") {
            let _ = expand(&text, lookup);
        }
    }
}
