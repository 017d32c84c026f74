//! Between a robot's numbers and the network's: state in, actions out (spec/PI05.md §3.1).
//!
//! Built once from a checkpoint's statistics, which are checked then; [`super::Policy`] calls it for every inference.
//! Each code base keeps its own arithmetic: openpi computes in f64 and adds 1e-6 to every range, LeRobot computes
//! in f32 and replaces only an empty range. Nothing is ever clipped.

use std::fmt;

use super::{
    checkpoint::Layout,
    statistics::{NormMode, Statistics},
};

/// openpi adds this to every range and deviation.
const OPENPI_EPS: f64 = 1e-6;

/// The two vectors that have statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// The robot's state.
    State,
    /// Its actions.
    Action,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Feature::State => "state",
            Feature::Action => "action",
        })
    }
}

/// Why statistics cannot be used.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum NormalizeError {
    /// The checkpoint's side files lack a statistic.
    #[error(
        "{source_name}: the {feature} statistics have no `{statistic}`, which {mode:?} normalisation needs; \
         use statistics that have it or set another normalisation"
    )]
    Missing {
        /// Whose statistics.
        feature: Feature,
        /// Name of the missing vector.
        statistic: &'static str,
        /// What needed it.
        mode: NormMode,
        /// Where the statistics were read from.
        source_name: String,
    },
    /// The vector belongs to another robot.
    #[error(
        "{source_name}: the {feature} statistic `{statistic}` has {found} values, the configured robot has \
         {needed}; check the joint names or use the statistics of this robot"
    )]
    Length {
        /// Whose statistics.
        feature: Feature,
        /// Name of the vector.
        statistic: &'static str,
        /// Its length.
        found: usize,
        /// Length of the robot's vector.
        needed: usize,
        /// Where the statistics were read from.
        source_name: String,
    },
    /// A NaN or an infinity would reach the arm.
    #[error(
        "{source_name}: the {feature} statistic `{statistic}` is {value} at index {index}; \
         recompute the statistics"
    )]
    NotFinite {
        /// Whose statistics.
        feature: Feature,
        /// Name of the vector.
        statistic: &'static str,
        /// Position in the vector.
        index: usize,
        /// What stands there.
        value: f64,
        /// Where the statistics were read from.
        source_name: String,
    },
    /// openpi has no such formula.
    #[error(
        "{mode:?} normalisation exists only for LeRobot checkpoints; \
         set the normalisation of this one to quantiles or mean/std"
    )]
    Unsupported {
        /// The mode asked for.
        mode: NormMode,
    },
}

/// Normalises and unnormalises one feature.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalizer {
    layout: Layout,
    eps: f64,
    rule: Rule,
}

#[derive(Clone, Debug, PartialEq)]
enum Rule {
    /// As it is.
    Identity,
    /// `low .. high` to -1 .. 1.
    Range { low: Vec<f64>, high: Vec<f64> },
    /// Zero mean, unit deviation.
    MeanStd { mean: Vec<f64>, std: Vec<f64> },
}

