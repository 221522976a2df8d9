//! A process's name, and its text.
//!
//! A process may call itself anything. Its text is what answers, metric labels, the trace and filters have in common: no
//! two names have the same, it does not disturb a terminal or a table, and it is never one of the words that stand for no
//! name (`~unknown`, `~other`, `-`).

use std::{borrow::Cow, fmt, fmt::Write as _};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A process's name, as the kernel keeps it: up to 15 bytes (TASK_COMM_LEN, include/linux/sched.h) and a NUL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Comm([u8; 16]);

/// The text of a name without a byte.
const EMPTY: &str = "~empty";

impl Comm {
    /// Without what an older kernel leaves behind the NUL of a longer name.
    pub(super) fn new(mut bytes: [u8; 16]) -> Self {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        bytes[end..].fill(0);
        Self(bytes)
    }

    /// Keeps the first 15 bytes.
    pub fn of(name: &[u8]) -> Self {
        let mut comm = [0; 16];
        let len = name.len().min(comm.len() - 1);
        comm[..len].copy_from_slice(&name[..len]);
        Self::new(comm)
    }

    fn name(&self) -> &[u8] {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        &self.0[..end]
    }

    /// The name as text. A backslash is doubled. As `\xff` stand bytes that are not UTF-8, control characters, what is not
    /// visible, a space at either end or beside another one, and the `-` of a name that is nothing else. A `~` at the
    /// beginning is doubled, and `~empty` is the name without a byte.
    pub fn text(&self) -> Cow<'_, str> {
        let name = self.name();
        match std::str::from_utf8(name) {
            Ok(text) if is_plain(text) => Cow::Borrowed(text),
            _ => Cow::Owned(escaped(name)),
        }
    }

    /// The name with this text. What no name has as its text stands for itself.
    pub fn from_text(text: &str) -> Self {
        if text == EMPTY {
            return Self::of(&[]);
        }
        let mut rest = text.strip_prefix('~').filter(|rest| rest.starts_with('~')).unwrap_or(text).as_bytes();
        let mut comm = [0; 16];
        let mut places = comm.iter_mut();
        while let [first, behind @ ..] = rest {
            let (byte, left) = match rest {
                [b'\\', b'\\', left @ ..] => (b'\\', left),
                [b'\\', b'x', upper, lower, left @ ..] => match [*upper, *lower].map(hexadecimal) {
                    [Some(upper), Some(lower)] => (upper << 4 | lower, left),
                    _ => (*first, behind),
                },
                _ => (*first, behind),
            };
            let Some(place) = places.next() else { break };
            *place = byte;
            rest = left;
        }
        Self::new(comm)
    }
}

fn hexadecimal(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Whether a name is its own text.
fn is_plain(name: &str) -> bool {
    let marks = name.is_empty() || name == "-" || name.starts_with(['~', ' ']) || name.ends_with(' ');
    !marks && !name.contains("  ") && name.chars().all(|c| c != '\\' && is_visible(c))
}

/// Whether the character shows itself and nothing more: none that moves the cursor, sets colours, turns the direction of
/// writing or has no width.
pub fn is_visible(c: char) -> bool {
    let hidden = c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}'
        );
    c == ' ' || !(hidden || c.is_whitespace())
}

fn escaped(name: &[u8]) -> String {
    match name {
        [] => return EMPTY.to_owned(),
        [b'-'] => return r"\x2d".to_owned(),
        _ => {}
    }
    let mut text = String::from(if name.starts_with(b"~") { "~" } else { "" });
    let mut at = 0;
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            let behind = at + c.len_utf8();
            let edge = at == 0 || behind == name.len() || name[at - 1] == b' ' || name[behind] == b' ';
            if c == '\\' {
                text.push_str(r"\\");
            } else if is_visible(c) && !(c == ' ' && edge) {
                text.push(c);
            } else {
                push_bytes(&mut text, &name[at..behind]);
            }
            at = behind;
        }
        push_bytes(&mut text, chunk.invalid());
        at += chunk.invalid().len();
    }
    text
}

/// Bytes as `\xff`.
pub fn push_bytes(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, r"\x{byte:02x}");
    }
}

/// Keeps the first 15 bytes.
impl From<&str> for Comm {
    fn from(name: &str) -> Self {
        Self::of(name.as_bytes())
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text(), f)
    }
}

impl Serialize for Comm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for Comm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_text(&String::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_text_that_shows_them() {
        for (name, text) in [
            (&b"nginx"[..], "nginx"),
            (b"Web Content", "Web Content"),
            (b"kworker/0:1-ev", "kworker/0:1-ev"),
            ("größe".as_bytes(), "größe"),
            (b"", "~empty"),
            (b"~empty", "~~empty"),
            (b"~other", "~~other"),
            (b"~~", "~~~"),
            (b"a~", "a~"),
            (b"-", r"\x2d"),
            (b"-bash", "-bash"),
            (b"\xff\xfe", r"\xff\xfe"),
            (br"\xff\xfe", r"\\xff\\xfe"),
            (b"a\\b", r"a\\b"),
            (b"a\nb\"c", r#"a\x0ab"c"#),
            (b"\x1b[31mred", r"\x1b[31mred"),
            ("a\u{202e}b\u{9b}".as_bytes(), r"a\xe2\x80\xaeb\xc2\x9b"),
            (b" a  b c ", r"\x20a\x20\x20b c\x20"),
            (b" ", r"\x20"),
            (b"cut short \xe2\x82", r"cut short \xe2\x82"),
        ] {
            assert_eq!(Comm::of(name).text(), text);
        }
    }

    #[test]
    fn what_is_behind_the_end_of_a_name_is_no_part_of_it() {
        let old = Comm::new(*b"x\0rmer name\0\0\0\0\0");
        assert_eq!(old, Comm::of(b"x"));
    }
}
