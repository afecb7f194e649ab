//! Words of a text, as a POSIX shell splits them, without any expansion.

/// Splits. Spaces, tabs and line breaks separate words; no word has a control character in it.
pub(super) fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let words = unquoted(text)?;
    if words.iter().any(|w| w.contains(char::is_control)) {
        return Err("a line break or another control character within a value");
    }
    Ok(words)
}

fn unquoted(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or("a single quote that is not closed")? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or("a double quote that is not closed")? {
                        '"' => break,
                        '\\' => match chars.next().ok_or("a double quote that is not closed")? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next().ok_or("a backslash at the end")?),
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn control_characters() {
        for text in ["'a\nb'", "a\\\nb", "\"a\rb\"", "a\0b", "'\u{1b}['", "'a\tb'"] {
            assert!(words(text).is_err(), "{text:?}");
        }
        assert_eq!(words("a\n\tb\r\nc").unwrap(), ["a", "b", "c"]);
    }

    proptest! {
        #[test]
        fn quoting_is_undone(all in proptest::collection::vec("[^'\\p{Cc}]{0,8}", 0..5)) {
            let text: Vec<String> = all.iter().map(|w| format!("'{w}'")).collect();
            prop_assert_eq!(words(&text.join(" ")).unwrap(), all);
        }
    }
}