impl Normalizer {
    /// Takes what `mode` needs of the feature's statistics: at least `needed` values, the length of the robot's
    /// vector, all finite. Longer ones are cut, as openpi does; LeRobot takes only a state of the trained length.
    pub fn new(
        layout: Layout,
        feature: Feature,
        statistics: &Statistics,
        mode: NormMode,
        needed: usize,
    ) -> Result<Self, NormalizeError> {
        let stats = match feature {
            Feature::State => &statistics.state,
            Feature::Action => &statistics.action,
        };
        let exact = layout == Layout::LeRobot && feature == Feature::State;
        let take = |statistic: &'static str, values: &Option<Vec<f64>>| {
            let source_name = statistics.source.clone();
            let Some(values) = values else {
                return Err(NormalizeError::Missing { feature, statistic, mode, source_name });
            };
            let found = values.len();
            if found < needed || (exact && found > needed) {
                return Err(NormalizeError::Length { feature, statistic, found, needed, source_name });
            }
            match values.iter().take(needed).enumerate().find(|(_, v)| !v.is_finite()) {
                None => Ok(values.clone()),
                Some((index, &value)) => {
                    Err(NormalizeError::NotFinite { feature, statistic, index, value, source_name })
                }
            }
        };
        let range = |low: (&'static str, &Option<Vec<f64>>), high: (&'static str, &Option<Vec<f64>>)| {
            Ok(Rule::Range { low: take(low.0, low.1)?, high: take(high.0, high.1)? })
        };
        let rule = match (mode, layout) {
            (NormMode::Identity, _) => Rule::Identity,
            (NormMode::Quantiles, _) => range(("q01", &stats.q01), ("q99", &stats.q99))?,
            (NormMode::MeanStd, _) => {
                Rule::MeanStd { mean: take("mean", &stats.mean)?, std: take("std", &stats.std)? }
            }
            (NormMode::Quantile10, Layout::LeRobot) => range(("q10", &stats.q10), ("q90", &stats.q90))?,
            (NormMode::MinMax, Layout::LeRobot) => range(("min", &stats.min), ("max", &stats.max))?,
            (NormMode::Quantile10 | NormMode::MinMax, Layout::OpenPi) => {
                return Err(NormalizeError::Unsupported { mode });
            }
        };
        Ok(Self { layout, eps: statistics.eps, rule })
    }

    /// The robot's vector as the network takes it. Statistics beyond `x` are left out.
    /// LeRobot's results are f32 values.
    pub fn normalize(&self, x: &[f64]) -> Vec<f64> {
        match self.layout {
            Layout::OpenPi => self.each(x, |x, rule| match rule {
                Dim::Range(low, high) => (x - low) / (high - low + OPENPI_EPS) * 2.0 - 1.0,
                Dim::MeanStd(mean, std) => (x - mean) / (std + OPENPI_EPS),
                Dim::None => x,
            }),
            Layout::LeRobot => self.each(x, |x, rule| {
                let x = x as f32;
                f64::from(match rule {
                    Dim::Range(low, high) => 2.0 * (x - low as f32) / self.lerobot_range(low, high) - 1.0,
                    Dim::MeanStd(mean, std) => (x - mean as f32) / (std as f32 + self.eps as f32),
                    Dim::None => x,
                })
            }),
        }
    }

    /// The way back of [`normalize`](Self::normalize). Where `x` is longer than the statistics, the rest is
    /// left as it is (openpi's z-score takes it as mean 0 and deviation 1).
    pub fn unnormalize(&self, x: &[f64]) -> Vec<f64> {
        match self.layout {
            Layout::OpenPi => self.each(x, |x, rule| self.openpi_back(x, (x + 1.0) / 2.0, rule)),
            Layout::LeRobot => self.each(x, |x, rule| self.lerobot_back(x as f32, rule)),
        }
    }

    /// One row of the network's actions, in robot units. Differs from [`unnormalize`](Self::unnormalize) by the
    /// rounding of openpi's `(x + 1) / 2`, which NumPy computes in the f32 of the network's output.
    pub fn unnormalize_actions(&self, x: &[f32]) -> Vec<f64> {
        match self.layout {
            Layout::OpenPi => {
                self.each(x, |x, rule| self.openpi_back(f64::from(x), f64::from((x + 1.0) / 2.0), rule))
            }
            Layout::LeRobot => self.each(x, |x, rule| self.lerobot_back(x, rule)),
        }
    }

    /// openpi; `half` is `(x + 1) / 2` in the caller's precision.
    fn openpi_back(&self, x: f64, half: f64, rule: Dim) -> f64 {
        match (rule, &self.rule) {
            (Dim::Range(low, high), _) => half * (high - low + OPENPI_EPS) + low,
            (Dim::MeanStd(mean, std), _) => x * (std + OPENPI_EPS) + mean,
            (Dim::None, Rule::MeanStd { .. }) => x * (1.0 + OPENPI_EPS),
            (Dim::None, _) => x,
        }
    }

    fn lerobot_back(&self, x: f32, rule: Dim) -> f64 {
        f64::from(match rule {
            Dim::Range(low, high) => (x + 1.0) * self.lerobot_range(low, high) / 2.0 + low as f32,
            Dim::MeanStd(mean, std) => x * std as f32 + mean as f32,
            Dim::None => x,
        })
    }

    /// An empty range becomes `eps`.
    fn lerobot_range(&self, low: f64, high: f64) -> f32 {
        let range = high as f32 - low as f32;
        if range == 0.0 { self.eps as f32 } else { range }
    }

    /// Applies `f` to every value together with the statistics of its dimension.
    fn each<T: Copy>(&self, x: &[T], f: impl Fn(T, Dim) -> f64) -> Vec<f64> {
        let dim = |i: usize| match &self.rule {
            Rule::Identity => Dim::None,
            Rule::Range { low, high } => pair(low, high, i).map_or(Dim::None, |(l, h)| Dim::Range(l, h)),
            Rule::MeanStd { mean, std } => pair(mean, std, i).map_or(Dim::None, |(m, s)| Dim::MeanStd(m, s)),
        };
        x.iter().enumerate().map(|(i, &x)| f(x, dim(i))).collect()
    }
}

/// Statistics of one dimension.
#[derive(Clone, Copy)]
enum Dim {
    None,
    Range(f64, f64),
    MeanStd(f64, f64),
}

