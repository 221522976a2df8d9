//! docs/thresholds.md, from the rules' tables.

use std::fmt::Write as _;

use tcpwatch::findings::rules::SPECS;

use crate::assert_document;

const INTRODUCTION: &str = r"# Thresholds

<!-- Rendered by tcpwatch/tests/documents/thresholds.rs; `cargo xtask docs` writes it anew. -->

What the rules of `/findings` hold their numbers against. `--threshold NAME=NUMBER`, the variable `TCPWATCH_THRESHOLD` or the
key `threshold` of the configuration file sets another limit, for example `--threshold close_wait_leak.stuck_seconds=60`.
";

#[test]
fn the_thresholds_are_documented() {
    let mut text = INTRODUCTION.to_owned();
    for spec in SPECS {
        let rule = spec.rule.name();
        let _ = write!(text, "\n## {rule}\n\n| name | default | why |\n|---|---:|---|\n");
        for threshold in spec.thresholds {
            let _ = writeln!(text, "| `{}` | {} | {} |", threshold.name, threshold.default, threshold.reason);
        }
    }
    assert_document("docs/thresholds.md", &text);
}
