//! Many connections open at once. In: their number. Out: "ready" when all are open. They are held until standard input
//! ends.
//!
//! The number of descriptors of a process is limited, so child processes hold the connections, each a share. Each child
//! ends with its standard input, a pipe from this process: no child outlives it, however it ends.

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::resource::{Resource, getrlimit, setrlimit},
};

use super::unit;

/// Descriptors that a process needs besides its connections, with a margin.
const SPARE_DESCRIPTORS: u64 = 100;
/// Connections after which a child reports its progress.
const STEP: u64 = 1000;
/// Interval of checks whether to stop.
const LOOK: Duration = Duration::from_millis(200);

pub(crate) fn hold(pairs: u64, half_closed: u64, bytes: usize, stop: &AtomicBool) -> Result<()> {
    ensure!(half_closed <= pairs, "--half-closed is more than --hold");
    let (_, descriptors) =
        getrlimit(Resource::RLIMIT_NOFILE).context("asking how many descriptors there may be")?;
    let most = descriptors.saturating_sub(SPARE_DESCRIPTORS) / 2;
    ensure!(most > 0, "a process may have {descriptors} open files only: see `ulimit -n`");
    let shares = shares(pairs, half_closed, most);
    eprintln!("holding {pairs} connections in {} processes", shares.len());
    let (sender, said) = mpsc::channel();
    let mut children = Vec::new();
    for share in &shares {
        let mut child = start(*share, bytes)?;
        let lines = BufReader::new(child.stdout.take().context("a share's output is not ours")?).lines();
        children.push(child);
        let sender = sender.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
    }
    drop(sender);

    let (mut made, mut ready, mut shown) = (0, 0, 0);
    while ready < shares.len() {
        match said.recv_timeout(LOOK) {
            Ok(line) if line == "ready" => ready += 1,
            Ok(line) => made += line.parse::<u64>().with_context(|| format!("a share said {line}"))?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("the shares ended before they were ready"),
        }
        for child in &mut children {
            if let Some(status) = child.try_wait().context("looking after a share")? {
                bail!("a share ended before it was ready: {status}");
            }
        }
        if stop.load(Ordering::Relaxed) {
            return end(children);
        }
        if made >= shown + pairs / 10 {
            shown = made;
            eprintln!("{made} of {pairs}");
        }
    }
    println!("ready");
    io::stdout().flush().context("saying that all are ready")?;
    while !stop.load(Ordering::Relaxed) && !input_ended()? {}
    end(children)
}

/// The connections that each process makes, and how many of them it half closes, distributed evenly.
fn shares(pairs: u64, half_closed: u64, most: u64) -> Vec<[u64; 2]> {
    let count = pairs.div_ceil(most);
    let part = |all: u64, index: u64| all * (index + 1) / count - all * index / count;
    (0..count).map(|index| [part(pairs, index), part(half_closed, index)]).collect()
}

fn start([pairs, half_closed]: [u64; 2], bytes: usize) -> Result<Child> {
    let program = env::current_exe().context("finding this program")?;
    Command::new(&program)
        .args(["load", "--share", "--hold", &pairs.to_string(), "--half-closed", &half_closed.to_string()])
        .args(["--bytes", &bytes.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", program.display()))
}

fn end(mut children: Vec<Child>) -> Result<()> {
    for child in &mut children {
        drop(child.stdin.take());
    }
    for mut child in children {
        child.wait().context("waiting for a share")?;
    }
    Ok(())
}

fn input_ended() -> Result<bool> {
    let input = io::stdin();
    let mut ready = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(LOOK).context("a limit for poll")?;
    match poll(&mut ready, timeout) {
        Ok(0) | Err(Errno::EINTR) => Ok(false),
        Ok(_) => Ok(io::stdin().read(&mut [0; 64]).context("reading standard input")? == 0),
        Err(error) => Err(error).context("waiting for standard input"),
    }
}

/// One child process.
pub(crate) fn share(pairs: u64, half_closed: u64, bytes: usize) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("asking how many descriptors there may be")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("allowing all descriptors that there may be")?;
    let listener = unit::listen(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), unit::LIMIT)?;
    let to = unit::address(&listener)?;
    let mut bytes = vec![0; bytes];
    let mut held = Vec::new();
    for index in 0..pairs {
        let mut ends = unit::pair(&listener, to, unit::source(index))?;
        unit::exchange(&mut ends, &mut bytes)?;
        let [client, server] = ends;
        // Dropping it closes it.
        held.push(((index >= half_closed).then_some(client), server));
        if (index + 1) % STEP == 0 {
            println!("{STEP}");
        }
    }
    println!("{}", pairs % STEP);
    println!("ready");
    io::stdin().read_to_end(&mut Vec::new()).context("waiting for the end of standard input")?;
    drop(held);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_none_is_too_large() {
        let shares = shares(500_000, 10_000, 9_950);
        assert_eq!(shares.len(), 51);
        assert_eq!(shares.iter().map(|share| share[0]).sum::<u64>(), 500_000);
        assert_eq!(shares.iter().map(|share| share[1]).sum::<u64>(), 10_000);
        assert!(shares.iter().all(|share| share[0] <= 9_950 && share[1] <= share[0]));
    }
}
