//! What fp8 must know of the activations that it rounds, by the tensor's name: ranges, as [`Ranges`] sees them through a tap,
//! and means before and after rounding, as [`Means`] does.
//!
//! Rounding shifts a product's output: most of its error is the same for every token. The mean shift is W m - W' m', with
//! rounded weights W' and the means m and m' of the activation before and after rounding, and engines add it to the bias.

use std::collections::BTreeMap;

use thiserror::Error;

use super::probe::Probe;

/// Parts of a layer that a matrix of the prefix multiplies: q, k and v; o; gate and up; down.
pub const PREFIX: [&str; 4] = ["input_layernorm", "attention", "post_attention_layernorm", "hidden"];
/// The same of vision: q, k and v; out; fc1; fc2.
pub const VISION: [&str; 4] = ["layer_norm1", "attention", "layer_norm2", "hidden"];

/// The largest e4m3 number.
pub const E4M3_MAX: f32 = 448.0;
/// How far beyond its calibrated range a value may go before it is cut: e4m3 is as precise at 1/8 of its range as at its
/// end.
const HEADROOM: f32 = 8.0;

/// Nearest e4m3 number, ties to even: three bits after the point, steps of 2⁻⁹ below 2⁻⁶, at most 448.
pub fn e4m3(x: f32) -> f32 {
    let x = x.clamp(-E4M3_MAX, E4M3_MAX);
    let power = f32::from_bits(x.abs().max(1.0 / 64.0).to_bits() & 0x7f80_0000);
    // The last digit of a number so much larger is the step: adding it rounds, taking it away leaves the rounded one.
    let large = power * (1.5 * (1 << 20) as f32);
    (x + large) - large
}

/// What fp8 must know: of each tensor the magnitude that few of its values exceed; and its means.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration {
    ranges: BTreeMap<String, f32>,
    means: BTreeMap<String, Mean>,
}

/// The mean of a tensor over tokens, by channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mean {
    /// Of its values.
    pub exact: Vec<f32>,
    /// Of its values rounded to e4m3.
    pub rounded: Vec<f32>,
}

/// How a tensor is rounded.
#[derive(Clone, Debug)]
pub struct Rounded {
    /// What its e4m3 numbers are multiples of.
    pub scale: f32,
    /// Its mean, if that is known.
    pub mean: Option<Mean>,
}

/// A tensor whose range is not known.
#[derive(Debug, Error)]
#[error("calibration: {0} is missing: run `pi05 calibrate` on this checkpoint")]
pub struct Uncalibrated(pub String);

impl Calibration {
    /// Ranges by name, finite and above zero: `vision.layer.{i}.…`, `prefix.layer.{i}.…`.
    pub fn from_ranges(ranges: impl IntoIterator<Item = (String, f32)>) -> Self {
        Self { ranges: ranges.into_iter().collect(), means: BTreeMap::new() }
    }

    /// The same with means by name.
    pub fn with_means(self, means: BTreeMap<String, Mean>) -> Self {
        Self { means, ..self }
    }

    /// All means.
    pub fn means(&self) -> &BTreeMap<String, Mean> {
        &self.means
    }

    /// All ranges.
    pub fn ranges(&self) -> &BTreeMap<String, f32> {
        &self.ranges
    }

    /// The range of a tensor: finite and above zero.
    pub fn range(&self, name: &str) -> Result<f32, Uncalibrated> {
        let range = self.ranges.get(name).copied().filter(|range| range.is_finite() && *range > 0.0);
        range.ok_or_else(|| Uncalibrated(format!("the range of {name}")))
    }

    /// What e4m3 numbers of a tensor are multiples of: the largest one is some way beyond its range.
    pub fn scale(&self, name: &str) -> Result<f32, Uncalibrated> {
        Ok(self.range(name)? * HEADROOM / E4M3_MAX)
    }

    /// How engines are to round a tensor; `None`: it stays as it is.
    pub fn chosen(&self, name: &str) -> Option<Rounded> {
        let mean = self.means.get(name).cloned();
        self.scale(name).ok().map(|scale| Rounded { scale, mean })
    }

