//! The options: from the command line, then `TCPWATCH_*` variables, then the TOML file, then defaults.
//!
//! docs/options.md is rendered from the definitions here (tests/documents/options.rs).

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use serde::Deserialize;
use thiserror::Error;

use crate::{
    findings::Settings,
    http::{listen::Listen, webhook::Webhook},
    kernel::probes::{Choice, LoadOptions},
    model::{groups::Role, tracker::Limits},
    tcp::state::TcpState,
};

/// Knows the whole life of every TCP connection on this node and names what is wrong with it.
///
/// Without a command, `run`. Then: curl http://127.0.0.1:18279/leaks
#[derive(Debug, Parser)]
#[command(name = "tcpwatch", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch this node and serve what it finds over HTTP (the default; needs root)
    Run(Box<RunArgs>),
    /// Report which hooks of this kernel tcpwatch can use, what is lost without the others, and why (exit code 0:
    /// everything works, 1: something is missing or less exact, 2: tcpwatch cannot run here)
    Check(CheckArgs),
    /// Print every transition as it happens, from a tcpwatch that runs on this node
    Trace(TraceArgs),
    /// Ask a running tcpwatch what is wrong (exit code 0: nothing, 1: a warning, 2: something critical)
    Findings(AskArgs),
    /// Ask a running tcpwatch which connections stand too long
    Leaks(AskArgs),
    /// Ask a running tcpwatch for the connections of now
    Connections(AskArgs),
    /// Ask a running tcpwatch for the processes and what they count
    Processes(AskArgs),
    /// Ask a running tcpwatch for the peers and what they count
    Peers(AskArgs),
    /// Print what a rule of `tcpwatch findings` means, and what to do about it
    Explain(ExplainArgs),
    /// Play a recording through everything behind the kernel and print what HTTP would have answered
    Replay(ReplayArgs),
}

#[derive(Debug, Args)]
pub struct AskArgs {
    /// Address of the running tcpwatch
    #[arg(long, value_name = "ADDR:PORT|unix:PATH", default_value_t = Listen::Tcp(DEFAULT_LISTEN))]
    pub connect: Listen,
    /// The form of the answer
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    pub output: Output,
    /// Parameters of the question, as HTTP takes them, for example state=CLOSE_WAIT pid=4113 or since=6h
    #[arg(value_name = "NAME=VALUE", value_parser = parameter)]
    pub parameters: Vec<(String, String)>,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    Text,
    Json,
}

fn parameter(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is not of the form NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The rule, as findings name it [default: list them]
    pub rule: Option<String>,
}

#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// A file written by `tcpwatch run --record FILE`
    pub file: PathBuf,
    /// The HTTP path to answer as of the recording's end, for example /connections?format=json
    #[arg(default_value = "/leaks")]
    pub path: String,
    #[command(flatten)]
    pub findings: FindingArgs,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Print the kernel verifier's log too
    #[arg(long)]
    pub debug: bool,
    #[command(flatten)]
    pub hooks: HookArgs,
}

#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct HookArgs {
    /// The running kernel's types, for a kernel that does not publish them [default: /sys/kernel/btf/vmlinux]
    #[arg(long, value_name = "FILE", env = "TCPWATCH_BTF")]
    pub btf: Option<PathBuf>,
    /// Get SIGNAL in this WAY or not at all, for example close=kprobe (repeatable, or separated by commas);
    /// `tcpwatch check` lists the signals [default: the best way that the kernel accepts]
    #[arg(long, value_name = "SIGNAL=WAY", env = "TCPWATCH_HOOK", value_delimiter = ',')]
    pub hook: Vec<Choice>,
}

#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Address of the running tcpwatch
    #[arg(long, value_name = "ADDR:PORT|unix:PATH", default_value_t = Listen::Tcp(DEFAULT_LISTEN))]
    pub connect: Listen,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Only transitions to this state
    #[arg(long)]
    pub state: Option<TcpState>,
    /// Only connections of this process
    #[arg(long)]
    pub pid: Option<u32>,
    /// Only connections of processes with this name
    #[arg(long, value_name = "NAME")]
    pub comm: Option<String>,
    /// Only connections with this port on this node
    #[arg(long, value_name = "PORT")]
    pub local_port: Option<u16>,
    /// Only connections with this port at the peer
    #[arg(long, value_name = "PORT")]
    pub remote_port: Option<u16>,
    /// Only peers with this address or in this network
    #[arg(long, value_name = "ADDR|CIDR")]
    pub remote: Option<String>,
    /// Only connections that are bound to this interface, by name or index
    #[arg(long, value_name = "NAME|INDEX")]
    pub interface: Option<String>,
    /// Only this side of connections: client, server or listener
    #[arg(long)]
    pub role: Option<Role>,
}

