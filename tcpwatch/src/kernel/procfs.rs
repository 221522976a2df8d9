//! Details of processes, and this daemon's own usage, from /proc.

use procfs::process::Process;

use crate::events::frame::ProcDetails;

/// USER_HZ, the unit of start times in /proc/PID/stat, as 1/100 s on every architecture Linux has now.
const NANOS_PER_TICK: u64 = 10_000_000;

/// Executable and cgroup of the process with this pid, `None` unless it is the one that started at `start_ns`.
pub fn details(pid: u32, start_ns: u64) -> Option<ProcDetails> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let stat = process.stat().ok()?;
    // 0 where the records lack the start: without the kernel's types.
    if start_ns != 0 && stat.starttime != start_ns / NANOS_PER_TICK {
        return None;
    }
    let ended = stat.state == ENDED;
    let process = if ended { other_thread(&process).unwrap_or(process) } else { process };
    Some(ProcDetails {
        exe: process.exe().ok().map(|path| path.to_string_lossy().into_owned()),
        cgroup: process
            .cgroups()
            .ok()
            .and_then(|cgroups| {
                cgroup_path(cgroups.0.iter().map(|cgroup| (cgroup.hierarchy, cgroup.pathname.as_str())))
            })
            // Where the kernel puts what has ended (proc_cgroup_show in kernel/cgroup/cgroup.c).
            .filter(|path| !ended || path != "/"),
    })
}

/// State of a thread that has ended and is still listed: a zombie (proc_pid_stat(5)).
const ENDED: char = 'Z';

/// A thread which has outlived the main thread of its process, to be read as a process of its own in /proc. It has what
/// the main thread had: executable, cgroup, namespaces and descriptors.
fn other_thread(process: &Process) -> Option<Process> {
    let threads = process.tasks().ok()?.flatten();
    threads.filter(|thread| thread.tid != process.pid).find_map(|thread| Process::new(thread.tid).ok())
}

/// The id of a thread of the process that has not ended: its own id where that is the main thread.
pub(super) fn living_thread(pid: i32) -> Option<i32> {
    let process = Process::new(pid).ok()?;
    let ended = process.stat().ok()?.state == ENDED;
    if ended { Some(other_thread(&process)?.pid) } else { Some(pid) }
}

/// The most specific cgroup of a process: the unified hierarchy's (number 0), unless a hybrid host leaves that one
/// empty and keeps its groups in the older hierarchies; of those the longest path.
fn cgroup_path<'a>(cgroups: impl Iterator<Item = (u32, &'a str)>) -> Option<String> {
    cgroups
        .max_by_key(|(hierarchy, path)| (*path != "/", *hierarchy == 0, path.len()))
        .map(|(_, path)| path.to_owned())
}

/// The daemon's own usage.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, schemars::JsonSchema)]
pub struct OwnUsage {
    /// Memory: the resident set size.
    pub rss_bytes: u64,
    /// Processor time, user and system, since the start.
    pub cpu_seconds: f64,
}

/// # Errors
/// When /proc cannot be read.
pub fn own_usage() -> Result<OwnUsage, procfs::ProcError> {
    let stat = Process::myself()?.stat()?;
    Ok(OwnUsage {
        rss_bytes: stat.rss * rustix::param::page_size() as u64,
        cpu_seconds: (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_cgroup_is_used() {
        for (cgroups, path) in [
            (&[(0, "/system.slice/nginx.service")][..], "/system.slice/nginx.service"),
            (&[(4, "/docker/abc"), (1, "/"), (0, "/")], "/docker/abc"),
            (&[(4, "/docker/longer-than-unified"), (0, "/unified")], "/unified"),
            (&[(1, "/"), (0, "/")], "/"),
        ] {
            assert_eq!(cgroup_path(cgroups.iter().copied()).as_deref(), Some(path));
        }
        assert_eq!(cgroup_path(std::iter::empty()), None);
    }

    #[test]
    fn this_process_is_described_and_one_with_its_pid_from_another_time_is_not() {
        let me = Process::myself().unwrap().stat().unwrap();
        let (pid, start_ns) = (std::process::id(), me.starttime * NANOS_PER_TICK + 1);
        let exe = std::env::current_exe().unwrap();
        assert_eq!(details(pid, start_ns).unwrap().exe.as_deref(), exe.to_str());
        assert_eq!(details(pid, start_ns + NANOS_PER_TICK), None);
    }
}
