//! `/connections/ID`: one connection with its whole life and, while it lives, how its data goes and what options its
//! socket has.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::{
    http::{
        Api, ApiError, Render,
        parameters::{Given, Parameter, Parameters, Place},
        render::{
            completeness::Completeness,
            text::{bytes, duration, known_duration, printable, table},
            view::{Detail, ShownBlocked, ShownReset, ShownStalled, detail, show_queue},
        },
    },
    kernel::{
        conntrack::{self, Translation},
        netns,
        sock_diag::{self, Target, Transfer},
    },
    model::{
        address::Address,
        groups::Role,
        processes::Process,
        table::{Conn, ProcessSeen},
    },
    node::Node,
    tcp::{
        connect_outcome::Outcome,
        life::Cause,
        socket_options::{Keepalive, SocketOptions},
        stall::Recovery,
        state::TcpState,
        ticks::TickRate,
        time::Clock,
    },
};

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ConnectionNow")]
pub(crate) struct Connection {
    #[serde(flatten)]
    completeness: Completeness,
    #[serde(flatten)]
    detail: Detail,
    /// How its data goes, asked of the kernel at this moment; `null` where the kernel has no full socket of it (of what
    /// ended, of minisocks and listeners), and where `errors` says why it could not be asked.
    transfer: Option<Transfer>,
    /// The addresses on both sides of a translation (NAT), as connection tracking has them now, also of minisocks; `null`
    /// where no address is translated, of what ended and of listeners, and where `errors` says why it could not be asked.
    nat: Option<Nat>,
    /// The options of its socket, read from the kernel at this moment; `null` where `transfer` is, and where `errors` says
    /// why they could not be read.
    options: Option<SocketOptions>,
}

/// The addresses on both sides of a translation.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Translation")]
struct Nat {
    /// The client's end as the client has it.
    source: Address,
    /// The server's end as the client has it: the address that it dialled.
    dialled: Address,
    /// The client's end as the server has it.
    source_seen: Address,
    /// The server's end as the server has it.
    reached: Address,
}

/// Which connection: the segment of the path.
pub(crate) struct Id(u64);

impl Parameters for Id {
    fn declare() -> Vec<Parameter> {
        vec![Parameter {
            name: "id",
            place: Place::Path,
            meaning: "`id` of the connection in other answers".to_owned(),
            schema: json!({"type": "string", "pattern": "^[0-9a-f]{1,16}$"}),
        }]
    }

    fn take(given: &mut Given) -> Result<Self, ApiError> {
        let text = given.take_segment("id");
        // A sign, which from_str_radix takes too, is no digit.
        let digits = Some(&*text).filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let id = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        id.map(Self).ok_or_else(|| {
            ApiError::bad("id", format!("`{text}` is not an id, which is 1 to 16 hexadecimal digits"))
        })
    }
}

pub(crate) async fn answer(api: Api, Id(id): Id) -> Result<Connection, ApiError> {
    let (completeness, (detail, kept), tick_rate) = api
        .ask(true, move |node, clock| {
            Ok((Completeness::of(node), find(node, clock, id)?, node.identity.tick_rate))
        })
        .await
        .flatten()?;
    let not_recorded = || "a recording does not have what only the kernel knows".to_owned();
    let ((transfer, nat), options) = match kept {
        Some(Kept::Socket(_)) if !api.live => {
            ((Err(not_recorded()), Err(not_recorded())), Err(not_recorded()))
        }
        Some(Kept::Minisock(_)) if !api.live => ((Ok(None), Err(not_recorded())), Ok(None)),
        Some(Kept::Socket(target)) => {
            tokio::join!(ask_kernel(target.clone()), ask_options(&api, target, tick_rate))
        }
        Some(Kept::Minisock(target)) => ((Ok(None), ask_translation(target).await), Ok(None)),
        None => ((Ok(None), Ok(None)), Ok(None)),
    };
    let (transfer, transfer_error) = or_error(transfer);
    let (nat, nat_error) = or_error(nat);
    let nat = nat.map(|Translation { dialled, reached }| Nat {
        source: dialled.0.into(),
        dialled: dialled.1.into(),
        source_seen: reached.0.into(),
        reached: reached.1.into(),
    });
    let (options, options_error) = or_error(options);
    let errors = [("transfer", transfer_error), ("nat", nat_error), ("options", options_error)];
    let completeness = errors.into_iter().fold(completeness, |all, (what, why)| all.and(what, why));
    Ok(Connection { completeness, detail, transfer, nat, options })
}