#[derive(Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RunArgs {
    /// Read options from this TOML file; its keys are the long names of these options
    #[arg(long, value_name = "FILE", env = "TCPWATCH_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Serve HTTP at this address, or with unix:PATH at a socket that its user and group may use; whoever can reach it
    /// can read which process talks to whom [default: 127.0.0.1:18279]
    #[arg(long, value_name = "ADDR:PORT|unix:PATH", env = "TCPWATCH_LISTEN")]
    pub listen: Option<Listen>,
    /// Serve /metrics, /healthz and /readyz at this address too, and nothing else there
    #[arg(long, value_name = "ADDR:PORT|unix:PATH", env = "TCPWATCH_METRICS_LISTEN")]
    pub metrics_listen: Option<Listen>,
    /// A name of this machine under which a loopback address is asked, as through a proxy (repeatable, or separated by
    /// commas) [default: localhost and loopback addresses only]
    #[arg(long, value_name = "NAME", env = "TCPWATCH_ALLOW_HOST", value_delimiter = ',')]
    pub allow_host: Vec<String>,
    /// Ask for TLS, client certificates or passwords at TCP addresses as this file says, which has the format of
    /// Prometheus' exporter-toolkit [default: plain HTTP, whoever reaches it may ask]
    #[arg(long, value_name = "FILE", env = "TCPWATCH_WEB_CONFIG")]
    pub web_config: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub findings: FindingArgs,
    /// Post warnings and critical findings to this URL, http://HOST:PORT/PATH, as Alertmanager's /api/v2/alerts takes them:
    /// when they open, change and end, and each minute
    #[arg(long, value_name = "URL", env = "TCPWATCH_ON_FINDING_WEBHOOK")]
    pub on_finding_webhook: Option<Webhook>,
    /// Memory for records on their way from the kernel, a power of two from 4KiB to 1GiB [default: 8MiB, or 128KiB
    /// for each processor where that is more]
    #[arg(long, value_name = "SIZE", env = "TCPWATCH_RING_SIZE")]
    pub ring_size: Option<ByteSize>,
    /// Connections kept at once; those beyond are counted but not kept [default: 1000000]
    #[arg(long, value_name = "N", env = "TCPWATCH_MAX_CONNECTIONS")]
    pub max_connections: Option<usize>,
    /// Ended connections kept for /history and /connections/ID, the oldest are dropped first; 0 for none [default:
    /// 10000]
    #[arg(long, value_name = "N", env = "TCPWATCH_MAX_ENDED")]
    pub max_ended: Option<usize>,
    /// Sets of process, role and peer kept apart in /metrics; those beyond are summed as ~other [default: 200]
    #[arg(long, value_name = "N", env = "TCPWATCH_MAX_LABEL_SETS")]
    pub max_label_sets: Option<usize>,
    /// Write everything that comes from the kernel to FILE, for `tcpwatch replay`
    #[arg(long, value_name = "FILE", env = "TCPWATCH_RECORD")]
    pub record: Option<PathBuf>,
    /// Greatest size of that file, for example 500MiB; the recording ends when it is reached [default: 1GiB]
    #[arg(long, value_name = "SIZE", env = "TCPWATCH_RECORD_MAX_SIZE")]
    pub record_max_size: Option<FileSize>,
    #[command(flatten)]
    #[serde(flatten)]
    pub hooks: HookArgs,
    /// Drop this share of the kernel's records on purpose (0 to 1): a test of the table's repair
    #[arg(long, value_name = "SHARE", hide = true)]
    #[serde(skip)]
    pub drop_records: Option<f64>,
    /// Log more, with the BPF programs' own log and the kernel verifier's
    #[arg(long, env = "TCPWATCH_DEBUG", value_parser = clap::builder::BoolishValueParser::new())]
    pub debug: bool,
}

#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default)]
pub struct FindingArgs {
    /// How long a connection may stay in STATE before /leaks names it, for example close-wait=2s (repeatable, or
    /// separated by commas) [default: syn-sent and syn-recv 5s; close-wait, fin-wait1, fin-wait2, closing, last-ack
    /// and close 30s]
    #[arg(long, value_name = "STATE=DURATION", env = "TCPWATCH_LINGER", value_delimiter = ',')]
    pub linger: Vec<Linger>,
    /// Another limit for a rule of /findings, for example close_wait_leak.stuck_seconds=60 (repeatable, or separated by
    /// commas) [default: docs/thresholds.md lists them, with reasons]
    #[arg(long, value_name = "NAME=NUMBER", env = "TCPWATCH_THRESHOLD", value_delimiter = ',')]
    pub threshold: Vec<ThresholdArg>,
}

