//! `cargo xtask drill`: incidents made with real software, and what tcpwatch says of them.
//!
//! A drill has a file, named after its rule. It shows what an operator sees, asks tcpwatch, holds its numbers against
//! another source, and checks that a healthy twin beside it is not named. `stage` gives it namespaces and programs,
//! `watch` the findings of a running tcpwatch, `software` the programs, `background` a healthy load beside them. Programs
//! written for the drills are in `xtask/drills`.

mod abortive_close;
mod accept_queue_overflow;
mod background;
mod close_wait_leak;
mod connect_failures;
mod connection_pool_leak;
mod fin_wait2_pileup;
mod hol_blocking;
mod keepalive_missing;
mod keepalive_race;
mod nagle_stall;
mod network_cleared;
mod port_exhaustion;
mod redirected_connection;
mod retransmit_failed;
mod reuseport_imbalance;
mod slow_peer;
mod socket_fd_leak;
mod software;
mod stage;
mod stale_pooled_connection;
mod syn_on_half_dead_connection;
mod throughput_outlier;
mod time_wait_churn;
mod unaccepted_connections;
mod watch;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use self::{background::Background, software::Software, stage::Stage, watch::Watch};
use crate::{command, debian, stop};

/// Show incidents with real software, and that tcpwatch names them
///
/// Each drill shows what an operator sees, asks tcpwatch, compares its numbers with ss, nstat, /proc or the log of the
/// software, and checks that the healthy twin beside it is not named. Runs as root (through `sudo -E` if you are not),
/// in network namespaces of its own. Installs the software that this machine lacks with apt-get, saying so; servers are
/// not started on the machine. What cannot run here is SKIPPED with the reason, and never counted as passed.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "independent options")]
pub(crate) struct Args {
    /// Which; all when none is given
    names: Vec<String>,

    /// Name them, and how long each takes at most
    #[arg(long)]
    list: bool,

    /// Leave out the long ones
    #[arg(long)]
    short: bool,

    /// How often each is run
    #[arg(long, value_name = "TIMES", default_value_t = 1)]
    times: usize,

    /// How many run at the same time, beside one tcpwatch
    #[arg(long, value_name = "DRILLS", default_value_t = 8)]
    jobs: usize,

    /// Only what the operator sees, and the other source: tcpwatch is not asked
    #[arg(long)]
    symptoms: bool,

    /// Run healthy software for so long, and fail if anything is found wrong with it; amid it run the drills that are
    /// named, or `all`
    #[arg(long, value_name = "MINUTES", conflicts_with = "symptoms")]
    background: Option<f64>,

    /// The folder that was prepared before root was needed
    #[arg(long, hide = true)]
    prepared: Option<PathBuf>,
}

/// One incident.
struct Drill {
    name: &'static str,
    /// The rules that it needs.
    rules: &'static [&'static str],
    /// Whether it takes more than two minutes.
    long: bool,
    run: fn(&Stage) -> Result<()>,
}

const fn short(name: &'static str, rules: &'static [&'static str], run: fn(&Stage) -> Result<()>) -> Drill {
    Drill { name, rules, long: false, run }
}

/// In the order in which they are started: those that take longest first.
const DRILLS: [Drill; 23] = [
    short(
        "blocked_by_its_pool",
        &["close_wait_leak", "connection_pool_leak", "fin_wait2_pileup"],
        close_wait_leak::with_pool,
    ),
    short("close_wait_leak", &["close_wait_leak", "fin_wait2_pileup"], close_wait_leak::run),
    short("keepalive_race", &["keepalive_race"], keepalive_race::run),
    short("unaccepted_connections", &["unaccepted_connections"], unaccepted_connections::run),
    short("fin_wait2_pileup", &["fin_wait2_pileup"], fin_wait2_pileup::run),
    short("connect_failures", &["connect_failures"], connect_failures::run),
    short("accept_queue_overflow", &["accept_queue_overflow"], accept_queue_overflow::run),
    short("port_exhaustion", &["port_exhaustion"], port_exhaustion::run),
    short("time_wait_churn", &["time_wait_churn"], time_wait_churn::run),
    short("connection_pool_leak", &["connection_pool_leak"], connection_pool_leak::run),
    short("stale_pooled_connection", &["stale_pooled_connection"], stale_pooled_connection::run),
    short("socket_fd_leak", &["socket_fd_leak"], socket_fd_leak::run),
    short("abortive_close", &["abortive_close"], abortive_close::run),
    short("redirected_connection", &["redirected_connection"], redirected_connection::run),
    short("reuseport_imbalance", &["reuseport_imbalance"], reuseport_imbalance::run),
    short("nagle_stall", &["nagle_stall"], nagle_stall::run),
    short("slow_peer", &["slow_peer"], slow_peer::run),
    short("retransmit_failed", &["retransmit_failed"], retransmit_failed::run),
    short("syn_on_half_dead_connection", &["syn_on_half_dead_connection"], syn_on_half_dead_connection::run),
    short("hol_blocking", &["hol_blocking"], hol_blocking::run),
    short("keepalive_missing", &["keepalive_missing"], keepalive_missing::run),
    short("network_cleared", &["network_cleared"], network_cleared::run),
    Drill {
        name: "throughput_outlier",
        rules: &["throughput_outlier"],
        long: true,
        run: throughput_outlier::run,
    },
];

/// What became of a drill.
enum Outcome {
    Passed,
    /// tcpwatch has no such rule yet.
    NotRun(String),
    /// It cannot run here.
    Skipped(String),
    Failed(String),
}

pub(crate) fn drill(args: &Args) -> Result<()> {
    let drills = chosen(args)?;
    if args.list {
        for drill in drills {
            println!("{:<28} {}", drill.name, if drill.long { "long" } else { "short" });
        }
        return Ok(());
    }
    if !debian::has_apt() {
        for drill in drills {
            println!(
                "drill {:<28} SKIPPED  this is neither Debian nor Ubuntu, whose packages it uses",
                drill.name
            );
        }
        return Ok(());
    }
    let prepared = match &args.prepared {
        Some(prepared) => prepared.clone(),
        None => software::prepare(!args.symptoms)?,
    };
    if !command::is_root()? {
        let again = std::env::args_os().skip(1);
        return command::run(
            command::as_root(command::xtask()?)?.args(again).arg("--prepared").arg(&prepared),
        );
    }
    stop::stop_at_signals()?;
    let folder = Folder::new()?;
    let software = Software::new(&prepared);
    let watch = (!args.symptoms).then(|| Watch::start(&software, &folder.0)).transpose()?;
    let background = match (args.background, &watch) {
        (Some(minutes), Some(watch)) => Some((minutes, Background::start(&folder.0, &software, watch)?)),
        _ => None,
    };
    let outcomes = run_all(args, &drills, &software, watch.as_ref(), &folder.0);
    let healthy = background.map_or(Ok(()), |(minutes, background)| background.judge(minutes));
    if !drills.is_empty() {
        report(&drills, &outcomes)?;
    }
    healthy
}

fn chosen(args: &Args) -> Result<Vec<&'static Drill>> {
    let all = args.names == ["all"] || (args.names.is_empty() && args.background.is_none());
    let named = |drill: &Drill| args.names.iter().any(|name| name == drill.name);
    for name in args.names.iter().filter(|_| !all) {
        ensure!(DRILLS.iter().any(|drill| drill.name == name), "there is no drill {name}; --list names them");
    }
    Ok(DRILLS.iter().filter(|drill| (all || named(drill)) && !(args.short && drill.long)).collect())
}

