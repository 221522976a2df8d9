//! `accept_queue_overflow`: the kernel refused connections because a listener's accept queue was full.

use rustc_hash::FxHashMap;

use crate::{
    findings::{
        Rule, Severity,
        observation::{Evidence, Member, Observation, Observations, Subject, Ties, View},
        rules::Spec,
        thresholds::Threshold,
    },
    model::{table::Conn, tracker::overflows::Listening},
    tcp::state::TcpState,
};

const BURST: Threshold = Threshold {
    name: "accept_queue_overflow.burst",
    default: 5.0,
    reason: "refused within 10 s: each costs its client a second at least, when it repeats its SYN",
};
const AGAIN: Threshold = Threshold {
    name: "accept_queue_overflow.windows",
    default: 2.0,
    reason: "of the last three windows of 10 s: one burst, as after a start, heals by itself",
};
const STOPPED_SECONDS: Threshold = Threshold {
    name: "accept_queue_overflow.stopped_seconds",
    default: 30.0,
    reason: "a queue that is full and has not become shorter for that long is no burst: nobody calls accept()",
};

const WINDOW_NS: u64 = 10_000_000_000;
/// For how long it is said that it refused.
const LATELY_NS: u64 = 60_000_000_000;

pub(super) const SPEC: Spec = Spec {
    rule: Rule::AcceptQueueOverflow,
    observe,
    thresholds: &[&BURST, &AGAIN, &STOPPED_SECONDS],
    signals: &[],
    hold_seconds: 4,
    resolution_seconds: 2.0,
    evidence: &["overflows_last_minute", "overflows", "waiting", "somaxconn"],
    page: include_str!("../../../../docs/findings/accept_queue_overflow.md"),
    explanation: "A connection whose handshake is complete waits in the listener's accept queue until the process calls \
                  accept(). When the queue is full the kernel drops further SYNs and final acknowledgements, and the clients \
                  try again after 1, 2, 4 s: connects that take seconds or time out. Either the process accepts too slowly, or \
                  the queue is too short for the bursts that come.",
};

fn observe(view: &View<'_>, out: &mut Observations) {
    let mut worst: FxHashMap<Subject, Observation> = FxHashMap::default();
    for conn in view.tracker.table().in_state(TcpState::Listen) {
        let Some(queue) = view.tracker.queue(conn.cookie) else { continue };
        let Some(last_ns) = queue.refused_last_ns() else { continue };
        // It is not over while the queue is still more than half full.
        let is_full = u64::from(queue.queue.waiting) * 2 > u64::from(queue.queue.limit) + 1;
        if last_ns + LATELY_NS > view.now_ns || is_full {
            let one = observation(view, conn, queue);
            let rank = |one: &Observation| (one.severity, one.count);
            if worst.get(&one.subject).is_none_or(|other| rank(other) < rank(&one)) {
                worst.insert(one.subject.clone(), one);
            }
        }
    }
    for one in worst.into_values() {
        out.push(one);
    }
}

fn severity(view: &View<'_>, queue: &Listening) -> Severity {
    let windows = (0..3).filter(|window| {
        let until_ns = (view.now_ns + 1).saturating_sub(window * WINDOW_NS);
        queue.refused(until_ns.saturating_sub(WINDOW_NS), until_ns) > 0
    });
    let burst = queue.refused(view.now_ns.saturating_sub(WINDOW_NS), view.now_ns + 1);
    let stopped_ns = view.thresholds.nanos(&STOPPED_SECONDS);
    let since_ns = queue.waits_since_ns.max(queue.shrank_ns).unwrap_or(view.now_ns);
    let stopped = queue.queue.waiting > queue.queue.limit && since_ns + stopped_ns <= view.now_ns;
    let again = windows.count() >= view.thresholds.count(&AGAIN);
    match burst as usize >= view.thresholds.count(&BURST) || again {
        _ if stopped => Severity::Critical,
        true => Severity::Warning,
        false => Severity::Info,
    }
}

fn observation(view: &View<'_>, conn: &Conn, queue: &Listening) -> Observation {
    let subject = Subject::of(view.tracker, conn);
    let from_ns = view.now_ns.saturating_sub(LATELY_NS);
    let lately = queue.refused(from_ns, view.now_ns + 1);
    let (total, is_lower_bound) = queue.overflows();
    let limit = queue.queue.limit;
    let somaxconn = view.tracker.namespace(conn.netns).and_then(|settings| settings.somaxconn);
    let mut evidence = vec![
        Evidence::new("overflows_last_minute", lately as f64, "connections"),
        Evidence::new("overflows", total as f64, "connections").at_least(is_lower_bound),
        Evidence::new("waiting", f64::from(queue.queue.waiting), "connections").against(f64::from(limit)),
    ];
    evidence.extend(somaxconn.map(|most| Evidence::new("somaxconn", f64::from(most), "connections")));
    let (name, port) = (subject.name().to_owned(), conn.local.port);
    let about = if queue.is_shared_since(from_ns) { "about " } else { "" };
    let times = if lately == 1 { "once".to_owned() } else { format!("{about}{lately} times") };
    let bound = match somaxconn {
        Some(most) if most == limit => {
            "the limit is that of net.core.somaxconn, whatever the program asks for; it is read at listen()"
                .to_owned()
        }
        Some(most) => format!(
            "the limit is the backlog that the program gives to listen(); net.core.somaxconn allows {most}"
        ),
        None => "the limit is the lesser of net.core.somaxconn and the backlog given to listen()".to_owned(),
    };
    Observation {
        rule: SPEC.rule,
        severity: severity(view, queue),
        since_ns: queue.refused_first_ns().unwrap_or(view.now_ns),
        since_is_lower_bound: false,
        count: lately,
        evidence,
        summary: format!(
            "The accept queue of {name} on port {port} was full: the kernel refused {times} in the last minute; {} wait (limit \
             {limit}; one more is admitted).",
            queue.queue.waiting
        ),
        next_step: format!(
            "First see whether {name} keeps up with accept(). If its pauses are short and the bursts are real, a longer queue \
             bridges them: {bound}."
        ),
        examples: vec![conn.id()],
        members: conn.process.map(|id| Member::from(view.tracker.processes().get(id))).into_iter().collect(),
        ties: Ties { listener: Some(conn.cookie), ..Ties::default() },
        subject,
    }
}
