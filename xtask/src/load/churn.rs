//! Many connections one after the other, on several threads. In: their kind and number. Out: a report.

use std::{
    net::{SocketAddrV4, TcpListener},
    panic::resume_unwind,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use nix::sys::resource::{UsageWho, getrusage};

use super::{Args, Report, unit};

/// Open loop: a unit that begins later than this after it was due is late. Well above the error of a sleep.
const LATE: Duration = Duration::from_millis(1);
/// How often a server without clients checks whether to stop.
const LOOK: Duration = Duration::from_millis(200);
/// Pause after a failure: a listener that cannot accept, or an absent server, must not cause a busy loop.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// The counts of one worker.
struct Tally {
    connections: u64,
    failures: u64,
    first_failure: Option<String>,
    late: u64,
    /// Microseconds.
    latency: Histogram<u64>,
}

/// State that all workers share.
struct Course<'a> {
    start: Instant,
    end: Instant,
    limit: u64,
    /// Open loop: time between two connections, over all workers.
    interval: Option<Duration>,
    next: AtomicU64,
    stop: &'a AtomicBool,
}

pub(crate) fn churn(args: &Args, stop: &AtomicBool) -> Result<Report> {
    let seconds = Duration::try_from_secs_f64(args.seconds).context("--seconds")?;
    let workers = match args.workers {
        Some(workers) => workers.get(),
        None => thread::available_parallelism().map_or(1, usize::from),
    };
    let listener = args.serve.map(|address| unit::listen(address, LOOK)).transpose()?;
    let mut units =
        (0..workers).map(|worker| units(args, listener.as_ref(), worker)).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    let course = Course {
        start,
        end: start + seconds,
        limit: args.connections.unwrap_or(u64::MAX),
        interval: args.rate.map(|rate| Duration::from_secs(1) / rate.get()),
        next: AtomicU64::new(0),
        stop,
    };
    let tallies = thread::scope(|scope| {
        let workers: Vec<_> = units.iter_mut().map(|units| scope.spawn(|| course.run(units))).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect::<Result<Vec<_>>>()
    })?;
    report(tallies, start.elapsed(), args.rate.is_some())
}

/// Makes the connection of the given number; `None` where none came in time.
type Units = Box<dyn FnMut(u64) -> Result<Option<()>> + Send>;

fn units(args: &Args, listener: Option<&TcpListener>, worker: usize) -> Result<Units> {
    let how = args.close;
    let mut bytes = vec![0; args.bytes];
    if let Some(listener) = listener {
        let listener = listener.try_clone().context("sharing the listener")?;
        return Ok(Box::new(move |_| unit::server(&listener, &mut bytes, how)));
    }
    if let Some(to) = args.connect {
        let loopback = to.ip().is_loopback();
        return Ok(Box::new(move |index| {
            let source = loopback.then(|| unit::source(index));
            unit::client(to, source, &mut bytes, how).map(Some)
        }));
    }
    // Each worker has an address of its own, so that it accepts only what it connected.
    let address = unit::listener(worker).context("more than 254 workers")?;
    let listen = || -> Result<_> {
        let listener = unit::listen(SocketAddrV4::new(address, 0), unit::LIMIT)?;
        let to = unit::address(&listener)?;
        Ok((listener, to))
    };
    let listeners = (0..args.ports.get()).map(|_| listen()).collect::<Result<Vec<_>>>()?;
    let mut round = 0;
    Ok(Box::new(move |index| {
        let (listener, to) = &listeners[round];
        round = (round + 1) % listeners.len();
        let mut whole = || {
            let mut ends = unit::pair(listener, *to, unit::source(index))?;
            unit::exchange(&mut ends, &mut bytes)?;
            unit::close(ends, how)
        };
        match whole() {
            Ok(()) => Ok(Some(())),
            Err(error) => {
                unit::forget_unaccepted(listener)?;
                Err(error)
            }
        }
    }))
}

impl Course<'_> {
    fn run(&self, units: &mut Units) -> Result<Tally> {
        let mut tally = Tally {
            connections: 0,
            failures: 0,
            first_failure: None,
            late: 0,
            // Two digits are 1 %.
            latency: Histogram::new(2).context("making a histogram")?,
        };
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let due = self.due(index);
            if index >= self.limit || due >= self.end || self.stop.load(Ordering::Relaxed) {
                return Ok(tally);
            }
            let now = Instant::now();
            if due > now {
                thread::sleep(due - now);
            } else if self.interval.is_some() && now - due > LATE {
                tally.late += 1;
            }
            match units(index) {
                Ok(Some(())) => {
                    tally.connections += 1;
                    tally.latency.saturating_record(due.elapsed().as_micros() as u64);
                }
                Ok(None) => {}
                Err(error) => {
                    tally.failures += 1;
                    tally.first_failure.get_or_insert_with(|| format!("{error:#}"));
                    thread::sleep(AFTER_FAILURE);
                }
            }
        }
    }

    fn due(&self, index: u64) -> Instant {
        match self.interval {
            Some(interval) => self.start + Duration::from_nanos(interval.as_nanos() as u64 * index),
            None => Instant::now(),
        }
    }
}

fn report(tallies: Vec<Tally>, took: Duration, open_loop: bool) -> Result<Report> {
    let mut all = tallies.into_iter();
    let mut sum = all.next().context("no worker")?;
    for tally in all {
        sum.connections += tally.connections;
        sum.failures += tally.failures;
        sum.late += tally.late;
        sum.first_failure = sum.first_failure.or(tally.first_failure);
        sum.latency.add(tally.latency).context("adding histograms")?;
    }
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("asking what this process used")?;
    let cpu = [usage.user_time(), usage.system_time()];
    let seconds = took.as_secs_f64();
    ensure!(seconds > 0.0, "no time passed");
    Ok(Report {
        connections: sum.connections,
        failures: sum.failures,
        first_failure: sum.first_failure,
        seconds,
        per_second: sum.connections as f64 / seconds,
        p50_us: sum.latency.value_at_quantile(0.5),
        p99_us: sum.latency.value_at_quantile(0.99),
        late: open_loop.then_some(sum.late),
        cpu_seconds: cpu.map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6).iter().sum(),
    })
}
