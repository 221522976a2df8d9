//! The matrix: what tcpwatch sees on each kernel, by which hook, at what cost to the verifier, and which test proves
//! it. Markdown, aligned so that it can be read in a terminal too; it is printed, and written to
//! docs/kernel-support.md.

use std::collections::BTreeMap;

use super::{
    plan::What,
    run::Run,
    support::{FORCED, SKIPS},
};

const NOTHING: &str = "—";

/// A table whose first column names the rows, and whose others are kernels.
struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn of(what: &str, runs: &[Run]) -> Self {
        let kernels = runs.iter().map(|run| run.series.name.to_owned());
        Self { head: std::iter::once(what.to_owned()).chain(kernels).collect(), rows: Vec::new() }
    }

    fn row(&mut self, name: String, cells: impl Iterator<Item = String>) {
        self.rows.push(std::iter::once(name).chain(cells).collect());
    }

    fn render(&self) -> String {
        let lines = || std::iter::once(&self.head).chain(&self.rows);
        let width = |column: usize| lines().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let render = |cells: &[String]| {
            let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
        };
        let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
        let rows: String = self.rows.iter().map(|row| render(row)).collect();
        render(&self.head) + &render(&rule) + &rows
    }
}

pub(crate) fn matrix(runs: &[Run]) -> String {
    let mut text = format!("## Kernels\n\n{}", kernels(runs));
    text += &format!(
        "\n## Signals and the hooks that give them\n\nAs tcpwatch chooses by itself. Where no hook gives a signal, the cell says what is missing.\n\n{}",
        signals(runs)
    );
    text += &format!(
        "\n## Programs and the instructions that the verifier went through\n\nOf all ways that the tests below use. Kernels before \
         5.16 do not report it.\n\n{}",
        programs(runs)
    );
    text += "\n## Tests\n\nEvery test runs with the ways that tcpwatch chooses. Some run again with other ways forced";
    for forced in &FORCED {
        let hooks: Vec<_> = forced.hooks.iter().map(|(signal, way)| format!("`{signal}={way}`")).collect();
        text += &format!("; [{}]: {}", forced.name, hooks.join(" "));
    }
    text += &format!(".\n\n{}", tests(runs));
    text += "\nNot run:\n\n";
    for skip in &SKIPS {
        let series = if skip.series.is_empty() { "any".to_owned() } else { skip.series.join(", ") };
        text += &format!("- `{}` on {series}: {}\n", skip.test, skip.reason);
    }
    text
}

fn kernels(runs: &[Run]) -> String {
    let mut table = Table::of("", runs);
    table.row("release".into(), runs.iter().map(|run| run.kernel.release.clone()));
    table.row("Debian's version".into(), runs.iter().map(|run| run.kernel.version.clone()));
    let verdict = |run: &Run| run.checks.first().map_or(NOTHING, |check| check.verdict.name()).to_owned();
    table.row("tcpwatch".into(), runs.iter().map(verdict));
    table.render()
}

fn signals(runs: &[Run]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for signal in runs.iter().filter_map(|run| run.checks.first()).flat_map(|check| &check.signals) {
        if !names.contains(&&*signal.signal) {
            names.push(&signal.signal);
        }
    }
    let mut table = Table::of("signal", runs);
    for name in names {
        let cell = |run: &Run| {
            let signals = run.checks.first().map_or(&[][..], |check| &check.signals);
            let signal = signals.iter().find(|signal| signal.signal == name);
            let hook = signal.and_then(|signal| signal.hook.as_ref().or(signal.lost.as_ref()));
            hook.cloned().unwrap_or_else(|| NOTHING.to_owned())
        };
        table.row(name.to_owned(), runs.iter().map(cell));
    }
    table.render()
}

fn programs(runs: &[Run]) -> String {
    let counts: Vec<BTreeMap<(&str, &str), Option<u64>>> = runs
        .iter()
        .map(|run| {
            let programs = run.checks.iter().flat_map(|check| &check.programs);
            programs.map(|of| ((&*of.hook, &*of.program), of.verified_instructions)).collect()
        })
        .collect();
    let mut names: Vec<(&str, &str)> = counts.iter().flat_map(BTreeMap::keys).copied().collect();
    names.sort_unstable();
    names.dedup();
    let mut table = Table::of("program, hook", runs);
    for name in names {
        let cell = |counts: &BTreeMap<_, Option<u64>>| match counts.get(&name) {
            Some(Some(count)) => count.to_string(),
            Some(None) => "loaded".to_owned(),
            None => NOTHING.to_owned(),
        };
        table.row(format!("{}, {}", name.1, name.0), counts.iter().map(cell));
    }
    table.render()
}

fn tests(runs: &[Run]) -> String {
    // Tests that a kernel skips have no step there.
    let mut names: Vec<String> = Vec::new();
    for (step, _) in runs.iter().flat_map(|run| &run.steps) {
        if step.what != What::Check && !names.contains(&step.name()) {
            names.push(step.name());
        }
    }
    let mut table = Table::of("test", runs);
    for name in names {
        let cell = |run: &Run| {
            let step = run.steps.iter().find(|(step, _)| step.name() == name);
            let cell = match step {
                None => "not run",
                Some((_, None)) => "not reached",
                Some((_, Some(outcome))) if outcome.fault().is_none() => "ok",
                Some(_) => "FAILED",
            };
            cell.to_owned()
        };
        table.row(name.clone(), runs.iter().map(cell));
    }
    table.render()
}

#[cfg(test)]
mod tests_of_tables {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let table =
            Table { head: row(["test", "6.1"]), rows: vec![row(["a::b", "ok"]), row(["é", "FAILED"])] };
        assert_eq!(
            table.render(),
            "| test | 6.1    |\n| ---- | ------ |\n| a::b | ok     |\n| é    | FAILED |\n"
        );
    }
}