type FromKernel<T> = Result<Option<T>, String>;

async fn ask_kernel(target: Target) -> (FromKernel<Transfer>, FromKernel<Translation>) {
    let ask = |target: &Target| (expected(sock_diag::ask(target)), conntrack::ask(target));
    in_namespace(target, ask).await.unwrap_or_else(|error| (Err(error.clone()), Err(error)))
}

/// A connection that lives has it.
fn expected<T>(found: FromKernel<T>) -> FromKernel<T> {
    found?.map(Some).ok_or_else(|| "the kernel does not have its socket any more".to_owned())
}

async fn ask_translation(target: Target) -> FromKernel<Translation> {
    in_namespace(target, conntrack::ask).await.flatten()
}

async fn in_namespace<T: Send + 'static>(
    target: Target,
    ask: impl FnOnce(&Target) -> T + Send + 'static,
) -> Result<T, String> {
    let asked = netns::on_own_thread(move || {
        netns::enter_existing(target.netns, &target.ways)?;
        Ok(ask(&target))
    });
    asked.await.flatten()
}

async fn ask_options(api: &Api, target: Target, tick_rate: TickRate) -> FromKernel<SocketOptions> {
    let Some(sweeper) = &api.sweeper else { return Ok(None) };
    let record = expected(sweeper.socket_options(target).await)?;
    Ok(record.map(|record| SocketOptions::new(&record, tick_rate)))
}

fn or_error<T>(answer: FromKernel<T>) -> (Option<T>, Option<String>) {
    answer.map_or_else(|error| (None, Some(error)), |found| (found, None))
}

/// What the kernel has of a connection that lives, and can be asked about.
#[derive(Debug)]
enum Kept {
    Socket(Target),
    /// Or the request of a handshake under way: the ends are all that can be asked about. Nobody else has them meanwhile.
    Minisock(Target),
}

/// The connection, and what to ask the kernel for where it knows more.
fn find(node: &Node, clock: Clock, id: u64) -> Result<(Detail, Option<Kept>), ApiError> {
    let tracker = &node.tracker;
    let live = if tracker.reported().identity_is_address {
        // Listed under their address only: all are looked at.
        tracker.table().iter().find(|conn| conn.id() == id)
    } else {
        tracker.table().find(id).map(|slot| tracker.table().get(slot))
    };
    if let Some(conn) = live {
        return Ok((detail(node, clock, conn, None), kept(node, conn)));
    }
    let ended = tracker.ended().iter().rev().find(|ended| ended.conn.id() == id);
    ended.map(|ended| (detail(node, clock, &ended.conn, Some(ended)), None)).ok_or_else(|| {
        ApiError::not_found(format!("no connection {id:x}, neither now nor among the last that ended"))
    })
}

fn kept(node: &Node, conn: &Conn) -> Option<Kept> {
    let target = node.target(conn);
    match conn.role {
        Role::Listener => None,
        _ if conn.is_full() => Some(Kept::Socket(target)),
        _ => Some(Kept::Minisock(target)),
    }
}

