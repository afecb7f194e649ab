//! Whether the user has subordinate ids, as `/etc/subuid` and `/etc/subgid` say. Pure but for reading the files.
//!
//! The binary is static, so names are not looked up through NSS; the name comes from the environment.

/// True when both files give ids to `name` or `uid`.
pub(crate) fn available(uid: u32, name: Option<&str>) -> bool {
    ["/etc/subuid", "/etc/subgid"]
        .iter()
        .all(|file| std::fs::read_to_string(file).is_ok_and(|text| has_range(&text, uid, name)))
}

/// `subuid(5)`: `name-or-id:first:count`.
fn has_range(text: &str, uid: u32, name: Option<&str>) -> bool {
    text.lines().any(|line| {
        let mut fields = line.split(':');
        let owner = fields.next().unwrap_or_default();
        let count = fields.nth(1).and_then(|c| c.trim().parse::<u64>().ok()).unwrap_or(0);
        (Some(owner) == name || owner == uid.to_string()) && count > 0
    })
}

#[cfg(test)]
mod tests {
    use super::has_range;

    #[test]
    fn by_name_or_number_with_a_count() {
        let text = "alice:100000:65536\n1001:165536:65536\ncarol:1:0\nbroken\n";
        assert!(has_range(text, 1000, Some("alice")));
        assert!(has_range(text, 1001, None));
        assert!(!has_range(text, 1002, Some("carol")));
        assert!(!has_range(text, 1003, Some("broken")));
        assert!(!has_range(text, 1004, None));
    }
}
