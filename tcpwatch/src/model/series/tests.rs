use std::net::Ipv6Addr;

use super::*;
use crate::{
    events::decode::Endpoint,
    model::{processes::Activity, workload::Place},
};

const SECOND: u64 = 1_000_000_000;
const ESTABLISHED: Measure = Measure::State(TcpState::Established);
const CLOSE_WAIT: Measure = Measure::State(TcpState::CloseWait);

fn workload(name: &str) -> Workload {
    Workload { comm: name.into(), place: Place::Program(None) }
}

fn subject(name: &str) -> Subject {
    Subject::Workload(Some(workload(name)))
}

fn row(established: u32, opened: u32) -> Row {
    let mut row = Row { activity: Activity { opened, ..Activity::default() }, ..Row::default() };
    row.states[TcpState::Established.index()] = established;
    row
}

fn tally(rows: &[(&str, Row)]) -> Tally {
    let mut tally = Tally::default();
    for (name, row) in rows {
        for (sum, count) in tally.total.states.iter_mut().zip(row.states) {
            *sum += count;
        }
        tally.total.activity.add(row.activity);
        tally.workloads.insert(Some(workload(name)), *row);
    }
    tally
}

/// Samples of `a`, 10 s apart from 100 s on: connections, and opened since the sample before.
fn sampled(samples: impl IntoIterator<Item = (u32, u32)>) -> (Series, u64) {
    let (mut series, mut now_ns) = (Series::default(), 90 * SECOND);
    for (established, opened) in samples {
        now_ns += INTERVAL_NS;
        series.sample(tally(&[("a", row(established, opened))]), now_ns);
    }
    (series, now_ns)
}

#[test]
fn samples_are_due_each_ten_seconds_and_not_made_up_for_after_a_gap() {
    let mut series = Series::default();
    series.sample(Tally::default(), 100 * SECOND);
    assert!(!series.is_due(109 * SECOND) && series.is_due(110 * SECOND));
    series.sample(Tally::default(), 111 * SECOND);
    assert!(series.is_due(120 * SECOND), "a late tick does not shift the others");
    series.sample(Tally::default(), 900 * SECOND);
    assert!(!series.is_due(909 * SECOND) && series.is_due(910 * SECOND));
}

#[test]
fn values_of_the_past_are_those_of_then() {
    // Each sample has its number as connections, and one more connection was opened in each.
    let (series, now_ns) = sampled((0..420).map(|number| (number, 1)));
    for of in [Subject::Total, subject("a")] {
        let at = |measure, ago| series.at(&of, measure, now_ns - ago * SECOND);
        assert_eq!([0, 60, 900].map(|ago| at(ESTABLISHED, ago)), [Some(419.0), Some(413.0), Some(329.0)]);
        // An hour ago there are minutes, of which the highest sample counts.
        let hour_ago = at(ESTABLISHED, 3600).unwrap();
        assert!((59.0..=65.0).contains(&hour_ago), "{hour_ago}");
        assert_eq!([0, 60, 840, 3600].map(|ago| at(Measure::Opened, ago)), [Some(6.0); 4]);
        assert_eq!(at(ESTABLISHED, 4250), None, "before the first sample");
        assert_eq!(at(CLOSE_WAIT, 60), Some(0.0), "it had none");
    }
    assert_eq!(series.at(&subject("b"), ESTABLISHED, now_ns), None, "it is not known");
    // Shortly after the start.
    let (series, now_ns) = sampled((0..4).map(|number| (number, 1)));
    let at = |measure, ago| series.at(&Subject::Total, measure, now_ns - ago * SECOND);
    assert_eq!([0, 30, 60].map(|ago| at(ESTABLISHED, ago)), [Some(3.0), Some(0.0), None]);
    assert_eq!([0, 30].map(|ago| at(Measure::Opened, ago)), [Some(6.0), None]);
}

#[test]
fn rates_are_of_the_time_that_passed() {
    let mut series = Series::default();
    // Ticks that come late.
    for seconds in [100, 112, 121, 133, 141, 152, 163] {
        series.sample(tally(&[("a", row(1, 20))]), seconds * SECOND);
    }
    let rate = series.at(&Subject::Total, Measure::Opened, 163 * SECOND).unwrap();
    assert!((rate - 120.0 * 60.0 / 63.0).abs() < 0.01, "{rate}");
}