impl Render for Connection {
    fn text(&self) -> String {
        let detail = &self.detail;
        let mut text = format!("{} of {}\n", detail.row.role, detail.row.local_text());
        let mut line = |label: &str, value: String| text += &format!("  {label:<12}{value}\n");
        line("remote", detail.row.remote_text());
        line("netns", detail.row.netns.to_string());
        for (label, process) in
            [("opened by", &detail.opener), ("process", &detail.row.process), ("closed by", &detail.closer)]
        {
            if let Some(process) = process {
                let inferred = label == "process" && detail.row.process_seen == Some(ProcessSeen::Listener);
                let inferred = if inferred { ", which holds the listener" } else { "" };
                line(label, show_process(process) + inferred);
            }
        }
        if let Some(queue) = &detail.row.queue {
            line("queue", show_queue(queue));
        }
        if detail.row.accepted == Some(false) {
            line("accepted", "not yet".to_owned());
        }
        if let Some(connect) = detail.connect {
            let repeated = match connect.syn_retransmits {
                None | Some(0) => String::new(),
                Some(count) => format!(", {count} SYN repeated"),
            };
            let after = connect
                .duration_seconds
                .map_or(String::new(), |seconds| format!(" after {}", duration(seconds)));
            let outcome = connect.outcome.map_or("waits", Outcome::name);
            line("connect", format!("{outcome}{after}{repeated}"));
        }
        if let Some(first) = detail.first_close {
            let (lower, upper) = (detail.established_is_lower_bound, detail.established_is_upper_bound);
            let after = detail.established_seconds.map_or(String::new(), |seconds| {
                format!(" after {} ESTABLISHED", known_duration(Some(seconds), lower, upper))
            });
            line("first close", format!("{}{after}", first.name()));
        }
        for (what, count, whose) in [
            ("received", detail.received_after_close_bytes, "the local side's"),
            ("sent", detail.sent_after_close_bytes, "the peer's"),
        ] {
            if let Some(count) = count.filter(|count| *count > 0) {
                line("after close", format!("{} {what} after {whose} FIN", bytes(count)));
            }
        }
        if let Some(idle) = detail.idle {
            let (sending, receiving) = (duration(idle.sending_seconds), duration(idle.receiving_seconds));
            line("idle before", format!("{sending} since it sent data, {receiving} since it received"));
        }
        if let Some(reset) = detail.reset {
            line("reset", show_reset(&reset));
        }
        // Of one that lives, `transfer` says it as of now.
        if let (Some(sent), Some(received), None) = (detail.sent_bytes, detail.received_bytes, &self.transfer)
        {
            line("carried", format!("{} sent, {} received", bytes(sent), bytes(received)));
        }
        for (label, value) in losses(detail) {
            line(label, value);
        }
        if detail.unread_bytes > 0 {
            line("unread", format!("{} bytes", detail.unread_bytes));
        }
        if let Some(errno) = detail.errno {
            line("errno", errno.text().into_owned());
        }
        if let Some(transfer) = &self.transfer {
            for (label, value) in lines(transfer) {
                line(label, value);
            }
        }
        if let Some(nat) = &self.nat {
            let seen = if nat.source == nat.source_seen {
                String::new()
            } else {
                format!(", from {} seen as {}", nat.source, nat.source_seen)
            };
            line("NAT", format!("dialled {}, reached {}{seen}", nat.dialled, nat.reached));
        }
        if let Some(options) = &self.options {
            line("keep-alive", show_keepalive(options.keepalive));
            line("options", show_options(options));
        }
        text.push('\n');
        let rows: Vec<_> = detail
            .life
            .iter()
            .map(|step| {
                let cause = step.cause.name().to_owned();
                let lasted = known_duration(
                    step.duration_seconds,
                    step.duration_is_lower_bound,
                    step.duration_is_upper_bound,
                );
                vec![step.entered_at.clone(), step.state.to_string(), lasted, cause]
            })
            .collect();
        text + &table(&["SINCE", "STATE", "FOR", "CAUSED BY"], &rows) + &self.completeness.text()
    }
}

fn show_process(process: &Process) -> String {
    printable(&format!("{} (pid {}){}", process.comm, process.pid, process.exe_text()))
}

fn show_reset(reset: &ShownReset) -> String {
    let mut text = format!("{}: {}", reset.direction.name(), reset.reason.name());
    if reset.process_exited {
        text += ", the process exited";
    }
    for (what, bytes) in reset.discarded.parts() {
        if bytes > 0 {
            text += &format!(", {bytes} bytes {what}");
        }
    }
    text
}

/// What was lost on the way, and what came of it.
fn losses(detail: &Detail) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let mut line = |label, value| lines.push((label, value));
    if let Some(retransmits) = detail.retransmits.filter(|retransmits| *retransmits > 0) {
        line("retransmits", format!("{retransmits} segments, {} bytes", detail.retransmitted_bytes));
    }
    if !detail.retransmits_by_kind.is_empty() {
        let kinds = detail.retransmits_by_kind.iter().map(|(kind, count)| format!("{count} {kind}"));
        line("because of", kinds.collect::<Vec<_>>().join(", "));
    }
    if detail.spurious_retransmits > 0 {
        line("needlessly", format!("{} segments", detail.spurious_retransmits));
    }
    if !detail.retransmits_failed.is_empty() {
        let each = detail.retransmits_failed.iter().map(|(errno, count)| format!("{count} {errno}"));
        line("failed", each.collect::<Vec<_>>().join(", "));
    }
    for (recovery, blocked) in &detail.blocked {
        let ShownBlocked { count, duration_seconds, waiting_bytes } = *blocked;
        let (seconds, behind) = (duration(duration_seconds), bytes(waiting_bytes));
        let gave_up = *recovery == Recovery::Timeout.name()
            && detail
                .life
                .last()
                .is_some_and(|last| last.state == TcpState::Close && last.cause == Cause::Timer);
        let how = match count {
            _ if !gave_up => "made good by",
            1 => "never made good by",
            _ => "the last never made good, by",
        };
        line("blocked", format!("{seconds} in {count}, {how} {recovery}; {behind} waited"));
    }
    if let Some(stalled) = detail.row.stalled {
        line("stalled", show_stalled(&stalled));
    }
    lines
}

