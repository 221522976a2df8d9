//! Details of processes, and this daemon's own usage, from /proc.

use std::{
    ffi::OsStr,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use procfs::process::{LimitValue, Process, Stat};

use crate::events::{
    comm::{self, Comm},
    decode::TaskRecord,
    frame::{DescriptorCount, ProcDetails},
};

/// USER_HZ, the unit of start times in /proc/PID/stat, as 1/100 s on every architecture Linux has now.
const NANOS_PER_TICK: u64 = 10_000_000;

/// Executable and cgroup of the process with this pid, `None` unless it is the one of the record, and still runs the
/// program that it ran then.
pub fn details(task: &TaskRecord) -> Option<ProcDetails> {
    let process = Process::new(i32::try_from(task.pid).ok()?).ok()?;
    let ended = process.stat().ok()?.state == ENDED;
    let other = if ended { other_thread(&process) } else { None };
    let shown = other.as_ref().unwrap_or(&process);
    let (exe, exe_deleted) = executable(shown.pid, shown.exe().ok());
    let cgroup = shown.cgroups().ok().and_then(|cgroups| {
        cgroup_path(cgroups.0.iter().map(|cgroup| (cgroup.hierarchy, cgroup.pathname.as_str())))
    });
    // Where the kernel puts what has ended (proc_cgroup_show in kernel/cgroup/cgroup.c).
    let cgroup = cgroup.filter(|path| !ended || other.is_some() || path != "/");
    let details = ProcDetails { exe, exe_deleted, cgroup: cgroup.map(|path| readable(path.as_bytes())) };
    // Last: what it was before, it never becomes again.
    is_still(task, &process.stat().ok()?).then_some(details)
}

/// Whether /proc shows the process of the record, running the program that it ran then.
fn is_still(task: &TaskRecord, stat: &Stat) -> bool {
    // 0 where the records lack the start: without the kernel's types.
    let same_process = task.start_ns == 0 || stat.starttime == task.start_ns / NANOS_PER_TICK;
    // The kernel does not say how often a process called exec. The beginning of its stack, which it places at random,
    // stands for that; 0 while the process exits, and for who may not know it.
    let same_program = match (stat.startstack >> 4) as u32 {
        stack if stack != 0 && task.exec_id != 0 => stack == task.stack,
        _ => std::fs::read(format!("/proc/{}/comm", task.pid))
            .is_ok_and(|line| Comm::of(line.strip_suffix(b"\n").unwrap_or(&line)) == task.comm),
    };
    same_process && same_program
}

/// The descriptors of a process, `None` unless it is the one that started then.
pub fn descriptors(pid: u32, start_ns: u64, at_ns: u64) -> Option<DescriptorCount> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    if process.stat().ok()?.starttime != start_ns / NANOS_PER_TICK {
        return None;
    }
    let folder = PathBuf::from(format!("/proc/{pid}/fd"));
    // The size says how many there are since Linux 6.2 (proc_readfd_count in fs/proc/fd.c), and is 0 before.
    let open = match folder.metadata().ok()?.len() {
        0 => std::fs::read_dir(&folder).ok()?.count() as u64,
        open => open,
    };
    let LimitValue::Value(limit) = process.limits().ok()?.max_open_files.soft_limit else { return None };
    Some(DescriptorCount { pid, start_ns, at_ns, open, limit })
}

/// What the kernel appends to the path of a file that has lost its name (d_path, fs/d_path.c); a name may end so as well.
const DELETED: &[u8] = b" (deleted)";

/// The path of an executable, and whether its file is deleted, by the text of the link /proc/PID/exe.
fn executable(pid: i32, link: Option<PathBuf>) -> (Option<String>, Option<bool>) {
    let Some(link) = link.map(|link| link.into_os_string().into_vec()) else { return (None, None) };
    let deleted = match link.strip_suffix(DELETED) {
        Some(_) => is_deleted(pid, Path::new(OsStr::from_bytes(&link))),
        None => Some(false),
    };
    let path = link.strip_suffix(DELETED).filter(|_| deleted == Some(true)).unwrap_or(&link);
    (Some(readable(path)), deleted)
}

