//! Benchmarks, on the cluster of the current kubeconfig except for [`log`], [`streams`], [`proxy`], [`fleet`] and [`soak`]. Each writes `target/bench/<name>.json`; `docs/benchmarks.md` is
//! rendered from those files.

mod bare_pod;
pub mod fleet;
pub mod log;
mod plot;
pub mod proxy;
pub mod report;
pub mod sandbox;
pub mod sizes;
pub mod soak;
pub mod streams;
pub mod ttft;

use serde::{Deserialize, Serialize};

/// What a benchmark found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// When it was run, RFC 3339.
    pub date: String,
    /// What was done, in a few sentences.
    pub method: String,
    /// The figures.
    pub results: Vec<Figure>,
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured.
    pub metric: String,
    /// In what.
    pub unit: String,
    /// Longhand's value.
    pub ours: f64,
    /// What it is held against, measured in the same run.
    pub baseline: Option<f64>,
    /// `ours / baseline`.
    pub ratio: Option<f64>,
    /// The goal, in words.
    pub goal: Option<String>,
    /// Whether it was met.
    pub met: Option<bool>,
    /// What `ours` and `baseline` were computed from.
    pub samples: Samples,
}

/// Single measurements.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// Longhand's.
    pub ours: Vec<f64>,
    /// Those of what it is held against.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baseline: Vec<f64>,
}

/// What a figure is held to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The value itself stays below this.
    Below(f64),
    /// The ratio to the baseline is at most this.
    Ratio(f64),
    /// The ratio to the baseline is at least this.
    AtLeast(f64),
    /// Nothing was asked for.
    None,
}

impl Figure {
    /// A figure of percentile `percent` of two sets of samples.
    #[must_use]
    pub fn percentile(metric: &str, unit: &str, samples: &Samples, percent: f64, goal: Goal) -> Self {
        let ours = percentile(&samples.ours, percent);
        let baseline = (!samples.baseline.is_empty()).then(|| percentile(&samples.baseline, percent));
        Self::new(metric, unit, ours, baseline, samples.clone(), goal)
    }

    /// A figure without a baseline.
    #[must_use]
    pub fn single(metric: &str, unit: &str, value: f64, goal: Goal) -> Self {
        Self::new(metric, unit, value, None, Samples { ours: vec![value], baseline: Vec::new() }, goal)
    }

    fn new(metric: &str, unit: &str, ours: f64, baseline: Option<f64>, samples: Samples, goal: Goal) -> Self {
        let ratio = baseline.map(|baseline| ours / baseline);
        let (goal, met) = match goal {
            Goal::Below(limit) => (Some(format!("< {limit} {unit}")), Some(ours < limit)),
            Goal::Ratio(limit) => (Some(format!("<= {limit} x baseline")), ratio.map(|ratio| ratio <= limit)),
            Goal::AtLeast(limit) => (Some(format!(">= {limit} x baseline")), ratio.map(|ratio| ratio >= limit)),
            Goal::None => (None, None),
        };
        Self { metric: metric.to_owned(), unit: unit.to_owned(), ours, baseline, ratio, goal, met, samples }
    }
}

/// The nearest-rank percentile; NaN without samples.
#[must_use]
pub fn percentile(samples: &[f64], percent: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank is small and not negative")]
    let rank = (percent / 100.0 * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{Figure, Goal, Samples, percentile};

    #[rstest]
    #[case(&[3.0, 1.0, 2.0], 50.0, 2.0)]
    #[case(&[3.0, 1.0, 2.0], 95.0, 3.0)]
    #[case(&[3.0], 50.0, 3.0)]
    #[case(&[1.0, 2.0, 3.0, 4.0], 50.0, 2.0)]
    fn percentiles_are_samples(#[case] samples: &[f64], #[case] percent: f64, #[case] expected: f64) {
        assert!((percentile(samples, percent) - expected).abs() < f64::EPSILON);
    }

    #[test]
    fn a_goal_is_met_or_not() {
        let samples = Samples { ours: vec![2.0], baseline: vec![1.0] };
        assert_eq!(Figure::percentile("m", "s", &samples, 50.0, Goal::Ratio(1.25)).met, Some(false));
        assert_eq!(Figure::percentile("m", "s", &samples, 50.0, Goal::Ratio(2.0)).met, Some(true));
        assert_eq!(Figure::percentile("m", "1/s", &samples, 50.0, Goal::AtLeast(2.0)).met, Some(true));
        assert_eq!(Figure::percentile("m", "1/s", &samples, 50.0, Goal::AtLeast(2.5)).met, Some(false));
        assert_eq!(Figure::single("m", "MiB", 2.0, Goal::Below(2.0)).met, Some(false));
        assert_eq!(Figure::single("m", "MiB", 2.0, Goal::None).met, None);
    }
}