impl FindingArgs {
    /// What is set, over the defaults. Of several values for one limit the last holds.
    ///
    /// # Errors
    /// For a state or a rule that has no such limit.
    pub fn settings(&self) -> Result<Settings, OptionsError> {
        let mut settings = Settings::default();
        for Linger(state, limit) in &self.linger {
            settings.linger.set(*state, *limit).map_err(OptionsError::Linger)?;
        }
        for ThresholdArg(name, value) in &self.threshold {
            settings.thresholds.set(name, *value).map_err(OptionsError::Threshold)?;
        }
        Ok(settings)
    }
}

/// `close_wait_leak.stuck_seconds=60`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct ThresholdArg(String, f64);

impl std::str::FromStr for ThresholdArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) =
            text.split_once('=').ok_or_else(|| format!("`{text}` is not of the form NAME=NUMBER"))?;
        let number = value.trim().parse().map_err(|_| format!("`{value}` is not a number"))?;
        Ok(Self(name.trim().to_owned(), number))
    }
}

impl TryFrom<String> for ThresholdArg {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// `close-wait=2s`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Linger(pub TcpState, pub Duration);

impl std::str::FromStr for Linger {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (state, limit) =
            text.split_once('=').ok_or_else(|| format!("`{text}` is not of the form STATE=DURATION"))?;
        let limit = humantime::parse_duration(limit.trim())
            .map_err(|error| format!("`{limit}` is not a duration such as 500ms, 2s or 5m: {error}"))?;
        Ok(Self(state.parse()?, limit))
    }
}

impl TryFrom<String> for Linger {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Bytes; `None` of what is no number of them.
fn parse_bytes(text: &str) -> Result<Option<u64>, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].trim() {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        unit => return Err(format!("`{unit}` is not one of KiB, MiB, GiB")),
    };
    Ok(digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)))
}

/// Bytes of a file, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct FileSize(pub u64);

impl std::str::FromStr for FileSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = parse_bytes(text)?.filter(|bytes| *bytes > 0);
        bytes.map(Self).ok_or_else(|| format!("`{text}` is not a size such as 500MiB"))
    }
}

impl TryFrom<String> for FileSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A power of two from one page to 1 GiB, as a ring buffer wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ByteSize(pub u32);

impl std::str::FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match parse_bytes(text)?.and_then(|bytes| u32::try_from(bytes).ok()) {
            Some(bytes) if bytes.is_power_of_two() && (4096..=1 << 30).contains(&bytes) => Ok(Self(bytes)),
            _ => Err(format!("`{text}` is not a power of two from 4KiB to 1GiB")),
        }
    }
}

impl TryFrom<String> for ByteSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The options of `run`, with defaults filled in.
#[derive(Clone, Debug)]
pub struct RunOptions {
    pub listen: Listen,
    pub metrics_listen: Option<Listen>,
    pub allowed_hosts: Vec<String>,
    pub web_config: Option<PathBuf>,
    pub settings: Settings,
    pub webhook: Option<Webhook>,
    pub limits: Limits,
    pub record: Option<PathBuf>,
    pub record_max_size: u64,
    pub load: LoadOptions,
}

#[derive(Debug, Error)]
pub enum OptionsError {
    #[error("cannot read the configuration file {0}: {1}")]
    Read(PathBuf, std::io::Error),
    #[error("the configuration file {0} is not valid: {1}")]
    Toml(PathBuf, toml::de::Error),
    #[error("--linger: {0}")]
    Linger(String),
    #[error("--threshold: {0}")]
    Threshold(String),
    #[error("--web-config {0}")]
    WebConfig(String),
    #[error("--{0} must be at least 1")]
    Zero(&'static str),
}

pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 18279);

/// Some minutes of a busy node.
const DEFAULT_RECORD_MAX_SIZE: u64 = 1 << 30;

pub const DEFAULT_LIMITS: Limits = Limits { connections: 1_000_000, ended: 10_000, label_sets: 200 };

