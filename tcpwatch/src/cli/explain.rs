//! `tcpwatch explain`: the page of a rule.

use std::fmt::Write as _;

use crate::findings::rules::SPECS;

/// The page of a rule, or the list of the rules.
///
/// # Errors
/// For a name that is no rule's.
pub fn page(rule: Option<&str>) -> anyhow::Result<String> {
    let mut list = String::new();
    for spec in SPECS {
        if rule == Some(spec.rule.name()) {
            return Ok(spec.page.to_owned());
        }
        let _ = writeln!(list, "{}", spec.rule.name());
    }
    match rule {
        None => Ok(list),
        Some(unknown) => anyhow::bail!("`{unknown}` is not a rule; the rules:\n{}", list.trim_end()),
    }
}
