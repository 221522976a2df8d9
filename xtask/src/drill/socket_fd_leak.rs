//! A process that makes sockets in a loop and forgets them.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};

use super::stage::{Stage, sockets};
use crate::stop;

const SOCKETS: usize = 60;

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (sick, sound) = (stage.namespace("sick")?, stage.namespace("sound")?);
    let count = SOCKETS.to_string();
    let collector = stage.python(&sick, "sockets.py", ["collector", "1", &count, "forgets"])?;
    let twin = stage.python(&sound, "sockets.py", ["collector", "1", &count, "closes"])?;
    stop::sleep(Duration::from_secs(20))?;
    let (before, after) = (held(collector.pid())?, {
        stop::sleep(Duration::from_secs(10))?;
        held(collector.pid())?
    });
    ensure!(after >= before + 9 && held(twin.pid())? <= 1, "{before}, then {after} sockets");
    let shown = sockets(&sick, &["-tan"])?.len();
    ensure!(shown == 0, "ss shows {shown} sockets");
    stage.say(format_args!(
        "/proc/{}/fd: {before} sockets, {after} ten seconds later; ss shows none",
        collector.pid()
    ));

    let Some(watch) = stage.watch else { return Ok(()) };
    let found =
        watch.finding(stage, "socket_fd_leak", &[collector.pid()], Duration::from_secs(90), |_| true)?;
    let (told, now) = (found.count as usize, held(collector.pid())?);
    ensure!(found.who.process.as_deref() == Some("collector"), "it names {:?}", found.who.process);
    // It counts those that are older than 30 s, as of a sweep.
    ensure!(told <= now && told + 60 >= now, "it counts {told}, /proc {now}");
    watch.silent(stage, "a process that closes its sockets", &[twin.pid()])
}

/// The sockets that /proc says a process holds.
fn held(pid: u32) -> Result<usize> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).context("the process ended")?;
    let links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    Ok(links.filter(|link| link.to_string_lossy().starts_with("socket:")).count())
}
