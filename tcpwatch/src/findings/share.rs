//! How large a share is at least, of which only a few were seen.

/// Standard deviations on both sides of the mean that hold 95 % of a normal distribution.
const Z: f64 = 1.96;

/// The lower end of the 95 % Wilson interval of a share: 1 of 4 is 4.6 %, 250 of 1000 are 22.4 %.
pub(in crate::findings) fn at_least(part: u64, all: u64) -> f64 {
    if all == 0 {
        return 0.0;
    }
    let (n, share) = (all as f64, part as f64 / all as f64);
    let spread = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    ((share + Z * Z / (2.0 * n) - spread) / (1.0 + Z * Z / n)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::at_least;

    #[test]
    fn few_are_worth_less_than_many_of_the_same_share() {
        for (part, all, percent) in
            [(0, 0, 0.0), (0, 10, 0.0), (1, 4, 4.6), (6, 24, 12.0), (250, 1000, 22.4), (5, 5, 56.6)]
        {
            assert!((100.0 * at_least(part, all) - percent).abs() < 0.1, "{part} of {all}");
        }
    }
}
