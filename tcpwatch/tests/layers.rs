//! The layers of docs/ARCHITECTURE.md, proved by the imports: a module imports only from its own folder and from layers
//! below it, folders form no circle, and the core neither does I/O nor reads a clock.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// The units of `src/`, lowest first.
const LAYERS: [&str; 11] =
    ["tcp", "events", "model", "findings", "kernel", "node", "http", "recorder", "pipeline", "cli", "main"];

/// The units that do no I/O and read no clock.
const CORE: [&str; 4] = ["tcp", "events", "model", "findings"];

/// Crates and items that do I/O or read a clock.
const FORBIDDEN_IN_CORE: [&str; 19] = [
    "aya",
    "axum",
    "libc",
    "netlink_packet_core",
    "netlink_packet_netfilter",
    "netlink_packet_sock_diag",
    "netlink_sys",
    "procfs",
    "rustix",
    "tokio",
    "hyper_util",
    "std::env",
    "std::fs",
    "std::net::TcpStream",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "Instant::now",
    "SystemTime::now",
];

/// The source without comments, string literals and unit tests, to which the rules do not apply.
fn code(source: &str) -> String {
    let (before, tests) = source.split_once("\n#[cfg(test)]\nmod tests {").unwrap_or((source, ""));
    // rustfmt closes the module with the next brace that begins a line.
    let behind = tests.split_once("\n}\n").map_or("", |(_, behind)| behind);
    let source = format!("{before}\n{behind}");
    let mut code = String::new();
    for line in source.lines() {
        let line = line.split("//").next().unwrap();
        // Every second part is inside quotes.
        code.extend(line.split('"').step_by(2));
        code.push('\n');
    }
    code
}

/// All paths that a `use` declaration names: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn flatten(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let (mut depth, mut start) = (0, 0);
    for (at, c) in tree.char_indices().chain([(tree.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let one = tree[start..at].trim();
                start = at + 1;
                match one.split_once('{') {
                    Some((head, rest)) => {
                        flatten(&format!("{prefix}{head}"), rest.trim_end().trim_end_matches('}'), paths);
                    }
                    None if one.is_empty() => {}
                    None => paths.push(format!("{prefix}{one}")),
                }
            }
            _ => {}
        }
    }
}

/// Every path that the code names, imported or inline, from the root of this crate or of another.
fn paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find("use ") {
        let is_declaration = at == 0 || rest[..at].ends_with(['\n', ' ']);
        rest = &rest[at + 4..];
        if is_declaration && let Some(end) = rest.find(';') {
            flatten("", &rest[..end].split_whitespace().collect::<Vec<_>>().join(" "), &mut paths);
        }
    }
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    paths.extend(code.split(|c| !is_path(c)).filter(|word| word.contains("::")).map(ToOwned::to_owned));
    paths
}

fn segments(path: &Path) -> Vec<String> {
    path.iter().map(|part| part.to_string_lossy().into_owned()).collect()
}

/// The unit of a file below `src/`, and its module path.
fn place(file: &Path) -> (String, Vec<String>) {
    let mut module = segments(&file.with_extension(""));
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    (module[0].clone(), module)
}

/// The path from the crate's root, if it leads into this crate.
fn in_crate(path: &str, module: &[String]) -> Option<Vec<String>> {
    let mut segments: Vec<&str> = path.split("::").map(str::trim).collect();
    let mut at = match segments.first()? {
        &"crate" | &"tcpwatch" => Vec::new(),
        &"self" => module.to_vec(),
        &"super" => {
            let mut at = module.to_vec();
            while segments.get(1) == Some(&"super") {
                segments.remove(0);
                at.pop();
            }
            at.pop();
            at
        }
        _ => return None,
    };
    at.extend(segments[1..].iter().map(|segment| (*segment).to_owned()));
    Some(at)
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Each file of `src/`, relative to it, with its code.
fn tree() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    files.sort();
    let relative = |file: &PathBuf| file.strip_prefix(&root).unwrap().to_owned();
    files.iter().map(|file| (relative(file), code(&std::fs::read_to_string(file).unwrap()))).collect()
}

/// The arrows that point against the layers.
fn against_the_layers<'a>(files: impl IntoIterator<Item = (&'a Path, &'a str)>) -> Vec<String> {
    let level = |unit: &str| LAYERS.iter().position(|layer| *layer == unit);
    let mut wrong = BTreeSet::new();
    for (file, code) in files {
        let (unit, module) = place(file);
        if unit == "lib" {
            continue;
        }
        let Some(own) = level(&unit) else {
            wrong.insert(format!("{}: {unit} is in no layer", file.display()));
            continue;
        };
        for path in paths(code) {
            let Some(target) = in_crate(&path, &module) else { continue };
            if target.first().and_then(|unit| level(unit)).is_some_and(|level| level > own) {
                wrong.insert(format!("{} imports {}, which is above it", file.display(), target.join("::")));
            }
        }
    }
    wrong.into_iter().collect()
}