fn show_stalled(stalled: &ShownStalled) -> String {
    let (seconds, waiting) = (duration(stalled.duration_seconds), bytes(stalled.waiting_bytes.into()));
    format!("since {seconds}, to be made good by {}; {waiting} wait", stalled.recovery.name())
}

fn show_keepalive(keepalive: Keepalive) -> String {
    let Keepalive { on, idle_seconds, interval_seconds, probes } = keepalive;
    if !on {
        return "off".to_owned();
    }
    let [idle, interval] = [idle_seconds, interval_seconds].map(|seconds| duration(seconds as f64));
    format!("on: after {idle}, every {interval}, {probes} probes")
}

fn show_options(options: &SocketOptions) -> String {
    let switch = |on| if on { "on" } else { "off" };
    let time = |seconds: Option<f64>| seconds.map_or_else(|| "off".to_owned(), duration);
    format!(
        "TCP_NODELAY {}, TCP_CORK {}, SO_LINGER {}, TCP_USER_TIMEOUT {}",
        switch(options.nodelay),
        switch(options.cork),
        time(options.linger_seconds.map(|seconds| seconds as f64)),
        time(options.user_timeout_seconds)
    )
}

/// How the data goes, for people.
fn lines(transfer: &Transfer) -> Vec<(&'static str, String)> {
    let Transfer { sending, receiving, rtt, congestion, timer } = transfer;
    let ago = |last: Option<f64>| last.map_or(String::new(), |last| format!(", last {} ago", duration(last)));
    let mut lines = vec![
        (
            "sent",
            format!(
                "{}, {} acknowledged, {} in the queue, {} of them unsent{}",
                bytes(sending.sent_bytes),
                bytes(sending.acknowledged_bytes),
                bytes(sending.queue_bytes.into()),
                bytes(sending.unsent_bytes.into()),
                ago(sending.since_last_sent_seconds)
            ),
        ),
        (
            "received",
            format!(
                "{}, {} in the queue{}",
                bytes(receiving.received_bytes),
                bytes(receiving.queue_bytes.into()),
                ago(receiving.since_last_received_seconds)
            ),
        ),
    ];
    if let Some(rtt) = rtt {
        // In a data centre often less than a millisecond, to which other durations are shown.
        let millis = |seconds: f64| format!("{:.3}ms", seconds * 1e3);
        let least = rtt.min_seconds.map_or(String::new(), |least| format!(", least {}", millis(least)));
        lines.push((
            "round trip",
            format!("{}, varies by {}{least}", millis(rtt.smoothed_seconds), millis(rtt.variation_seconds)),
        ));
    }
    if sending.busy_seconds > 0.0 {
        let share = |seconds: f64| 100.0 * seconds / sending.busy_seconds;
        lines.push((
            "limited by",
            format!(
                "the peer's window {:.0}%, the send buffer {:.0}% of {} busy",
                share(sending.peer_window_limited_seconds),
                share(sending.buffer_limited_seconds),
                duration(sending.busy_seconds)
            ),
        ));
    }
    if sending.window_probes > 0 {
        lines.push(("probes", format!("{} of a closed window, not answered", sending.window_probes)));
    }
    if receiving.out_of_order_packets > 0 {
        lines.push(("out of order", format!("{} packets", receiving.out_of_order_packets)));
    }
    let algorithm = congestion.algorithm.as_deref().unwrap_or("-");
    let window = congestion.window_segments;
    lines.push((
        "congestion",
        printable(&format!("{algorithm}, {}, window {window} segments", congestion.state)),
    ));
    if let Some(timer) = timer {
        let left = timer.remaining_seconds.map_or(String::new(), |left| format!(" in {}", duration(left)));
        lines.push(("timer", format!("{}{left}", timer.kind)));
    }
    lines
}