#[test]
fn the_worst_minute_says_when_and_who() {
    let (mut series, mut now_ns) = (Series::default(), 100 * SECOND);
    let mut worst_ns = 0;
    for number in 0..300 {
        now_ns += INTERVAL_NS;
        let burst = if number == 100 { 40 } else { 0 };
        worst_ns = if number == 100 { now_ns } else { worst_ns };
        series.sample(tally(&[("a", row(3 + burst, 0)), ("b", row(10, 2))]), now_ns);
    }
    let most = series.most(&Subject::Total, ESTABLISHED, Step::Minute, 0).unwrap();
    assert_eq!(most.value, 53);
    assert!(most.at_ns.abs_diff(worst_ns) < MINUTE_NS);
    assert_eq!(series.who(ESTABLISHED, most), Some((&workload("a"), 43)));
    // The samples of a quarter of an hour have it no more.
    let recent = series.most(&Subject::Total, ESTABLISHED, Step::Sample, now_ns - 900 * SECOND);
    assert_eq!(recent.map(|most| most.value), Some(13));
    let opened = series.most(&Subject::Total, Measure::Opened, Step::Minute, 0).unwrap();
    assert_eq!((opened.value, series.who(Measure::Opened, opened)), (12, Some((&workload("b"), 12))));
    assert_eq!(series.who(CLOSE_WAIT, most), None);
}

#[test]
fn a_new_subject_has_no_values_from_before_it_was_seen() {
    let mut series = Series::default();
    series.sample(tally(&[("a", row(1, 0))]), 100 * SECOND);
    series.sample(tally(&[("a", row(2, 0)), ("b", row(5, 0))]), 110 * SECOND);
    series.sample(tally(&[("b", row(6, 0))]), 120 * SECOND);
    let values = |name| series.values(&subject(name), ESTABLISHED, Step::Sample).unwrap().collect::<Vec<_>>();
    assert_eq!(values("a"), [Some(1), Some(2), Some(0)]);
    assert_eq!(values("b"), [None, Some(5), Some(6)]);
    assert_eq!(series.times(Step::Sample).collect::<Vec<_>>(), [100, 110, 120].map(|at| at * SECOND));
    assert_eq!((series.size(&subject("a")), series.size(&subject("b"))), (0, 6));
}

#[test]
fn at_the_bound_what_is_inactive_or_smaller_gives_way_and_that_is_counted() {
    let mut series = Series::default();
    let names: Vec<String> = (0..2 * MAX_COLUMNS).map(|number| format!("w{number:05}")).collect();
    let tally_of = |range: std::ops::Range<usize>, established| {
        tally(&names[range].iter().map(|name| (&**name, row(established, 0))).collect::<Vec<_>>())
    };
    series.sample(tally_of(0..MAX_COLUMNS + 10, 1), 100 * SECOND);
    assert_eq!(
        (series.columns, series.evicted, series.left_out),
        (MAX_COLUMNS, 0, 11),
        "the total has a column"
    );
    // Others as small do not drive away those that are there.
    series.sample(tally_of(0..2 * MAX_COLUMNS, 1), 110 * SECOND);
    assert_eq!((series.evicted, series.left_out), (0, MAX_COLUMNS + 1));
    let Some((first, Subject::Workload(Some(its)))) =
        series.subjects().find(|subject| **subject != Subject::Total).map(|one| (one.clone(), one.clone()))
    else {
        panic!("no workload is kept")
    };
    // A larger one does, and so does a kept one that needs another column.
    let mut more = tally_of(0..MAX_COLUMNS + 10, 1);
    more.workloads.insert(Some(workload("large")), row(2, 0));
    more.workloads.insert(Some(its), row(3, 7));
    series.sample(more, 120 * SECOND);
    assert_eq!((series.columns, series.evicted), (MAX_COLUMNS, 2));
    assert!(series.has(&subject("large"), ESTABLISHED) && series.has(&first, Measure::Opened));
    // What is not there any more gives way to anything.
    series.sample(tally_of(MAX_COLUMNS..2 * MAX_COLUMNS, 1), 130 * SECOND);
    let kept = names[MAX_COLUMNS..].iter().filter(|name| series.has(&subject(name), ESTABLISHED));
    assert!(kept.count() > MAX_COLUMNS - 10);
    assert!(series.columns <= MAX_COLUMNS);
    assert!(series.has(&Subject::Total, ESTABLISHED));
}