    /// Of these tensors only, all of which must be known.
    pub fn only<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Self, Uncalibrated> {
        let known = |name: &str| Ok((name.to_owned(), self.range(name)?));
        let ranges: BTreeMap<_, _> = names.into_iter().map(known).collect::<Result<_, _>>()?;
        let means = self.means.iter().filter(|(name, _)| ranges.contains_key(*name));
        Ok(Self { means: means.map(|(name, mean)| (name.clone(), mean.clone())).collect(), ranges })
    }
}

/// The e4m3 scale of each row of a weight matrix: its largest magnitude / 448; of a row of zeros, 1.
pub fn row_scales(values: &[f32], rows: usize) -> Vec<f32> {
    let largest = |row: &[f32]| row.iter().fold(0f32, |max, x| max.max(x.abs()));
    let scale = |largest: f32| if largest > 0.0 { largest / E4M3_MAX } else { 1.0 };
    values.chunks_exact((values.len() / rows.max(1)).max(1)).map(|row| scale(largest(row))).collect()
}

/// A probe that measures ranges: of all tensors that matrices of vision and prefix multiply, the largest of the
/// percentiles of the inferences seen.
#[derive(Debug)]
pub struct Ranges {
    /// Share of a tensor's magnitudes that its range covers, 0 to 1.
    share: f64,
    ranges: BTreeMap<String, f32>,
    scratch: Vec<f32>,
}

impl Ranges {
    /// `percentile`: 0 to 100.
    pub fn new(percentile: f64) -> Self {
        Self { share: percentile / 100.0, ranges: BTreeMap::new(), scratch: Vec::new() }
    }

    /// What was measured.
    pub fn calibration(self) -> Calibration {
        Calibration { ranges: self.ranges, means: BTreeMap::new() }
    }
}

/// The tensor that a report is about: vision reports per camera.
fn tensor(name: &str) -> Option<&str> {
    let ends = |name: &str, parts: &[&str]| parts.iter().any(|part| name.ends_with(&format!(".{part}")));
    if name.starts_with("prefix.layer.") {
        return Some(name).filter(|name| ends(name, &PREFIX));
    }
    if name.starts_with("vision.post_layernorm.") {
        return Some("vision.post_layernorm");
    }
    let (name, _camera) = name.strip_prefix("vision.layer.").and(name.rsplit_once('.'))?;
    Some(name).filter(|name| ends(name, &VISION))
}

impl Probe for Ranges {
    fn wants(&self, name: &str) -> bool {
        tensor(name).is_some()
    }

    fn record(&mut self, name: &str, data: &[f32]) {
        let Some(tensor) = tensor(name).filter(|_| !data.is_empty()) else { return };
        self.scratch.clear();
        self.scratch.extend(data.iter().map(|x| x.abs()));
        let last = self.scratch.len() - 1;
        let rank = ((last as f64 * self.share).ceil() as usize).min(last);
        let (_, &mut range, above) = self.scratch.select_nth_unstable_by(rank, f32::total_cmp);
        // NaN and infinity are the largest: where there is one, the few that a range leaves out are not just large.
        let is_finite = range.is_finite() && above.iter().all(|x| x.is_finite());
        let known = self.ranges.entry(tensor.to_owned()).or_default();
        *known = if is_finite && !known.is_nan() { known.max(range) } else { f32::NAN };
    }
}

/// A probe that measures means of the tensors that a calibration knows.
pub struct Means<'a> {
    calibration: &'a Calibration,
    /// By name: tokens, and sums before and after rounding by channel.
    sums: BTreeMap<String, (f64, [Vec<f64>; 2])>,
    width: &'a dyn Fn(&str) -> usize,
}

impl<'a> Means<'a> {
    /// `width`: channels of a tensor.
    pub fn new(calibration: &'a Calibration, width: &'a dyn Fn(&str) -> usize) -> Self {
        Self { calibration, sums: BTreeMap::new(), width }
    }