/// The imports of the core that do I/O or read a clock.
fn impure<'a>(files: impl IntoIterator<Item = (&'a Path, &'a str)>) -> Vec<String> {
    let mut wrong = BTreeSet::new();
    for (file, code) in files {
        if !CORE.contains(&place(file).0.as_str()) {
            continue;
        }
        for path in paths(code) {
            let does = |what: &&&str| path == ***what || path.starts_with(&format!("{what}::"));
            if let Some(what) = FORBIDDEN_IN_CORE.iter().find(does) {
                wrong.insert(format!("{} uses {what}", file.display()));
            }
        }
    }
    wrong.into_iter().collect()
}

/// The folder that a module path leads to, as deep as folders go.
fn folder(path: &[String], folders: &BTreeSet<Vec<String>>) -> Vec<String> {
    (1..=path.len())
        .rev()
        .map(|length| path[..length].to_vec())
        .find(|path| folders.contains(path))
        .unwrap_or_default()
}

/// Circles between sibling folders. Imports between a folder and its parent are allowed both ways.
fn circles<'a>(files: impl IntoIterator<Item = (&'a Path, &'a str)> + Clone) -> Vec<String> {
    let folders: BTreeSet<Vec<String>> = files
        .clone()
        .into_iter()
        .filter_map(|(file, _)| Some(segments(file.parent()?)))
        .filter(|folder| !folder.is_empty())
        .collect();
    let mut arrows: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for (file, code) in files {
        let (_, module) = place(file);
        let from = folder(&module, &folders);
        for path in paths(code) {
            let Some(target) = in_crate(&path, &module) else { continue };
            let to = folder(&target, &folders);
            if !to.is_empty() && !from.is_empty() && !to.starts_with(&from) && !from.starts_with(&to) {
                arrows.entry(from.clone()).or_default().insert(to);
            }
        }
    }
    let reaches = |from: &Vec<String>, to: &Vec<String>| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(at) = next.pop() {
            for one in arrows.get(&at).into_iter().flatten() {
                if one == to {
                    return true;
                }
                if seen.insert(one.clone()) {
                    next.push(one.clone());
                }
            }
        }
        false
    };
    arrows.keys().filter(|folder| reaches(folder, folder)).map(|folder| folder.join("/")).collect()
}

fn borrowed(tree: &[(PathBuf, String)]) -> Vec<(&Path, &str)> {
    tree.iter().map(|(file, code)| (file.as_path(), code.as_str())).collect()
}

#[test]
fn no_module_imports_from_a_layer_above_its_own() {
    assert_eq!(against_the_layers(borrowed(&tree())), Vec::<String>::new());
}

#[test]
fn the_core_does_no_io_and_reads_no_clock() {
    assert_eq!(impure(borrowed(&tree())), Vec::<String>::new());
}

#[test]
fn folders_form_no_circle() {
    assert_eq!(circles(borrowed(&tree())), Vec::<String>::new());
}

#[test]
fn the_layers_that_the_document_states_are_those_that_are_proved() {
    let document =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ARCHITECTURE.md"))
            .unwrap();
    assert!(
        document.contains(&LAYERS.join(" < ")),
        "docs/ARCHITECTURE.md does not say `{}`",
        LAYERS.join(" < ")
    );
}

/// The tests above can fail.
#[test]
fn an_arrow_up_io_in_the_core_and_a_circle_are_found() {
    let file = Path::new("model/table.rs");
    for code in [
        "use crate::{tcp::state, http::Api};",
        "use crate::{\n    tcp::{\n        state,\n    },\n    http::{\n        Api,\n    },\n};",
        "fn f() { crate::http::router() }",
        "use super::super::http;",
    ] {
        assert_eq!(against_the_layers([(file, code)]).len(), 1, "{code}");
    }
    assert!(against_the_layers([(file, "use crate::tcp::state; use super::conn;")]).is_empty());
    assert_eq!(against_the_layers([(Path::new("misc.rs"), "")]).len(), 1);
    for code in [
        "use std::{io, fs};",
        "use aya::Ebpf;",
        "fn f() { std::time::Instant::now() }",
        "fn f() { SystemTime::now() }",
    ] {
        assert_eq!(impure([(file, code)]).len(), 1, "{code}");
    }
    assert!(
        impure([(file, "use std::{fmt, time::Duration};"), (Path::new("kernel/clock.rs"), "use std::fs;")])
            .is_empty()
    );
    let tied = [
        (Path::new("kernel/btf/mod.rs"), "use crate::kernel::probes::Signal;"),
        (Path::new("kernel/probes/mod.rs"), "use crate::kernel::btf::Btf;"),
    ];
    assert_eq!(circles(tied), ["kernel/btf", "kernel/probes"]);
}

#[test]
fn comments_strings_and_unit_tests_are_not_code() {
    let source = "// use aya::X;\nlet path = \"std::fs\";\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
    assert!(paths(&code(source)).is_empty());
    let behind = format!("{source}use std::fs;\n");
    assert!(paths(&code(&behind)).contains(&"std::fs".to_owned()), "what stands behind the tests is code");
}
