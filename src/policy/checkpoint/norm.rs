//! What both layouts ask of the statistics of one feature before they are used.

use std::path::Path;

use super::error::CheckpointError;
use crate::policy::statistics::FeatureStats;

/// The names of the statistics, as both layouts write them, with their places.
pub(super) fn by_name(stats: &FeatureStats) -> [(&'static str, &Option<Vec<f64>>); 8] {
    let FeatureStats { mean, std, min, max, q01, q99, q10, q90 } = stats;
    [
        ("mean", mean),
        ("std", std),
        ("min", min),
        ("max", max),
        ("q01", q01),
        ("q99", q99),
        ("q10", q10),
        ("q90", q90),
    ]
}

/// As [`by_name`], to be filled.
pub(super) fn by_name_mut(stats: &mut FeatureStats) -> [(&'static str, &mut Option<Vec<f64>>); 8] {
    let FeatureStats { mean, std, min, max, q01, q99, q10, q90 } = stats;
    [
        ("mean", mean),
        ("std", std),
        ("min", min),
        ("max", max),
        ("q01", q01),
        ("q99", q99),
        ("q10", q10),
        ("q90", q90),
    ]
}

/// The statistics that are there, and how many numbers each has.
pub(super) fn lengths(stats: &FeatureStats) -> impl Iterator<Item = (&'static str, usize)> {
    by_name(stats).into_iter().filter_map(|(stat, values)| Some((stat, values.as_ref()?.len())))
}

/// Refuses statistics that no normalisation can compute with: none at all in a vector, vectors of different lengths,
/// numbers that are not finite. A range that runs backwards is computed with as the references do, and noted. Which
/// vectors are needed is for the normalisation to say: the parameters may choose another than the checkpoint's.
pub(super) fn check(
    file: &Path,
    feature: &str,
    stats: &FeatureStats,
    notes: &mut Vec<String>,
) -> Result<(), CheckpointError> {
    let wrong = |stat: &str, expected: String, found: String| {
        Err(CheckpointError::Key { file: file.to_owned(), key: format!("{feature}.{stat}"), expected, found })
    };
    let mut first: Option<(&str, usize)> = None;
    for (stat, values) in by_name(stats) {
        let Some(values) = values else { continue };
        if let Some(i) = values.iter().position(|x| !x.is_finite()) {
            return wrong(&format!("{stat}[{i}]"), "a finite number".into(), values[i].to_string());
        }
        let (other, len) = *first.get_or_insert((stat, values.len().max(1)));
        if values.len() != len {
            let expected =
                if other == stat { "at least 1".into() } else { format!("{len} numbers as in {other}") };
            return wrong(stat, expected, values.len().to_string());
        }
    }
    let FeatureStats { min, max, q01, q99, q10, q90, .. } = stats;
    for (low, lows, high, highs) in
        [("q01", q01, "q99", q99), ("q10", q10, "q90", q90), ("min", min, "max", max)]
    {
        if let (Some(lows), Some(highs)) = (lows, highs)
            && let Some(i) = lows.iter().zip(highs).position(|(l, h)| l > h)
        {
            notes.push(format!("{feature}: {low}[{i}] = {} lies above {high}[{i}] = {}", lows[i], highs[i]));
        }
    }
    Ok(())
}