impl RunArgs {
    /// Fills the options that were not given from the configuration file and the defaults.
    ///
    /// # Errors
    /// When the file cannot be read or has a key or value that is not an option.
    pub fn complete(self) -> Result<RunOptions, OptionsError> {
        let file = self.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let limits = Limits {
            connections: self.max_connections.or(file.max_connections).unwrap_or(DEFAULT_LIMITS.connections),
            ended: self.max_ended.or(file.max_ended).unwrap_or(DEFAULT_LIMITS.ended),
            label_sets: self.max_label_sets.or(file.max_label_sets).unwrap_or(DEFAULT_LIMITS.label_sets),
        };
        if limits.connections == 0 {
            return Err(OptionsError::Zero("max-connections"));
        }
        if limits.label_sets == 0 {
            return Err(OptionsError::Zero("max-label-sets"));
        }
        let findings = FindingArgs {
            linger: [file.findings.linger, self.findings.linger].concat(),
            threshold: [file.findings.threshold, self.findings.threshold].concat(),
        };
        Ok(RunOptions {
            listen: self.listen.or(file.listen).unwrap_or(Listen::Tcp(DEFAULT_LISTEN)),
            metrics_listen: self.metrics_listen.or(file.metrics_listen),
            web_config: self.web_config.or(file.web_config),
            allowed_hosts: [file.allow_host, self.allow_host].concat(),
            settings: findings.settings()?,
            webhook: self.on_finding_webhook.or(file.on_finding_webhook),
            limits,
            record: self.record.or(file.record),
            record_max_size: self
                .record_max_size
                .or(file.record_max_size)
                .map_or(DEFAULT_RECORD_MAX_SIZE, |size| size.0),
            load: LoadOptions {
                record_bytes: self.ring_size.or(file.ring_size).map(|size| size.0),
                drop_share: (self.drop_records.unwrap_or(0.0) * f64::from(u32::MAX)) as u32,
                btf: self.hooks.btf.or(file.hooks.btf),
                // Of several choices for one signal the last holds.
                choices: [file.hooks.hook, self.hooks.hook].concat(),
                debug: self.debug || file.debug,
            },
        })
    }
}

impl CheckArgs {
    /// The same as `run` would load.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            record_bytes: None,
            drop_share: 0,
            btf: self.hooks.btf.clone(),
            choices: self.hooks.hook.clone(),
            debug: self.debug,
        }
    }
}

fn read_file(path: &Path) -> Result<RunArgs, OptionsError> {
    let text = std::fs::read_to_string(path).map_err(|error| OptionsError::Read(path.to_owned(), error))?;
    toml::from_str(&text).map_err(|error| OptionsError::Toml(path.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn run(args: &[&str]) -> RunArgs {
        Cli::try_parse_from([&["tcpwatch"], args].concat()).unwrap().run
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn command_line_wins_over_file_and_file_over_default() {
        let path = std::env::temp_dir().join(format!("tcpwatch-options-{}.toml", std::process::id()));
        std::fs::write(
            &path,
            "listen = '[::1]:1'\nlinger = ['close-wait=2s', 'syn-sent=3s']\nring-size = '8MiB'\nrecord-max-size = '5GiB'\n",
        )
        .unwrap();
        let config = path.to_str().unwrap();
        let options = run(&["--config", config, "--linger", "syn-sent=4s"]).complete().unwrap();
        std::fs::remove_file(&path).unwrap();
        let limit = |wanted| options.settings.linger.iter().find(|(state, _)| *state == wanted).unwrap().1;
        assert_eq!(options.listen, "[::1]:1".parse().unwrap());
        assert_eq!(options.load.record_bytes, Some(8 << 20));
        assert_eq!(options.record_max_size, 5 << 30);
        assert_eq!(limit(TcpState::CloseWait), Duration::from_secs(2));
        assert_eq!(limit(TcpState::SynSent), Duration::from_secs(4));
        assert_eq!(limit(TcpState::LastAck), Duration::from_secs(30));
    }

    #[test]
    fn invalid_options_are_refused() {
        for args in [
            &["--linger", "close-wait"][..],
            &["--linger", "close-wait=soon"],
            &["--linger", "half-open=1s"],
            &["--ring-size", "5MiB"],
            &["--hook", "close"],
            &["--hook", "close=tp_btf"],
            &["--ring-size", "8GiB"],
            &["--record-max-size", "0"],
            &["--record-max-size", "1TiB"],
            &["--listen", "18279"],
            &["--listen", "unix:"],
            &["--no-such"],
            &["replay"],
        ] {
            assert!(Cli::try_parse_from([&["tcpwatch"], args].concat()).is_err(), "{args:?}");
        }
        assert!(run(&["--linger", "established=1s"]).complete().is_err());
        assert!(run(&["--max-label-sets", "0"]).complete().is_err());
        assert!(toml::from_str::<RunArgs>("listne = '127.0.0.1:1'").is_err());
    }
}