#[test]
fn memory_is_a_few_mebibytes_at_most() {
    let columns = MAX_COLUMNS * size_of::<Column>();
    let subjects = MAX_COLUMNS * (size_of::<Kept>() + size_of::<Subject>());
    assert!(columns + subjects <= 5 << 20, "{columns} + {subjects}");
}

#[test]
fn what_was_inactive_for_six_hours_is_forgotten() {
    let mut series = Series::default();
    series.sample(tally(&[("a", row(1, 1))]), 100 * SECOND);
    for minutes in [0, 360] {
        series.sample(Tally::default(), (110 + minutes * 60) * SECOND);
        assert_eq!(series.subjects().count(), if minutes == 0 { 2 } else { 1 });
    }
    assert_eq!(series.columns, 2, "those of the total");
}

fn toward(port: u16) -> PortUse {
    let destination = Endpoint { addr: Ipv6Addr::LOCALHOST, port };
    PortUse { netns: 1, source: Ipv6Addr::LOCALHOST, destination }
}

#[test]
fn the_fullest_destinations_have_series_and_the_total_the_fullest_of_each_minute() {
    let mut series = Series::default();
    let few = (toward(80), MANY_PORTS - 1);
    series.sample(Tally { ports: vec![few, (toward(81), 500)], ..Tally::default() }, 100 * SECOND);
    series.sample(Tally { ports: vec![few, (toward(82), 400)], ..Tally::default() }, 110 * SECOND);
    let most = series.most(&Subject::Total, Measure::Ports, Step::Minute, 0).unwrap();
    assert_eq!((most.value, series.fullest(most)), (500, Some((toward(81), 500))));
    let has = |port| series.has(&Subject::Ports(toward(port)), Measure::Ports);
    assert_eq!([80, 81, 82].map(has), [false, true, true]);
    let many = (0..1000).map(|port| (toward(port), 1000 + u32::from(port))).collect();
    series.sample(Tally { ports: many, ..Tally::default() }, 120 * SECOND);
    let destinations = series.subjects().filter(|subject| matches!(subject, Subject::Ports(_))).count();
    assert_eq!(destinations, MAX_DESTINATIONS + 2);
    assert!(series.has(&Subject::Ports(toward(999)), Measure::Ports));
}

#[test]
fn growth_is_the_slope_of_what_changes_and_no_step() {
    let of = |values: &[u32]| {
        let (series, now_ns) = sampled(values.iter().map(|value| (*value, 0)));
        series
            .growth(&subject("a"), ESTABLISHED, now_ns)
            .map(|growth| ((growth.per_minute * 10.0).round() / 10.0, growth.is_growing, growth.is_flat))
    };
    let flat = |value, count| vec![value; count];
    assert_eq!(of(&flat(5, 6)), None, "not watched for a minute");
    assert_eq!(of(&flat(5, 7)), Some((0.0, false, false)), "not for five minutes");
    assert_eq!(of(&flat(5, 31)), Some((0.0, false, true)));
    // An idle pool closed at once.
    assert_eq!(of(&[flat(1, 20), flat(13, 10)].concat()), Some((0.0, false, true)));
    // One each ten seconds, for the last minute only.
    let leak: Vec<u32> = (0..24).map(|_| 1).chain(2..=8).collect();
    assert_eq!(of(&leak), Some((6.0, true, false)));
    // One each minute, and one each two minutes.
    let slowly = |samples: u32| (0..31).map(|number| 3 + number / samples).collect::<Vec<_>>();
    assert_eq!(of(&slowly(6)).map(|(_, grows, flat)| (grows, flat)), Some((true, false)));
    assert_eq!(of(&slowly(12)).map(|(_, grows, flat)| (grows, flat)), Some((false, false)));
    // It has grown, and falls again.
    let fallen: Vec<u32> = (0..25).chain([10, 10, 10]).collect();
    assert!(!of(&fallen).unwrap().1);
    // A single outlier changes nothing.
    let mut outlier = flat(5, 31);
    outlier[15] = 90;
    assert_eq!(of(&outlier), Some((0.0, false, true)));
    // It falls.
    assert_eq!(of(&(0..31).rev().collect::<Vec<_>>()), Some((-6.0, false, false)));
}
