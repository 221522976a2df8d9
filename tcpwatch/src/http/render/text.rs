//! Text for people: aligned columns, durations and sizes as one would say them.

use std::fmt::Write as _;

use crate::{events::comm::is_visible, model::live::Spread};

/// Paths and the like, harmless on a terminal: no line breaks, no escape sequences.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_visible(c) { c } else { '\u{fffd}' }).collect()
}

/// A whole answer in text: harmless on a terminal, whatever it was made of.
pub(crate) fn harmless(text: String) -> String {
    let harms = |c: char| c != '\n' && !is_visible(c);
    if text.contains(harms) { text.replace(harms, "\u{fffd}") } else { text }
}

/// Columns as wide as their widest cell; the last one runs free.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// Two units at most: `250ms`, `4.2s`, `3m 07s`, `5h 12m`, `9d 4h`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0 if seconds < 0.9995 => format!("{:.0}ms", seconds * 1000.0),
        0..60 => format!("{seconds:.1}s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        3600..86400 => format!("{}h {:02}m", whole / 3600, whole / 60 % 60),
        _ => format!("{}d {}h", whole / 86400, whole / 3600 % 24),
    }
}

/// With `≥` where it is a lower bound.
pub(crate) fn bounded_duration(seconds: f64, is_lower_bound: bool) -> String {
    if is_lower_bound { format!("≥{}", duration(seconds)) } else { duration(seconds) }
}

/// The same for a number.
pub(crate) fn bounded_count(count: u64, is_lower_bound: bool) -> String {
    if is_lower_bound { format!("≥{count}") } else { count.to_string() }
}

/// With `>` where it is a lower bound, `<` where it is an upper one; `-` where it is not known.
pub(crate) fn known_duration(seconds: Option<f64>, is_lower_bound: bool, is_upper_bound: bool) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(seconds) if is_upper_bound => format!("<{}", duration(seconds)),
        Some(seconds) => bounded_duration(seconds, is_lower_bound),
    }
}

pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut size = bytes as f64;
    let mut unit = "bytes";
    for next in UNITS {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = next;
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{size:.1} {unit}") }
}

/// Broken at spaces to `width` columns, in longer words anywhere; the lines after the first indented.
pub(crate) fn wrap(text: &str, width: usize, indent: usize) -> String {
    let mut wrapped = String::new();
    let mut column = indent;
    let new_line = |wrapped: &mut String, column: &mut usize| {
        wrapped.push('\n');
        wrapped.push_str(&" ".repeat(indent));
        *column = indent;
    };
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > indent && column + 1 + length > width {
            new_line(&mut wrapped, &mut column);
        } else if column > indent {
            wrapped.push(' ');
            column += 1;
        }
        for c in word.chars() {
            if column >= width {
                new_line(&mut wrapped, &mut column);
            }
            wrapped.push(c);
            column += 1;
        }
    }
    wrapped
}

pub(crate) fn round_trip(times: Option<Spread>) -> String {
    spread(times, |seconds| format!("{:.3}ms", seconds * 1e3))
}

pub(crate) fn spread(times: Option<Spread>, shown: impl Fn(f64) -> String) -> String {
    times.map_or("-".to_owned(), |times| {
        let [least, mean, most] = [times.least_seconds, times.mean_seconds, times.most_seconds].map(shown);
        if least == most { mean } else { format!("{mean} ({least} to {most})") }
    })
}

/// Shares of the time in which there was something to send.
pub(crate) fn limits(busy_seconds: f64, peer_window_seconds: f64, buffer_seconds: f64) -> String {
    let limits = [("window", peer_window_seconds), ("buffer", buffer_seconds)];
    let shares = limits.into_iter().filter(|(_, seconds)| *seconds > 0.0);
    let shown: Vec<_> =
        shares.map(|(what, seconds)| format!("{what} {:.0}%", 100.0 * seconds / busy_seconds)).collect();
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_one_says_them() {
        for (seconds, text) in [
            (0.0, "0ms"),
            (0.25, "250ms"),
            (0.9999, "1.0s"),
            (59.9, "59.9s"),
            (187.0, "3m 07s"),
            (18_720.0, "5h 12m"),
            (800_000.0, "9d 6h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn no_line_is_longer_than_asked_for() {
        let wrapped = wrap("a blocked handler holds what nobody else will ever close", 20, 4);
        assert!(wrapped.lines().skip(1).all(|line| line.starts_with("    ") && line.len() <= 20));
        assert_eq!(wrapped.split_whitespace().count(), 10);
    }
}
