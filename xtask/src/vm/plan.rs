//! The steps that a guest runs, and its report of each: xtask's side of the protocol whose other side is `init.sh`.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};

use super::support::{FORCED, Forced, Series, skipped};

/// Time limit of a step, by the guest's clock; the longest test takes a quarter of it.
const STEP_LIMIT_SECONDS: u32 = 300;
/// Variables that shorten the random workloads for an emulated processor, and set the seed, so that each run of the
/// matrix is the same. `cargo xtask test` runs them longer and with new seeds.
const RANDOM: &str = "TCPWATCH_ROUNDS=1 TCPWATCH_COMPARISONS=20 TCPWATCH_SEED=1";

#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) what: What,
    /// The ways that are forced, if any.
    pub(crate) forced: Option<&'static Forced>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum What {
    Check,
    /// One kernel test, by name.
    Test(String),
}

#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    /// The exit code; 137 when it took too long.
    pub(crate) exit_code: i32,
    pub(crate) printed: String,
    /// By the guest's clock.
    pub(crate) took: Duration,
}

/// All tests with the ways that tcpwatch chooses, then some with each set of forced ways.
pub(crate) fn steps(tests: &[String], series: &Series) -> Vec<Step> {
    let mut steps = Vec::new();
    for forced in std::iter::once(None).chain(FORCED.iter().map(Some)) {
        steps.push(Step { what: What::Check, forced });
        let again = |test: &&String| forced.is_none_or(|forced| forced.tests.contains(&test.as_str()));
        let here = |test: &&String| skipped(test, series).is_none();
        let tests = tests.iter().filter(again).filter(here);
        steps.extend(tests.map(|test| Step { what: What::Test(test.clone()), forced }));
    }
    steps
}

/// The steps in the form that `init.sh` reads.
pub(crate) fn script(steps: &[Step], tests: &Path, tcpwatch: &Path) -> String {
    let mut script = String::new();
    for (number, step) in steps.iter().enumerate() {
        let hooks: Vec<_> = step.forced.iter().flat_map(|forced| forced.hooks).collect();
        let command = match &step.what {
            What::Check => {
                let hooks = hooks.iter().map(|(signal, way)| format!(" --hook {signal}={way}"));
                format!("{} check --json{}", tcpwatch.display(), hooks.collect::<String>())
            }
            What::Test(name) => {
                let hooks: Vec<_> = hooks.iter().map(|(signal, way)| format!("{signal}={way}")).collect();
                let hooks = match &hooks[..] {
                    [] => String::new(),
                    hooks => format!(" TCPWATCH_HOOK={}", hooks.join(",")),
                };
                format!("env {RANDOM}{hooks} {} --exact {name} --nocapture", tests.display())
            }
        };
        script += &format!("step {number} {STEP_LIMIT_SECONDS} {command}\n");
    }
    script
}

impl Step {
    pub(crate) fn name(&self) -> String {
        let what = match &self.what {
            What::Check => "check",
            What::Test(name) => name,
        };
        self.forced.map_or_else(|| what.to_owned(), |forced| format!("{what} [{}]", forced.name))
    }
}

/// The guest's report so far.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// In the order of the steps, the last of which may be missing.
    pub(crate) outcomes: Vec<Outcome>,
    /// Whether it came to the end of its plan.
    pub(crate) done: bool,
    began: f64,
    printed: String,
}

impl Heard {
    /// Reads one more line, and returns whether a step ended with it.
    pub(crate) fn line(&mut self, line: &str) -> Result<bool> {
        let Some(said) = line.strip_prefix("@vm ") else {
            self.printed += line;
            self.printed.push('\n');
            return Ok(false);
        };
        let words: Vec<&str> = said.split(' ').collect();
        let misheard = || format!("the guest says {line:?} after {} steps", self.outcomes.len());
        match words[..] {
            ["begin", number, uptime] if number.parse() == Ok(self.outcomes.len()) => {
                self.began = uptime.parse().with_context(misheard)?;
                self.printed.clear();
                Ok(false)
            }
            ["end", number, exit_code, uptime] if number.parse() == Ok(self.outcomes.len()) => {
                let ended: f64 = uptime.parse().with_context(misheard)?;
                let exit_code = exit_code.parse().with_context(misheard)?;
                let printed = std::mem::take(&mut self.printed).trim().to_owned();
                let took = Duration::from_secs_f64((ended - self.began).max(0.0));
                self.outcomes.push(Outcome { exit_code, printed, took });
                Ok(true)
            }
            ["done"] => {
                self.done = true;
                Ok(false)
            }
            _ => anyhow::bail!(misheard()),
        }
    }

    /// The output so far of the step that has not ended.
    pub(crate) fn unfinished(&self) -> &str {
        self.printed.trim()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(said: &str) -> Result<Heard> {
        let mut heard = Heard::default();
        for line in said.lines() {
            heard.line(line)?;
        }
        Ok(heard)
    }

    #[test]
    fn each_step_has_its_own_output_exit_code_and_time() {
        let said = "noise of the boot\n\n@vm begin 0 1.50\n{}\n\n@vm end 0 0 3.75\n\n@vm begin 1 4.00\none\ntwo\n\n\
                    @vm end 1 101 4.00\n\n@vm done";
        let heard = heard(said).unwrap();
        let outcome = |exit_code, printed: &str, milliseconds| Outcome {
            exit_code,
            printed: printed.to_owned(),
            took: Duration::from_millis(milliseconds),
        };
        assert_eq!(heard.outcomes, [outcome(0, "{}", 2250), outcome(101, "one\ntwo", 0)]);
        assert!(heard.done);
    }

    #[test]
    fn a_guest_that_stops_amid_a_step_is_not_done() {
        let heard = heard("@vm begin 0 1.50\nhalf").unwrap();
        assert_eq!((heard.outcomes.len(), heard.done, heard.unfinished()), (0, false, "half"));
    }

    #[test]
    fn steps_that_do_not_follow_each_other_are_an_error() {
        assert!(heard("@vm begin 1 1.50").is_err());
        assert!(heard("@vm begin 0 1.50\n@vm end 0 x 2.00").is_err());
    }

    #[test]
    fn forced_ways_are_given_to_check_and_to_tests() {
        let forced = Some(&FORCED[0]);
        let steps = [
            Step { what: What::Check, forced },
            Step { what: What::Test("a::b".to_owned()), forced },
            Step { what: What::Test("a::c".to_owned()), forced: None },
        ];
        let script = script(&steps, Path::new("/t/kernel"), Path::new("/t/tcpwatch"));
        let (signal, way) = FORCED[0].hooks[0];
        let lines: Vec<&str> = script.lines().collect();
        assert!(lines[0].starts_with(&format!("step 0 {STEP_LIMIT_SECONDS} /t/tcpwatch check --json")));
        assert!(lines[0].contains(&format!(" --hook {signal}={way}")), "{}", lines[0]);
        assert!(lines[1].contains(&format!(" TCPWATCH_HOOK={signal}={way}")), "{}", lines[1]);
        assert!(lines[2].ends_with(" /t/kernel --exact a::c --nocapture"), "{}", lines[2]);
        assert!(!lines[2].contains("HOOK"), "{}", lines[2]);
    }
}
