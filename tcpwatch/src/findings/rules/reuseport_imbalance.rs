//! `reuseport_imbalance`: of several listeners on one address and port (SO_REUSEPORT) one does not accept, or does not
//! belong there.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    events::decode::Endpoint,
    findings::{
        Rule, Severity,
        observation::{Evidence, Member, Observation, Observations, Subject, Ties, View},
        rules::Spec,
        thresholds::Threshold,
    },
    model::{table::Conn, tracker::overflows::Listening, workload::Workload},
    tcp::state::TcpState,
};

const WAITS_SECONDS: Threshold = Threshold {
    name: "reuseport_imbalance.waits_seconds",
    default: 5.0,
    reason: "each look finds something in its queue, and nothing in those of the others: three looks in a row",
};
const CRITICAL_SECONDS: Threshold = Threshold {
    name: "reuseport_imbalance.critical_seconds",
    default: 10.0,
    reason: "its part of all new connections hangs for as long",
};
const STRANGERS_SECONDS: Threshold = Threshold {
    name: "reuseport_imbalance.strangers_seconds",
    default: 60.0,
    reason: "a program that takes another's port over does it within seconds",
};

pub(super) const SPEC: Spec = Spec {
    rule: Rule::ReuseportImbalance,
    observe,
    thresholds: &[&WAITS_SECONDS, &CRITICAL_SECONDS, &STRANGERS_SECONDS],
    signals: &[],
    hold_seconds: 10,
    resolution_seconds: 2.0,
    evidence: &["members", "waiting", "queue_takes", "share_lost", "waits", "programs"],
    page: include_str!("../../../../docs/findings/reuseport_imbalance.md"),
    explanation: "Several sockets listen on one address and port (SO_REUSEPORT), and the kernel gives each connection to one of \
                  them by a hash of its addresses and ports, whether it accepts or not. If one hangs, its part of all new connections \
                  hangs; if one belongs to another program, that gets its part of the calls. How many connections each has accepted \
                  is not counted, so a skew alone is not seen.",
};

type Shared<'a> = (&'a Conn, &'a Listening);

fn observe(view: &View<'_>, out: &mut Observations) {
    // Only sockets that share it may listen on the same address, port and interface.
    let mut places: FxHashMap<(u32, u32, Endpoint), Vec<Shared<'_>>> = FxHashMap::default();
    for conn in view.tracker.table().in_state(TcpState::Listen) {
        if let Some(queue) = view.tracker.queue(conn.cookie) {
            places.entry((conn.netns, conn.interface, conn.local)).or_default().push((conn, queue));
        }
    }
    for mut members in places.into_values().filter(|members| members.len() > 1) {
        members.sort_unstable_by_key(|(conn, queue)| (std::cmp::Reverse(queue.waited_ns()), conn.cookie));
        if let Some(observation) = stuck(view, &members).or_else(|| strangers(view, &members)) {
            out.push(observation);
        }
    }
}

/// One member has something in its queue at each look, all others nothing.
fn stuck(view: &View<'_>, members: &[Shared<'_>]) -> Option<Observation> {
    let ((conn, queue), others) = members.split_first()?;
    let waited_ns = queue.waited_ns();
    let is_stuck = waited_ns >= view.thresholds.nanos(&WAITS_SECONDS)
        && queue.shrank_ns.is_none_or(|shrank_ns| Some(shrank_ns) < queue.waits_since_ns)
        && others.iter().all(|(_, other)| other.queue.waiting == 0);
    if !is_stuck {
        return None;
    }
    let waited = waited_ns as f64 / 1e9;
    let room = u64::from(queue.queue.limit) + 1;
    let half_full = u64::from(queue.queue.waiting) * 2 >= room;
    let critical = half_full || waited >= view.thresholds.get(&CRITICAL_SECONDS);
    let share = 100.0 / members.len() as f64;
    let subject = Subject::of(view.tracker, conn);
    let (name, port) = (subject.name().to_owned(), conn.local.port);
    let pid =
        conn.process.map_or(String::new(), |id| format!(" (pid {})", view.tracker.processes().get(id).pid));
    let waiting = queue.queue.waiting;
    let wait = if waiting == 1 { "connection waits" } else { "connections wait" };
    Some(Observation {
        rule: SPEC.rule,
        severity: if critical { Severity::Critical } else { Severity::Warning },
        since_ns: queue.waits_since_ns?,
        since_is_lower_bound: false,
        count: waiting.into(),
        evidence: vec![
            Evidence::new("members", members.len() as f64, "listeners"),
            Evidence::new("waiting", f64::from(waiting), "connections"),
            Evidence::new("queue_takes", room as f64, "connections"),
            Evidence::new("waits", waited, "seconds").against(view.thresholds.get(&WAITS_SECONDS)),
            Evidence::new("share_lost", share, "percent"),
        ],
        summary: format!(
            "One of {} listeners that share port {port} does not accept: {waiting} {wait} for {name}{pid}, none for the others. \
             About {share:.0} % of new connections hang.",
            members.len()
        ),
        next_step: format!(
            "Take a thread dump of {name}{pid}, then end it: the others go on. What waits in its queue is reset then."
        ),
        examples: vec![conn.id()],
        members: processes(view, &members[..1]),
        ties: Ties { listener: Some(conn.cookie), ..Ties::default() },
        subject,
    })
}

/// Members of different programs listen for long enough.
fn strangers(view: &View<'_>, members: &[Shared<'_>]) -> Option<Observation> {
    let workload = |conn: &Conn| conn.process.map(|id| Workload::of(view.tracker.processes().get(id)));
    let programs: FxHashSet<Workload> = members.iter().filter_map(|(conn, _)| workload(conn)).collect();
    let known = members.iter().all(|(conn, _)| conn.process.is_some());
    let youngest_ns = members.iter().map(|(conn, _)| conn.since_ns()).max()?;
    let lasted = view.now_ns.saturating_sub(youngest_ns) >= view.thresholds.nanos(&STRANGERS_SECONDS);
    if programs.len() < 2 || !known || !lasted {
        return None;
    }
    let (conn, queue) = members.iter().max_by_key(|(conn, _)| (conn.since_ns(), conn.cookie))?;
    let mut names: Vec<String> = programs.iter().map(ToString::to_string).collect();
    names.sort_unstable();
    Some(Observation {
        rule: SPEC.rule,
        severity: Severity::Warning,
        since_ns: youngest_ns,
        since_is_lower_bound: false,
        count: members.len() as u64,
        evidence: vec![
            Evidence::new("members", members.len() as f64, "listeners"),
            Evidence::new("programs", programs.len() as f64, "programs"),
            Evidence::new("waiting", f64::from(queue.queue.waiting), "connections"),
        ],
        summary: format!(
            "Different programs listen on port {}: {}. Each gets a part of all connections.",
            conn.local.port,
            names.join(", ")
        ),
        next_step: "If that is not meant, end the one that does not belong there: both set SO_REUSEPORT, so neither's listen() \
                    failed."
            .to_owned(),
        examples: members.iter().take(3).map(|(conn, _)| conn.id()).collect(),
        members: processes(view, members),
        ties: Ties { listener: Some(conn.cookie), ..Ties::default() },
        subject: Subject::of(view.tracker, conn),
    })
}

fn processes(view: &View<'_>, members: &[Shared<'_>]) -> Vec<Member> {
    let ids = members.iter().filter_map(|(conn, _)| conn.process);
    ids.map(|id| Member::from(view.tracker.processes().get(id))).collect()
}
