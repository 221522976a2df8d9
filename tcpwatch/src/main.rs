//! The program: parses the options, runs one of the commands, and ends with an exit code that says what went wrong.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::Parser as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tcpwatch::{
    cli::{
        ask,
        check::Checked,
        explain,
        options::{AskArgs, CheckArgs, Cli, Command, ExplainArgs, OptionsError, ReplayArgs, RunOptions},
        replay, trace,
    },
    findings::Severity,
    http::{
        Access, Api,
        listen::{Listen, Listener},
        probes_router, router, serve,
        web_config::WebConfig,
        webhook::{Webhook, notify},
    },
    kernel::{
        capabilities::{self, Thread},
        clock, netns,
        probes::{Loaded, ProbeError, Probes},
    },
    node::{Node, NodeIdentity},
    pipeline::Pipeline,
    recorder::{self, Recorder, RecordingError},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
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
        Some(Command::Replay(args)) => replay(&args),
        Some(Command::Trace(args)) => trace::run(&args, &mut std::io::stdout()).map(|()| ExitCode::SUCCESS),
        Some(Command::Findings(args)) => return findings(&args),
        Some(Command::Leaks(args)) => return ask("/leaks", &args),
        Some(Command::Connections(args)) => return ask("/connections", &args),
        Some(Command::Processes(args)) => return ask("/processes", &args),
        Some(Command::Peers(args)) => return ask("/peers", &args),
        Some(Command::Explain(args)) => explain(&args),
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

fn ask(path: &str, args: &AskArgs) -> ExitCode {
    ask::print(path, args, &mut std::io::stdout())
        .map_or_else(|error| unanswered(&error), |()| ExitCode::SUCCESS)
}

/// 1 for a warning, 2 for something critical.
fn findings(args: &AskArgs) -> ExitCode {
    match ask::findings(args, &mut std::io::stdout()) {
        Ok(None | Some(Severity::Info)) => ExitCode::SUCCESS,
        Ok(Some(Severity::Warning)) => 1.into(),
        Ok(Some(Severity::Critical)) => 2.into(),
        Err(error) => unanswered(&error),
    }
}

/// No answer is not to be mistaken for one.
fn unanswered(error: &anyhow::Error) -> ExitCode {
    eprintln!("tcpwatch: {error:#}");
    EX_UNAVAILABLE.into()
}

fn explain(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(explain::page(args.rule.as_deref())?.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn run(options: RunOptions) -> anyhow::Result<ExitCode> {
    init_log(options.load.debug);
    raise_descriptor_limit();
    // Before anything is loaded: a port in use is the more frequent mistake, and quickly found.
    let listener = listen(&options.listen, "--listen")?;
    let of_probes =
        options.metrics_listen.as_ref().map(|address| listen(address, "--metrics-listen")).transpose()?;
    let web_config = options.web_config.map(read_web_config).transpose()?;
    let access = Access { allowed_hosts: options.allowed_hosts, web_config };
    let listeners = Listeners { all: listener, probes: of_probes, access, webhook: options.webhook };
    let loaded = Probes::load(&options.load)?;
    let node = Node::new(
        identity()?,
        options.settings,
        options.limits,
        loaded.hooks.clone(),
        loaded.hooks.reported(),
    );
    let recorder = options
        .record
        .map(|path| Recorder::create(&path, &node.recording_header(), options.record_max_size))
        .transpose()?;
    // While this is the only thread: each thread has its own capabilities.
    capabilities::drop_capabilities().context("cannot drop the capabilities that are no longer needed")?;
    netns::start()?;
    // The owner of the state runs on this thread, so that what it waits for wakes it directly.
    let http = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        // That of passwords.
        .max_blocking_threads(1)
        .thread_name("http")
        .on_thread_start(|| become_thread(Thread::Http))
        .enable_all()
        .build()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(watch(http.handle(), listeners, node, loaded, recorder, options.load.debug))?;
    Ok(ExitCode::SUCCESS)
}

/// Where HTTP is served.
struct Listeners {
    all: Listener,
    probes: Option<Listener>,
    access: Access,
    /// Where findings are posted.
    webhook: Option<Webhook>,
}

/// Reads it with the rights of the threads that will read it anew.
fn read_web_config(path: PathBuf) -> anyhow::Result<WebConfig> {
    let reader = std::thread::spawn(move || {
        become_thread(Thread::Http);
        WebConfig::read(&path)
    });
    let read = reader.join().map_err(|_| anyhow::anyhow!("reading the web configuration panicked"))?;
    Ok(read.map_err(OptionsError::WebConfig)?)
}

fn become_thread(thread: Thread) {
    if let Err(error) = capabilities::become_thread(thread) {
        tracing::error!(%error, ?thread, "a thread keeps more capabilities than it needs");
    }
}

fn listen(address: &Listen, option: &str) -> anyhow::Result<Listener> {
    Listener::bind(address)
        .with_context(|| format!("cannot listen on {address}: choose another address with {option}"))
}

/// Takes all descriptors that it may have: sweeps, questions and clients need some each.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open descriptors stays as it is");
    }
}

