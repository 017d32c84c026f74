//! What rounding to e4m3 adds, layer by layer: each layer of an engine that rounds, fed with what the same layer of one that
//! does not was fed with. Both on the CPU, so that no GPU is needed. Called by `pi05 calibrate` and `pi05 quantize-report`.

use std::collections::{BTreeMap, HashMap};

use crate::engine::EngineError;
use crate::engine::cpu::CpuEngine;
use crate::engine::probe::{Probe, Tap};
use crate::model::ModelInput;

/// The relative mean square error of each layer's output with that layer in `rounded`, by name: `vision.layer.3`; of the
/// prefix's last layer, of its keys and values. `progress` hears of each layer.
pub fn layer_errors(
    plain: &mut CpuEngine,
    rounded: &mut CpuEngine,
    input: &ModelInput,
    progress: impl FnMut(),
) -> Result<BTreeMap<String, f32>, EngineError> {
    let last = plain.dims().language.layers.saturating_sub(1).to_string();
    let mut layers = Layers { rounded, last, progress, before: HashMap::new(), sums: BTreeMap::new() };
    let features = plain.vision(&input.images, &mut Tap::new(&mut layers))?;
    plain.prefix(&features, &input.tokens, &mut Tap::new(&mut layers))?;
    Ok(layers.sums.into_iter().map(|(name, [wrong, all])| (name, (wrong / all) as f32)).collect())
}

/// `found` less `expected`, squared, over `expected` squared: two sums.
pub fn squares(found: &[f32], expected: &[f32]) -> [f64; 2] {
    found.iter().zip(expected).fold([0.0; 2], |[wrong, all], (&found, &expected)| {
        let difference = f64::from(found) - f64::from(expected);
        [wrong + difference * difference, all + f64::from(expected) * f64::from(expected)]
    })
}

struct Layers<'a, P> {
    rounded: &'a mut CpuEngine,
    /// Number of the prefix's last layer.
    last: String,
    progress: P,
    /// The residual stream before the layer: of each camera, or of the prefix; and the last layer's keys.
    before: HashMap<String, Vec<f32>>,
    sums: BTreeMap<String, [f64; 2]>,
}

impl<P: FnMut()> Probe for Layers<'_, P> {
    fn wants(&self, name: &str) -> bool {
        // More of the last layer than keys and values would be computed for us alone.
        let parts: Vec<&str> = name.split('.').collect();
        match parts[..] {
            ["vision", "embeddings", _] | ["vision", "layer", _, "out", _] | ["prefix", "embs"] => true,
            ["prefix", "layer", i, "out"] => i != self.last,
            ["prefix", "kv", i, "k" | "v"] => i == self.last,
            _ => false,
        }
    }

    fn record(&mut self, name: &str, data: &[f32]) {
        if !self.wants(name) {
            return;
        }
        let parts: Vec<&str> = name.split('.').collect();
        let (stage, i, stream, out) = match parts[..] {
            ["vision", "embeddings", slot] => return self.keep(slot, data.to_vec()),
            ["prefix", "embs"] => return self.keep("prefix", data.to_vec()),
            ["prefix", "kv", _, "k"] => return self.keep("keys", data.to_vec()),
            ["vision", "layer", i, "out", slot] => ("vision", i, slot, data.to_vec()),
            ["prefix", "layer", i, "out"] => ("prefix", i, "prefix", data.to_vec()),
            _ => ("prefix", parts[2], "prefix", [&self.before["keys"], data].concat()),
        };
        let (Some(mut x), Ok(i)) = (self.before.remove(stream), i.parse()) else { return };
        match stage {
            "vision" => self.rounded.vision_layer(i, &mut x),
            _ => self.rounded.prefix_layer(i, &mut x),
        }
        let [wrong, all] = squares(&x, &out);
        let sums = self.sums.entry(format!("{stage}.layer.{i}")).or_default();
        *sums = [sums[0] + wrong, sums[1] + all];
        self.keep(stream, out);
        (self.progress)();
    }
}

impl<P> Layers<'_, P> {
    fn keep(&mut self, stream: &str, x: Vec<f32>) {
        self.before.insert(stream.to_owned(), x);
    }
}
