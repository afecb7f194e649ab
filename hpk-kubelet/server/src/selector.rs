//! Label selectors as text. Pure.
//!
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#api>. Matching is the crate kube's.

use kube::core::{Expression, Selector};

/// The part of a selector that is no requirement, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unable to parse requirement: {0:?}")]
pub(crate) struct SelectorError(String);

/// Reads `a=b,c!=d,e in (x,y),f notin (z),g,!h`.
///
/// # Errors
/// A part is no requirement.
pub(crate) fn parse(text: &str) -> Result<Selector, SelectorError> {
    split(text).into_iter().filter(|part| !part.is_empty()).map(requirement).collect()
}

/// Splits at commas that are not inside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_u32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

fn requirement(text: &str) -> Result<Expression, SelectorError> {
    let key = |key: &str| {
        let key = key.trim();
        let fine = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
        if fine { Ok(key.to_owned()) } else { Err(SelectorError(text.to_owned())) }
    };
    if let Some((head, set)) = text.strip_suffix(')').and_then(|t| t.split_once('(')) {
        let values = set.split(',').map(|v| v.trim().to_owned()).collect();
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(word), Some("in"), None) => Ok(Expression::In(key(word)?, values)),
            (Some(word), Some("notin"), None) => Ok(Expression::NotIn(key(word)?, values)),
            // Not a key: says so.
            _ => key(text).map(Expression::Exists),
        };
    }
    if let Some((word, value)) = text.split_once("!=") {
        return Ok(Expression::NotEqual(key(word)?, value.trim().to_owned()));
    }
    if let Some((word, value)) = text.split_once('=') {
        return Ok(Expression::Equal(key(word)?, value.trim_start_matches('=').trim().to_owned()));
    }
    match text.strip_prefix('!') {
        Some(word) => key(word).map(Expression::DoesNotExist),
        None => key(text).map(Expression::Exists),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::SelectorExt as _;
    use std::collections::BTreeMap;

    #[test]
    fn selectors_match_as_upstreams() {
        let labels: BTreeMap<String, String> =
            [("app", "web"), ("tier", "front")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        for (text, wanted) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app!=web", false),
            ("none!=x", true),
            ("app in (web, db),tier", true),
            ("app notin (web)", false),
            ("none notin (x)", true),
            ("!none", true),
            ("!app", false),
            ("none", false),
        ] {
            assert_eq!(parse(text).unwrap().matches(&labels), wanted, "{text}");
        }
        for bad in ["a b", "=x", "app of (x)", "app in x)"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