async fn watch(
    http: &tokio::runtime::Handle,
    listeners: Listeners,
    node: Node,
    mut loaded: Loaded,
    recorder: Option<Recorder>,
    debug: bool,
) -> anyhow::Result<()> {
    if debug {
        loaded.probes.follow_log();
    }
    // What it starts inherits what it has.
    become_thread(Thread::Sweeper);
    let pipeline = Pipeline::new(node, loaded, recorder)?;
    become_thread(Thread::Owner);
    let sweeper = pipeline.sweeper();

    let (questions, asked) = mpsc::channel(64);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop_http, http_stops) = tokio::sync::watch::channel(());
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        drop(stop_http);
    };
    let Listeners { all, probes, access, webhook } = listeners;
    let tls = access.web_config.as_ref().is_some_and(WebConfig::has_tls);
    tracing::info!("watching; curl {}/leaks", all.url(tls)?);
    let api = Api::new(questions).with_sweeper(sweeper);
    if let Some(probes) = &probes {
        tracing::info!("metrics and probes; curl {}/metrics", probes.url(tls)?);
    }
    let of_probes = probes.map(|listener| (listener, probes_router(api.clone())));
    if let Some(webhook) = webhook {
        http.spawn(notify(api.clone(), webhook));
    }
    let mut served = JoinSet::new();
    for (listener, router) in of_probes.into_iter().chain([(all, router(api))]) {
        let (mut stops, access) = (http_stops.clone(), access.clone());
        let stopped = async move { while stops.changed().await.is_ok() {} };
        served.spawn_on(async move { serve(listener, router, access, stopped).await }, http);
    }
    pipeline.run(asked, stop).await?;
    // A client that keeps its connection open does not keep the daemon running: its requests are answered with 503.
    let all_served = async {
        while let Some(ended) = served.join_next().await {
            ended?.context("HTTP stopped")?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(1), all_served).await.unwrap_or(Ok(()))
}

fn replay(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    init_log(false);
    let settings = args.findings.settings()?;
    let recording = recorder::open(&args.file)?;
    let replayed = replay::play(recording, settings);
    if replayed.unread_bytes > 0 {
        tracing::warn!(
            bytes = replayed.unread_bytes,
            "the recording ends in the middle of a frame; what precedes it was played"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let (status, body) = runtime.block_on(replay::answer(replayed, &args.path))?;
    std::io::stdout().write_all(&body)?;
    Ok(if status.is_success() { ExitCode::SUCCESS } else { EX_USAGE.into() })
}

fn identity() -> anyhow::Result<NodeIdentity> {
    let (uname, clock) = (rustix::system::uname(), clock::read());
    Ok(NodeIdentity {
        node: uname.nodename().to_string_lossy().into_owned(),
        kernel: uname.release().to_string_lossy().into_owned(),
        started_ns: clock.now_ns,
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
