//! The program: parses the options, runs one of the commands, and ends with an exit code that says what went wrong.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser as _;
use tcpwatch::{
    cli::{
        check::Checked,
        options::{CheckArgs, Cli, Command, Linger, OptionsError, ReplayArgs, RunOptions},
        replay, trace,
    },
    findings::lingering::LingerLimits,
    http::{Api, router},
    kernel::{
        capabilities, clock,
        probes::{Loaded, ProbeError, Probes},
    },
    node::{Node, NodeIdentity},
    pipeline::Pipeline,
    recorder::{self, Recorder, RecordingError},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing_subscriber::EnvFilter;

/// sysexits.h
const EX_USAGE: u8 = 64;
const EX_NOINPUT: u8 = 66;
const EX_UNAVAILABLE: u8 = 69;
const EX_CANTCREAT: u8 = 73;
const EX_NOPERM: u8 = 77;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { EX_USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let result = match cli.command {
        Some(Command::Check(args)) => return check(&args),
        Some(Command::Replay(args)) => replay(args),
        Some(Command::Trace(args)) => trace::run(&args, &mut std::io::stdout()).map(|()| ExitCode::SUCCESS),
        Some(Command::Run(args)) => args.complete().map_err(Into::into).and_then(run),
        None => cli.run.complete().map_err(Into::into).and_then(run),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tcpwatch: {error:#}");
            exit_code(&error)
        }
    }
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<OptionsError>() {
        return EX_USAGE.into();
    }
    match error.downcast_ref::<ProbeError>() {
        Some(ProbeError::Privilege(_)) => EX_NOPERM.into(),
        Some(_) => EX_UNAVAILABLE.into(),
        None if error.is::<std::io::Error>() => EX_UNAVAILABLE.into(),
        None => match error.downcast_ref::<RecordingError>() {
            Some(RecordingError::Write(..)) => EX_CANTCREAT.into(),
            Some(_) => EX_NOINPUT.into(),
            None => ExitCode::FAILURE,
        },
    }
}

fn check(args: &CheckArgs) -> ExitCode {
    if args.debug {
        init_log(true);
    }
    let checked = Checked::now(&args.load_options());
    if args.json {
        println!("{}", checked.json());
    } else {
        print!("{}", checked.text());
    }
    checked.verdict.exit_code().into()
}

fn run(options: RunOptions) -> anyhow::Result<ExitCode> {
    init_log(options.load.debug);
    // Before anything is loaded: a port in use is the more frequent mistake, and quickly found.
    let listener = std::net::TcpListener::bind(options.listen).with_context(|| {
        format!("cannot listen on {}: choose another address with --listen ADDR:PORT", options.listen)
    })?;
    listener.set_nonblocking(true)?;
    let loaded = Probes::load(&options.load)?;
    let node =
        Node::new(identity()?, options.linger, options.limits, loaded.hooks.clone(), loaded.hooks.reported());
    let recorder =
        options.record.map(|path| Recorder::create(&path, &node.recording_header())).transpose()?;
    // While this is the only thread: each thread has its own capabilities.
    capabilities::drop_capabilities().context("cannot drop the capabilities that are no longer needed")?;
    // The owner of the state runs on this thread, so that what it waits for wakes it directly.
    let http = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(http.handle(), listener, node, loaded, recorder, options.load.debug))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(
    http: &tokio::runtime::Handle,
    listener: std::net::TcpListener,
    node: Node,
    mut loaded: Loaded,
    recorder: Option<Recorder>,
    debug: bool,
) -> anyhow::Result<()> {
    if debug {
        loaded.probes.follow_log();
    }
    let pipeline = Pipeline::new(node, loaded, recorder)?;
    let sweeper = pipeline.sweeper();

    let (questions, asked) = mpsc::channel(64);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop_http, http_stops) = tokio::sync::oneshot::channel::<()>();
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        let _ = stop_http.send(());
    };
    let address = listener.local_addr()?;
    tracing::info!("watching; curl http://{address}/leaks");
    let http = http.spawn(async move {
        let served =
            axum::serve(TcpListener::from_std(listener)?, router(Api::new(questions).with_sweeper(sweeper)));
        served.with_graceful_shutdown(async { drop(http_stops.await) }).await
    });
    pipeline.run(asked, stop).await?;
    // A client that keeps its connection open does not keep the daemon running: its requests are answered with 503.
    if let Ok(served) = tokio::time::timeout(std::time::Duration::from_secs(1), http).await {
        served?.context("HTTP stopped")?;
    }
    Ok(())
}

fn replay(args: ReplayArgs) -> anyhow::Result<ExitCode> {
    init_log(false);
    let mut limits = LingerLimits::default();
    for Linger(state, limit) in args.linger.linger {
        limits.set(state, limit).map_err(OptionsError::Linger)?;
    }
    let recording = recorder::open(&args.file)?;
    let replayed = replay::play(recording, limits);
    if replayed.unread_bytes > 0 {
        tracing::warn!(
            bytes = replayed.unread_bytes,
            "the recording ends in the middle of a frame; what precedes it was played"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let (status, body) = runtime.block_on(replay::answer(replayed, &args.path))?;
    std::io::stdout().write_all(&body)?;
    Ok(if status.is_success() { ExitCode::SUCCESS } else { EX_USAGE.into() })
}

fn identity() -> anyhow::Result<NodeIdentity> {
    let (uname, clock) = (rustix::system::uname(), clock::read());
    Ok(NodeIdentity {
        node: uname.nodename().to_string_lossy().into_owned(),
        kernel: uname.release().to_string_lossy().into_owned(),
        started: clock.wall,
        wall_offset_ns: clock.wall_offset_ns(),
        tick_rate: clock::tick_rate().context(
            "the length of the kernel's tick is unknown: its coarse clocks have an unexpected resolution",
        )?,
    })
}

/// Logs to stderr; `RUST_LOG` overrides the level.
fn init_log(debug: bool) {
    let default = if debug { "tcpwatch=debug,info" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}