/// Runs each drill as often as asked, several at the same time. An outcome for each run, in the order of the drills.
fn run_all(
    args: &Args,
    drills: &[&Drill],
    software: &Software,
    watch: Option<&Watch>,
    folder: &Path,
) -> Vec<(usize, Outcome, Duration)> {
    let runs: Vec<usize> = (0..args.times).flat_map(|_| 0..drills.len()).collect();
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(&which) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop::stopped() {
                return;
            }
            let began = Instant::now();
            let outcome = run_one(drills[which], software, watch, folder);
            let took = began.elapsed();
            println!("{}", line(drills[which], &outcome, took));
            if let Ok(mut outcomes) = outcomes.lock() {
                outcomes.push((which, outcome, took));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(work);
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_default();
    outcomes.sort_by_key(|(which, ..)| *which);
    outcomes
}

fn run_one(drill: &Drill, software: &Software, watch: Option<&Watch>, folder: &Path) -> Outcome {
    if let Some(watch) = watch {
        match watch.without(drill.rules) {
            Ok(None) => {}
            Ok(Some(outcome)) => return outcome,
            Err(error) => return Outcome::Failed(format!("{error:#}")),
        }
    }
    let stage = match Stage::new(drill.name, folder, software, watch) {
        Ok(stage) => stage,
        Err(error) => return Outcome::Failed(format!("{error:#}")),
    };
    match (drill.run)(&stage) {
        Ok(()) => Outcome::Passed,
        Err(error) => match error.downcast_ref::<stage::CannotRun>() {
            Some(why) => Outcome::Skipped(why.to_string()),
            None => Outcome::Failed(format!("{error:#}{}", stage.logs())),
        },
    }
}

fn line(drill: &Drill, outcome: &Outcome, took: Duration) -> String {
    let (word, why) = match outcome {
        Outcome::Passed => ("passed", String::new()),
        Outcome::NotRun(why) => ("NOT RUN", format!("  {why}")),
        Outcome::Skipped(why) => ("SKIPPED", format!("  {why}")),
        Outcome::Failed(why) => ("FAILED", format!("  {why}")),
    };
    format!("drill {:<28} {word:<8}{:>4} s{why}", drill.name, took.as_secs())
}

/// All outcomes once more, together.
///
/// # Errors
/// A drill failed, or a signal came.
fn report(drills: &[&Drill], outcomes: &[(usize, Outcome, Duration)]) -> Result<()> {
    println!();
    let mut counts = [0; 4];
    for (which, outcome, took) in outcomes {
        counts[match outcome {
            Outcome::Passed => 0,
            Outcome::Failed(_) => 1,
            Outcome::Skipped(_) => 2,
            Outcome::NotRun(_) => 3,
        }] += 1;
        println!("{}", line(drills[*which], outcome, *took).lines().next().unwrap_or_default());
    }
    let [passed, failed, skipped, not_run] = counts;
    println!("xtask drill: {passed} passed, {failed} failed, {skipped} skipped, {not_run} not run");
    ensure!(!stop::stopped(), "stopped by a signal");
    if failed > 0 {
        bail!("{failed} of {} drills failed", outcomes.len());
    }
    Ok(())
}

/// A folder for what the programs write; removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("tcpwatch-drill-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}