    /// What was measured.
    pub fn means(self) -> BTreeMap<String, Mean> {
        let of = |sums: &[f64], tokens: f64| sums.iter().map(|sum| (sum / tokens) as f32).collect();
        let mean = |(name, (tokens, [exact, rounded])): (String, (f64, [Vec<f64>; 2]))| {
            (name, Mean { exact: of(&exact, tokens), rounded: of(&rounded, tokens) })
        };
        self.sums.into_iter().map(mean).collect()
    }
}

impl Probe for Means<'_> {
    fn wants(&self, name: &str) -> bool {
        tensor(name).is_some_and(|tensor| self.calibration.range(tensor).is_ok())
    }

    fn record(&mut self, name: &str, data: &[f32]) {
        let Some(tensor) = tensor(name) else { return };
        let Ok(scale) = self.calibration.scale(tensor) else { return };
        let width = (self.width)(tensor);
        let empty = || (0.0, [vec![0.0; width], vec![0.0; width]]);
        let (tokens, [exact, rounded]) = self.sums.entry(tensor.to_owned()).or_insert_with(empty);
        let inverse = 1.0 / scale;
        for row in data.chunks_exact(width) {
            *tokens += 1.0;
            for ((x, exact), rounded) in row.iter().zip(exact.iter_mut()).zip(rounded.iter_mut()) {
                *exact += f64::from(*x);
                *rounded += f64::from(e4m3(x * inverse) * scale);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_of_all_e4m3_numbers_is_taken() {
        let value = |bits: u32| {
            let (exponent, digits) = (bits >> 3, f64::from(bits & 7));
            let power = f64::from(exponent.max(1)) - 7.0;
            ((digits + if exponent == 0 { 0.0 } else { 8.0 }) / 8.0 * power.exp2()) as f32
        };
        let all: Vec<f32> = (0..127).map(value).collect(); // 127 is NaN
        assert_eq!(all.last(), Some(&E4M3_MAX));
        for pair in all.windows(2) {
            let (low, high) = (pair[0], pair[1]);
            let middle = (low + high) / 2.0; // exact
            let even = if ((low / (high - low)) as u32).is_multiple_of(2) { low } else { high };
            for sign in [1.0, -1.0] {
                assert_eq!(e4m3(sign * low), sign * low);
                assert_eq!(e4m3(sign * middle), sign * even, "{middle}");
                assert_eq!(e4m3(sign * middle.next_down()), sign * low, "{middle}");
                assert_eq!(e4m3(sign * middle.next_up()), sign * high, "{middle}");
            }
        }
        assert_eq!((e4m3(1e30), e4m3(-460.0), e4m3(1e-9)), (E4M3_MAX, -E4M3_MAX, 0.0));
        assert!(e4m3(f32::NAN).is_nan());
    }

    #[test]
    fn a_range_covers_the_share_asked_for_over_all_cameras_and_inferences() {
        let mut ranges = Ranges::new(90.0);
        let values: Vec<f32> = (0..=100).map(|i| -(i as f32)).collect();
        ranges.record("vision.layer.3.layer_norm1.0", &values);
        ranges.record("vision.layer.3.layer_norm1.2", &[95.0]);
        ranges.record("prefix.layer.0.hidden", &values);
        ranges.record("prefix.layer.0.out", &values);
        let calibration = ranges.calibration();
        assert_eq!(calibration.range("vision.layer.3.layer_norm1").ok(), Some(95.0));
        assert_eq!(calibration.range("prefix.layer.0.hidden").ok(), Some(90.0));
        assert_eq!(calibration.ranges().len(), 2);
        assert!(calibration.range("prefix.layer.1.hidden").is_err());
    }

    #[test]
    fn what_is_no_number_is_not_left_out_of_a_range() {
        for wrong in [f32::NAN, f32::INFINITY] {
            let mut ranges = Ranges::new(50.0);
            ranges.record("prefix.layer.0.hidden", &[1.0, 2.0, wrong]);
            ranges.record("prefix.layer.0.hidden", &[1.0, 2.0, 3.0]);
            assert!(ranges.calibration().ranges()["prefix.layer.0.hidden"].is_nan());
        }
    }
}