/// The details again where the executable of the process seems to have been deleted since.
pub fn details_if_deleted(task: &TaskRecord) -> Option<ProcDetails> {
    let link = std::fs::read_link(format!("/proc/{}/exe", task.pid)).ok()?;
    let may_be = link.as_os_str().as_bytes().ends_with(DELETED);
    may_be.then(|| details(task)).flatten().filter(|details| details.exe_deleted == Some(true))
}

/// Whether the file that the process runs is not, or no more, the one at `link`. `None` where that is not known.
fn is_deleted(pid: i32, link: &Path) -> Option<bool> {
    let file = Path::new("/proc").join(pid.to_string()).join("exe").metadata().ok()?;
    if file.nlink() == 0 {
        return Some(true);
    }
    // Another name of the file remains. The path is that of this process's namespace, or that of its own.
    let its_root = PathBuf::from(format!("/proc/{pid}/root"));
    let inside = link.strip_prefix("/").map(|path| its_root.join(path)).ok()?;
    let mut unknown = false;
    for path in [inside.as_path(), link] {
        match path.metadata() {
            Ok(there) if (there.dev(), there.ino()) == (file.dev(), file.ino()) => return Some(false),
            Ok(_) => {}
            Err(error) => unknown |= error.kind() != std::io::ErrorKind::NotFound,
        }
    }
    (!unknown).then_some(true)
}

/// A path as text: what is not UTF-8 or not visible, as `\xff`.
fn readable(path: &[u8]) -> String {
    let mut text = String::new();
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if comm::is_visible(c) {
                text.push(c);
            } else {
                comm::push_bytes(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        comm::push_bytes(&mut text, chunk.invalid());
    }
    text
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

    /// This process, as a record reports it.
    fn myself() -> TaskRecord {
        let stat = Process::myself().unwrap().stat().unwrap();
        TaskRecord {
            pid: std::process::id(),
            start_ns: stat.starttime * NANOS_PER_TICK + 1,
            comm: stat.comm.as_str().into(),
            exec_id: 1,
            stack: (stat.startstack >> 4) as u32,
        }
    }

    #[test]
    fn this_process_is_described_and_neither_one_of_another_time_nor_one_before_an_exec() {
        let me = myself();
        let exe = std::env::current_exe().unwrap();
        let described = details(&me).unwrap();
        assert_eq!((described.exe.as_deref(), described.exe_deleted), (exe.to_str(), Some(false)));
        let without_exec_id = TaskRecord { exec_id: 0, stack: 0, ..me };
        for known in [TaskRecord { comm: "renamed".into(), ..me }, without_exec_id] {
            assert!(details(&known).is_some(), "{known:?}");
        }
        for another in [
            TaskRecord { start_ns: me.start_ns + NANOS_PER_TICK, ..me },
            TaskRecord { stack: me.stack ^ 1, ..me },
            TaskRecord { comm: "another".into(), ..without_exec_id },
        ] {
            assert_eq!(details(&another), None, "{another:?}");
        }
    }

    #[test]
    fn a_deleted_executable_is_not_one_that_is_called_so() {
        let folder = std::env::temp_dir().join(format!("tcpwatch-executables-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        // Name, whether another name of the file remains, and whether it is deleted.
        for (name, linked, deletes) in [
            ("srv", false, true),
            ("srv (deleted)", false, false),
            ("srv (deleted)", false, true),
            ("linked", true, true),
            ("here", false, false),
        ] {
            let path = folder.join(name);
            // By another process: while this one has it open for writing, nobody may run it.
            let copied = std::process::Command::new("cp").arg("/bin/sleep").arg(&path).status();
            assert!(copied.unwrap().success());
            let mut child = std::process::Command::new(&path).arg("60").spawn().unwrap();
            let kept = folder.join("kept");
            if linked {
                std::fs::hard_link(&path, &kept).unwrap();
            }
            if deletes {
                std::fs::remove_file(&path).unwrap();
            }
            // What has the name that the link shows then is another file.
            let decoy = folder.join(format!("{name} (deleted)"));
            std::fs::write(&decoy, "").unwrap();
            let link = Process::new(child.id().cast_signed()).unwrap().exe().ok();
            let found = executable(child.id().cast_signed(), link);
            child.kill().unwrap();
            child.wait().unwrap();
            for file in [path, kept, decoy] {
                let _ = std::fs::remove_file(file);
            }
            assert_eq!(
                found,
                (Some(folder.join(name).to_str().unwrap().to_owned()), Some(deletes)),
                "{name}"
            );
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
