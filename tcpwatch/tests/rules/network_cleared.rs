use tcpwatch::findings::{
    rules::network_cleared::{Delivery, Judgement, Verdict, Way, is_delayed, judge},
    thresholds::Thresholds,
};

/// Ten thousand segments each way, and nothing that speaks against them.
fn clean() -> Delivery {
    let way = Way::new(10_000, 10_000_000, true);
    Delivery { sent: way, received: way, checksum_errors: Some(0), ..Delivery::default() }
}

fn verdict(delivery: &Delivery) -> Verdict {
    judge(delivery, &Thresholds::default()).verdict
}

#[test]
fn without_a_loss_among_ten_thousand_it_is_cleared_with_the_bound() {
    let delivery = clean();
    let judgement = Judgement { verdict: Verdict::Cleared, reasons: Vec::new() };
    assert_eq!(judge(&delivery, &Thresholds::default()), judgement);
    // 3 of n.
    assert_eq!(delivery.sent.loss_upper_bound_percent, Some(0.03));
    assert_eq!(Way::new(10_000, 1, false).loss_upper_bound_percent, None);
    assert_eq!(Way::new(1, 1, true).loss_upper_bound_percent, Some(100.0));
}

#[test]
fn each_sign_of_a_network_at_fault_speaks_against_it() {
    type Change = fn(&mut Delivery);
    let signs: [Change; 9] = [
        |one| (one.retransmitted, one.fast) = (100, 100),
        |one| one.retransmitted = 1,
        |one| one.failed_retransmits = 1,
        |one| one.out_of_order = 1,
        |one| one.resets = 1,
        |one| one.failed_connects = 1,
        |one| one.stalls = 1,
        |one| one.delayed = 1,
        |one| one.findings.push("hol_blocking.1".to_owned()),
    ];
    for (index, sign) in signs.into_iter().enumerate() {
        let mut delivery = clean();
        sign(&mut delivery);
        let judgement = judge(&delivery, &Thresholds::default());
        assert_eq!((judgement.verdict, judgement.reasons.len()), (Verdict::NotCleared, 1), "{index}");
    }
}

#[test]
fn one_loss_in_a_million_that_is_made_good_at_once_is_an_exception() {
    let way = Way::new(1_000_000, 1_000_000_000, false);
    let delivery = Delivery { sent: way, retransmitted: 1, fast: 1, ..clean() };
    let judgement = judge(&delivery, &Thresholds::default());
    assert_eq!((judgement.verdict, judgement.reasons.len()), (Verdict::ClearedExcept, 1));
    assert_eq!(verdict(&Delivery { fast: 0, ..delivery }), Verdict::NotCleared, "by a time-out");
}

#[test]
fn what_applications_reset_is_not_the_networks_doing() {
    assert_eq!(verdict(&Delivery { resets_of_applications: 5, ..clean() }), Verdict::ClearedExcept);
    assert_eq!(verdict(&Delivery { checksum_errors: Some(1), ..clean() }), Verdict::ClearedExcept);
}

#[test]
fn of_too_few_segments_and_of_lost_records_nothing_can_be_said() {
    let few = |segments| Way::new(segments, 1, true);
    for (segments, expected) in [(299, Verdict::CannotTell), (300, Verdict::Cleared)] {
        let delivery = Delivery { sent: few(segments), received: few(38), ..clean() };
        assert_eq!(verdict(&delivery), expected, "{segments}");
    }
    let lost = Delivery { gaps: vec!["records were lost".to_owned()], ..clean() };
    assert_eq!(verdict(&lost), Verdict::CannotTell);
    // What was seen was seen.
    assert_eq!(verdict(&Delivery { out_of_order: 1, ..lost }), Verdict::NotCleared);
}

#[test]
fn round_trips_are_steady_up_to_three_times_the_least_or_five_milliseconds_more() {
    let thresholds = Thresholds::default();
    for (rtt, least, variation, expected, what) in [
        (0.0059, 0.001, 0.001, false, "within 5 ms"),
        (0.0061, 0.001, 0.001, true, "above"),
        (0.29, 0.1, 0.01, false, "within three times"),
        (0.31, 0.1, 0.01, true, "above"),
        (0.0205, 0.000_009, 0.0234, false, "acknowledgements that the peer delays"),
    ] {
        assert_eq!(is_delayed(&thresholds, rtt, least, variation), expected, "{what}");
    }
}
