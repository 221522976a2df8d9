//! Measured values of several runs: the median and the spread.

use serde::{Deserialize, Serialize};

/// The median of several runs, with the least and the most.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    pub(crate) runs: usize,
}

impl Spread {
    /// `None` without runs.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let (least, most) = (*figures.first()?, *figures.last()?);
        let middle = figures.len() / 2;
        let median = if figures.len() % 2 == 1 {
            figures[middle]
        } else {
            f64::midpoint(figures[middle - 1], figures[middle])
        };
        Some(Self { median, least, most, runs: figures.len() })
    }

    /// `median (least–most)`, each formatted by `figure`.
    pub(crate) fn show(&self, figure: impl Fn(f64) -> String) -> String {
        if self.runs == 1 {
            return figure(self.median);
        }
        format!("{} ({}–{})", figure(self.median), figure(self.least), figure(self.most))
    }
}

/// Three significant digits, without an exponent.
pub(crate) fn three_digits(figure: f64) -> String {
    match figure.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        size if size >= 0.1 => format!("{figure:.2}"),
        _ => format!("{figure:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_between_the_two_in_the_middle() {
        let spread = Spread::of([3.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!((spread.least, spread.median, spread.most, spread.runs), (1.0, 2.5, 10.0, 4));
        assert_eq!(
            Spread::of([7.0, 1.0, 2.0]).map(|spread| spread.show(three_digits)).unwrap(),
            "2.00 (1.00–7.00)"
        );
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn values_keep_three_digits() {
        let shown = [0.0, 0.0123, 0.987, 1.5, 12.34, 41_234.5].map(three_digits);
        assert_eq!(shown, ["0", "0.012", "0.99", "1.50", "12.3", "41234"]);
        assert_eq!(Spread::of([2.0]).unwrap().show(three_digits), "2.00");
        assert_eq!(Spread::of([1.0, 2.0]).unwrap().show(three_digits), "1.50 (1.00–2.00)");
    }
}
