//! docs/reliability.md names tests that exist.

use std::{fs, path::Path};

const DOCUMENT: &str = include_str!("../../../docs/reliability.md");

/// The text of all sources and tests.
fn sources(folder: &Path) -> String {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let text = entries.map(|path| match path.extension() {
        _ if path.is_dir() => sources(&path),
        Some(extension) if extension == "rs" => fs::read_to_string(path).unwrap(),
        _ => String::new(),
    });
    text.collect()
}

#[test]
fn the_tests_that_the_document_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = ["src", "tests"].map(|folder| sources(&root.join(folder))).concat();
    let last_cells = DOCUMENT.lines().filter_map(|line| line.strip_suffix(" |")?.rsplit('|').next());
    // Every second part is inside backquotes.
    let names: Vec<_> = last_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        assert!(sources.contains(&format!("fn {name}()")), "{name}");
    }
}
