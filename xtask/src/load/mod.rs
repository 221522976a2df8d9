//! `cargo xtask load`: TCP connections of a known kind in, one line of JSON about them out.
//!
//! `unit` is one connection from connect to close, `churn` makes many of them, `hold` keeps many open. Everything stays
//! in the network namespace that this runs in. It measures only itself; `bench` measures its effect on others.

mod churn;
mod hold;
pub(crate) mod unit;

use std::{
    net::SocketAddrV4,
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGTERM};

/// Make TCP connections, many of them, in this network namespace
///
/// A unit is one connection: connect, some bytes each way, close; two sockets. Each worker drives both ends of its
/// own connections, so that nothing waits for another thread: the most connections for the processor's time. Clients
/// come from many addresses in 127.0.0.0/8, so ports do not run out. Ends after --seconds or --connections, or with
/// SIGINT or SIGTERM, and prints one line of JSON.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    seconds: f64,

    /// How many connections at most
    #[arg(long, value_name = "N")]
    connections: Option<u64>,

    /// Open loop: this many connections a second, whether or not those before are done
    ///
    /// Latency counts from when a connection was due. Without, closed loop: each worker makes the next one when the
    /// last is done.
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,

    /// How many threads; as many as processors when not given
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,

    /// Who closes first, or that the client resets the connection
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Close::Client)]
    close: Close,

    /// Bytes each way
    #[arg(long, value_name = "N", default_value_t = 64)]
    bytes: usize,

    /// How many listening ports each worker goes round
    #[arg(long, value_name = "N", default_value_t = NonZeroU64::MIN, conflicts_with_all = ["serve", "connect"])]
    ports: NonZeroU64,

    /// Drive only the servers' ends, here
    #[arg(long, value_name = "ADDR:PORT", conflicts_with_all = ["rate", "connect"])]
    serve: Option<SocketAddrV4>,

    /// Drive only the clients' ends, to a `--serve` with the same --close and --bytes
    #[arg(long, value_name = "ADDR:PORT")]
    connect: Option<SocketAddrV4>,

    /// Make this many connections and hold them, spread over as many processes as descriptors demand
    ///
    /// Prints "ready" when all are there. They end with standard input, SIGINT or SIGTERM.
    #[arg(long, value_name = "N", conflicts_with_all = ["seconds", "connections", "rate", "serve", "connect", "ports"])]
    hold: Option<u64>,

    /// Of those held: how many the client has closed and the server has not
    #[arg(long, value_name = "N", requires = "hold", default_value_t = 0)]
    half_closed: u64,

    /// One process of --hold: makes its share and reports its progress
    #[arg(long, hide = true, requires = "hold")]
    share: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Close {
    Client,
    Server,
    Reset,
}

/// The report that is printed at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Units that succeeded.
    pub(crate) connections: u64,
    pub(crate) failures: u64,
    pub(crate) first_failure: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) per_second: f64,
    /// Durations of whole units, or of the clients' ends where only they are driven.
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    /// Open loop: units that began more than a millisecond after they were due.
    pub(crate) late: Option<u64>,
    /// Processor time of this process, in its own code and in the kernel.
    pub(crate) cpu_seconds: f64,
}

pub(crate) fn load(args: &Args) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    if let Some(pairs) = args.hold {
        if args.share {
            return hold::share(pairs, args.half_closed, args.bytes);
        }
        stop_at_signals(&stop)?;
        return hold::hold(pairs, args.half_closed, args.bytes, &stop);
    }
    stop_at_signals(&stop)?;
    let report = churn::churn(args, &stop)?;
    println!("{}", serde_json::to_string(&report).context("writing the report")?);
    Ok(())
}

fn stop_at_signals(stop: &Arc<AtomicBool>) -> Result<()> {
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(stop)).context("handling SIGINT and SIGTERM")?;
    }
    Ok(())
}