fn pair(a: &[f64], b: &[f64], i: usize) -> Option<(f64, f64)> {
    Some((*a.get(i)?, *b.get(i)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::statistics::FeatureStats;
    use proptest::prelude::*;

    fn stats(n: usize) -> FeatureStats {
        let v = |f: fn(f64) -> f64| Some((0..n).map(|i| f(i as f64)).collect());
        FeatureStats {
            mean: v(|i| i),
            std: v(|i| 0.5 + i),
            min: v(|i| -2.0 - i),
            max: v(|i| 3.0 + i),
            q01: v(|i| -1.0 - i),
            q99: v(|i| 2.0 + i),
            q10: v(|i| -0.5 - i),
            q90: v(|i| 1.0 + i),
        }
    }

    fn build(
        layout: Layout,
        feature: Feature,
        stats: &FeatureStats,
        mode: NormMode,
        needed: usize,
    ) -> Result<Normalizer, NormalizeError> {
        let (state, action) = (stats.clone(), stats.clone());
        let (state_mode, action_mode, source) = (mode, mode, "a file".to_owned());
        let statistics = Statistics { state, action, state_mode, action_mode, eps: 1e-8, source };
        Normalizer::new(layout, feature, &statistics, mode, needed)
    }

    #[test]
    fn a_missing_statistic_is_named() {
        let stats = FeatureStats { q99: None, ..stats(3) };
        let error = build(Layout::OpenPi, Feature::State, &stats, NormMode::Quantiles, 3).unwrap_err();
        let line = error.to_string();
        assert!(line.contains("a file") && line.contains("`q99`") && line.contains("state"), "{line}");
        assert!(!line.contains('\n'));
    }

    #[test]
    fn short_statistics_are_refused_with_both_numbers() {
        for feature in [Feature::State, Feature::Action] {
            let error = build(Layout::OpenPi, feature, &stats(7), NormMode::MeanStd, 14).unwrap_err();
            let line = error.to_string();
            assert!(
                line.contains('7') && line.contains("14") && line.contains(&feature.to_string()),
                "{line}"
            );
        }
    }

    #[test]
    fn longer_statistics_are_cut_except_for_a_lerobot_state() {
        let mode = NormMode::Quantiles;
        let cut = build(Layout::OpenPi, Feature::State, &stats(32), mode, 3).unwrap();
        let exact = build(Layout::OpenPi, Feature::State, &stats(3), mode, 3).unwrap();
        assert_eq!(cut.normalize(&[0.1, 0.2, 0.3]), exact.normalize(&[0.1, 0.2, 0.3]));
        assert!(build(Layout::LeRobot, Feature::Action, &stats(32), mode, 3).is_ok());
        let error = build(Layout::LeRobot, Feature::State, &stats(32), mode, 3).unwrap_err();
        assert!(matches!(error, NormalizeError::Length { found: 32, needed: 3, .. }));
    }

    #[test]
    fn statistics_that_are_no_numbers_are_refused() {
        let mut stats = stats(3);
        stats.q01 = Some(vec![0.0, f64::NAN, 0.0]);
        let build = |needed| build(Layout::OpenPi, Feature::Action, &stats, NormMode::Quantiles, needed);
        assert!(matches!(build(3), Err(NormalizeError::NotFinite { index: 1, .. })));
        assert!(build(1).is_ok(), "values that no joint uses do no harm");
    }

    #[test]
    fn min_max_is_lerobots_alone() {
        let build = |layout| build(layout, Feature::State, &stats(2), NormMode::MinMax, 2);
        assert!(matches!(build(Layout::OpenPi), Err(NormalizeError::Unsupported { .. })));
        assert_eq!(build(Layout::LeRobot).unwrap().normalize(&[3.0, -3.0]), [1.0, -1.0]);
    }

    #[test]
    fn lerobot_replaces_only_an_empty_range() {
        let stats = FeatureStats { q01: Some(vec![1.0, 1.0]), q99: Some(vec![1.0, 3.0]), ..stats(2) };
        let n = build(Layout::LeRobot, Feature::State, &stats, NormMode::Quantiles, 2).unwrap();
        assert_eq!(n.normalize(&[1.0, 2.0]), [-1.0, 0.0]);
        let above = n.normalize(&[2.0, 2.0])[0];
        assert_eq!(above, f64::from(2.0_f32 / 1e-8_f32 - 1.0));
    }

    proptest! {
        #[test]
        fn unnormalize_is_the_way_back(x in prop::collection::vec(-10.0..10.0f64, 4), mode in 0..5usize, lerobot: bool) {
            use NormMode::*;
            let mode = [Quantiles, MeanStd, Identity, Quantile10, MinMax][mode];
            let layout = if lerobot { Layout::LeRobot } else { Layout::OpenPi };
            prop_assume!(lerobot || !matches!(mode, Quantile10 | MinMax));
            let n = build(layout, Feature::State, &stats(4), mode, 4).unwrap();
            for (back, x) in n.unnormalize(&n.normalize(&x)).iter().zip(&x) {
                prop_assert!((back - x).abs() < 1e-5, "{back} {x}");
            }
        }
    }
}
