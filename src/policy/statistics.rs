//! Statistics of one feature (state or action), as a checkpoint's side files give them. No arithmetic here.

/// One vector per statistic that the side files carry; all present vectors have the same length.
/// Kept in f64: openpi computes with them in f64, LeRobot's were f32 and survive the round trip exactly.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeatureStats {
    /// Mean.
    pub mean: Option<Vec<f64>>,
    /// Standard deviation.
    pub std: Option<Vec<f64>>,
    /// Minimum.
    pub min: Option<Vec<f64>>,
    /// Maximum.
    pub max: Option<Vec<f64>>,
    /// 1st percentile.
    pub q01: Option<Vec<f64>>,
    /// 99th percentile.
    pub q99: Option<Vec<f64>>,
    /// 10th percentile.
    pub q10: Option<Vec<f64>>,
    /// 90th percentile.
    pub q90: Option<Vec<f64>>,
}

/// How a feature is normalised (spec/PI05.md §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormMode {
    /// q01 .. q99 to -1 .. 1.
    Quantiles,
    /// q10 .. q90 to -1 .. 1 (LeRobot).
    Quantile10,
    /// Minimum .. maximum to -1 .. 1 (LeRobot).
    MinMax,
    /// Zero mean, unit deviation.
    MeanStd,
    /// Left alone.
    Identity,
}

/// Statistics and modes of both features.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Of the robot's state.
    pub state: FeatureStats,
    /// Of the actions.
    pub action: FeatureStats,
    /// How the state is normalised.
    pub state_mode: NormMode,
    /// How actions are unnormalised.
    pub action_mode: NormMode,
    /// LeRobot's epsilon (`eps` of its processors, 1e-8 unless said otherwise); openpi always uses 1e-6.
    pub eps: f64,
    /// Where they were read from, for a person.
    pub source: String,
}

impl Statistics {
    /// Statistics that change nothing (but for openpi's epsilon), for built-in networks.
    pub fn unit(state_len: usize, action_len: usize) -> Self {
        let unit = |n: usize| FeatureStats {
            mean: Some(vec![0.0; n]),
            std: Some(vec![1.0; n]),
            q01: Some(vec![-1.0; n]),
            q99: Some(vec![1.0; n]),
            ..FeatureStats::default()
        };
        Self {
            state: unit(state_len),
            action: unit(action_len),
            state_mode: NormMode::Quantiles,
            action_mode: NormMode::Quantiles,
            eps: 1e-8,
            source: "built-in statistics".to_owned(),
        }
    }
}
