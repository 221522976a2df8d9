//! docs/options.md, from the definitions of the command line.

use clap::{Arg, ArgAction, Command, CommandFactory as _};
use tcpwatch::cli::options::Cli;

use crate::assert_document;

const INTRODUCTION: &str = r#"# Options

<!-- Rendered by tcpwatch/tests/documents/options.rs; `cargo xtask docs` writes it anew. -->

An option of `tcpwatch run` comes from the command line, else from the environment, else from the file that `--config` names,
else it has its default. The file is TOML; its keys are the long names of the options, for example:

```toml
listen = "127.0.0.1:18280"
linger = ["close-wait=1s", "close=2s", "syn-sent=2s"]
ring-size = "16MiB"
max-connections = 200000
max-ended = 5000
max-label-sets = 500
```

`--linger` replaces `TCPWATCH_LINGER` as a whole; the file's limits stay for the states that neither names. `RUST_LOG` sets
what is logged (to stderr), `info` by default. [Recording and replaying](recording.md) and
[signals and ways](signals.md#ways) have pages of their own; `/connections/ID`, `/history`, `/leaks` and `/metrics` are
described in [http-api.md](http-api.md).
"#;

#[test]
fn every_option_is_in_the_document() {
    let mut cli = Cli::command();
    cli.build();
    let mut document = INTRODUCTION.to_owned();
    for command in cli.get_subcommands().filter(|command| command.get_name() != "help") {
        document += &section(command);
    }
    assert_document("docs/options.md", &document);
}

#[test]
fn run_has_the_options_of_tcpwatch_without_a_command() {
    let cli = Cli::command();
    let ids = |command: &Command| command.get_arguments().map(|arg| arg.get_id().clone()).collect::<Vec<_>>();
    assert_eq!(ids(&cli), ids(cli.find_subcommand("run").unwrap()));
}

fn section(command: &Command) -> String {
    let about = command.get_about().expect("every command says what it is for");
    let mut section = format!(
        "\n## tcpwatch {}\n\n{about}.\n\n| option | environment | default | meaning |\n|---|---|---|---|\n",
        command.get_name()
    );
    for arg in command.get_arguments().filter(|arg| is_documented(arg)) {
        let help = arg.get_help().expect("every option says what it means").to_string();
        let (meaning, default) = match help.trim_end_matches(']').split_once(" [default: ") {
            Some((meaning, default)) => (meaning.to_owned(), default.to_owned()),
            None => (help, default(arg)),
        };
        let environment = arg.get_env().map_or(String::new(), |name| format!("`{}`", name.display()));
        let cells = [format!("`{}`", name(arg)), environment, default, meaning];
        section += &format!("| {} |\n", cells.map(|cell| cell.replace('|', r"\|")).join(" | "));
    }
    section
}

/// All but those for tests and clap's own.
fn is_documented(arg: &Arg) -> bool {
    let own = matches!(
        arg.get_action(),
        ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
    );
    !own && !arg.is_hide_set()
}

/// `--listen ADDR:PORT`, `--json` or `FILE`.
fn name(arg: &Arg) -> String {
    let values = arg.get_value_names().unwrap_or_default().join(" ");
    match arg.get_long() {
        None => values,
        Some(long) if arg.get_action().takes_values() => format!("--{long} {values}"),
        Some(long) => format!("--{long}"),
    }
}

fn default(arg: &Arg) -> String {
    let values: Vec<_> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    match arg.get_action() {
        ArgAction::SetTrue => "off".to_owned(),
        _ if arg.is_required_set() => "required".to_owned(),
        _ if values.is_empty() => "none".to_owned(),
        _ => values.join(","),
    }
}
