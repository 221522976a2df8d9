//! Numbers for people: right-aligned, thousands separated, `-` for what is not known, and no line over 100 columns.

use std::fmt::Write as _;

/// Columns of a terminal that no line is wider than.
pub(crate) const COLUMNS: usize = 100;

/// `1,204`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// With `-` for what is not known.
pub(crate) fn known(number: Option<f64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| thousands(number.round() as u64))
}

/// With one digit behind the point, unless it is zero; `-` for what is not known.
pub(crate) fn tenths(number: Option<f64>) -> String {
    let Some(number) = number else { return "-".to_owned() };
    let tenths = (number * 10.0).round() as u64;
    match (tenths, number > 0.0) {
        (0, false) => "0".to_owned(),
        (0, true) => "<0.1".to_owned(),
        _ => format!("{}.{}", thousands(tenths / 10), tenths % 10),
    }
}

/// At most `width` characters; where some are left out, the last is `~`.
pub(crate) fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['~']).collect()
}

/// `left`, and `right` at the end of the line, or on a line of its own where both do not fit.
pub(crate) fn both_ends(left: &str, right: &str) -> String {
    let left = shortened(left, COLUMNS);
    let (used, needed) = (left.chars().count(), right.chars().count());
    if used + 2 + needed > COLUMNS {
        return format!("{left}\n{right:>COLUMNS$}\n");
    }
    format!("{left}{right:>width$}\n", width = COLUMNS - used)
}

/// A table of numbers: the first column is left-aligned and shortened to `first`, all others are right-aligned. Columns that
/// do not fit are left out, from the right.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>], first: usize) -> String {
    let lines = || std::iter::once(header.to_vec()).chain(rows.iter().map(|row| cells(row)));
    let width = |column: usize| {
        let widths = lines().filter_map(|line: Vec<&str>| Some(line.get(column)?.chars().count()));
        widths.max().unwrap_or(0)
    };
    let mut widths = vec![width(0).min(first)];
    let mut used = widths[0];
    for column in 1..header.len() {
        let width = width(column);
        used += width + 2;
        if used > COLUMNS {
            break;
        }
        widths.push(width);
    }
    let mut text = String::new();
    for line in lines() {
        let name = shortened(line.first().copied().unwrap_or_default(), widths[0]);
        let mut shown = format!("{name:<width$}", width = widths[0]);
        for (cell, width) in line.iter().zip(&widths).skip(1) {
            let _ = write!(shown, "  {cell:>width$}");
        }
        text += shown.trim_end();
        text.push('\n');
    }
    text
}

fn cells(row: &[String]) -> Vec<&str> {
    row.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_one_writes_them() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
        for (number, text) in [
            (None, "-"),
            (Some(0.0), "0"),
            (Some(0.04), "<0.1"),
            (Some(0.05), "0.1"),
            (Some(1234.56), "1,234.6"),
        ] {
            assert_eq!(tenths(number), text);
        }
        assert_eq!([known(None), known(Some(1204.4))], ["-", "1,204"]);
    }

    #[test]
    fn no_line_is_too_wide_and_columns_are_left_out_from_the_right() {
        let rows = vec![vec!["x".repeat(200), "1".into(), "2".repeat(40), "3".repeat(40)]];
        let text = table(&["NAME", "A", "B", "C"], &rows, 30);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() <= COLUMNS), "{text}");
        assert!(
            lines[0].ends_with('B') && lines[1].starts_with(&format!("{}~  1  2", "x".repeat(29))),
            "{text}"
        );
        let wide = both_ends(&"left ".repeat(30), "right");
        assert!(wide.lines().all(|line| line.chars().count() == COLUMNS), "{wide}");
        assert_eq!(both_ends("left", "right").chars().count(), COLUMNS + 1);
    }
}
