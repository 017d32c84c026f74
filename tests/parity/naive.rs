//! π0.5 a second time, as plainly as it can be written: every loop in sight, one f32 added after the other, every
//! slot kept and masked with data, nothing cached. Follows the specification (tests and engine share no code), and
//! can be made wrong in each way that the recorded negative controls are.

use std::collections::BTreeMap;

use super::arrays::{Array, Arrays};

/// One way to get π0.5 wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Not wrong.
    None,
    /// An action token sees only the action tokens before it, and itself.
    CausalActionTokens,
    /// Prompt embeddings are not multiplied by √width.
    NoSqrtWidthOnLang,
    /// Image tokens are.
    SqrtWidthOnImages,
    /// Every slot counts as valid.
    MasksIgnored,
    /// Masked slots advance the positions.
    PrefixPositionsArange,
    /// `cumsum` counts from 0 whatever it sums: masked slots advance the positions, and the prefix becomes causal.
    CumsumIsArange,
    /// The time embedding's cosines stand before its sines.
    CosBeforeSin,
    /// Sub-layers of the expert are added without their gate.
    NoGate,
    /// The rotary embedding's half-turn swaps neighbours instead of halves.
    RopeInterleavedRotate,
    /// Both Gemmas use the exact GELU.
    ErfGeluGemma,
}

/// The network.
pub struct Naive {
    weights: BTreeMap<String, Weight>,
    vision_heads: usize,
    /// Shortest and longest period of the time embedding.
    periods: [f64; 2],
    mutation: Mutation,
}

struct Weight {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// One vector per token.
type Tokens = Vec<Vec<f32>>;

/// Keys and values of one layer.
struct Kv {
    k: Tokens,
    v: Tokens,
}

const VISION: &str = "paligemma_with_expert.paligemma.model.vision_tower.vision_model";
const PROJECTOR: &str = "paligemma_with_expert.paligemma.model.multi_modal_projector.linear";
const EMBEDDING: &str = "paligemma_with_expert.paligemma.lm_head.weight";
const LANGUAGE: &str = "paligemma_with_expert.paligemma.model.language_model";
const EXPERT: &str = "paligemma_with_expert.gemma_expert.model";
/// What the reference adds to the logits of masked slots.
const MASKED: f32 = -2.381_976_3e38;

/// The times of openpi's loop (accumulated in f32), or of LeRobot's.
pub fn times(steps: usize, lerobot: bool) -> Vec<f32> {
    let mut times = Vec::new();
    let mut t = 1f32;
    for k in 0..steps {
        times.push(if lerobot { (1.0 - k as f64 / steps as f64) as f32 } else { t });
        t += (-1.0 / steps as f64) as f32;
    }
    times
}

impl Naive {
    /// From tensors by openpi's names, the token embedding as `lm_head`.
    pub fn new(weights: &Arrays, vision_heads: usize) -> Self {
        let weight = |a: &Array| Weight { shape: a.shape.clone(), values: a.f32s() };
        let weights = weights.iter().map(|(name, array)| (name.clone(), weight(array))).collect();
        Self { weights, vision_heads, periods: [4e-3, 4.0], mutation: Mutation::None }
    }

    /// The same network, trained with another time embedding.
    pub fn with_periods(self, periods: [f64; 2]) -> Self {
        Self { periods, ..self }
    }

    /// The same network, computed wrongly.
    pub fn mutated(self, mutation: Mutation) -> Self {
        Self { mutation, ..self }
    }

    /// A whole case: the given inputs (`in.*`, `raw.*`) of these cameras, and everything computed from them.
    pub fn case(&self, given: &Arrays, cameras: &[&str], times: &[f32]) -> Arrays {
        let is_input = |key: &str| key.starts_with("in.") || key.starts_with("raw.");
        let mut case: Arrays = given.clone().into_iter().filter(|(key, _)| is_input(key)).collect();

        // The prefix: all cameras, masked or not, then all prompt slots.
        let mut embs = Tokens::new();
        let mut valid = Vec::new();
        for camera in cameras {
            let projected = self.image(&given[&format!("raw.image_u8.{camera}")].bytes);
            case.insert(format!("vision.projected.{camera}"), array(&[1], &projected));
            let is_there = given[&format!("in.image_mask.{camera}")].is_set()[0];
            valid.extend(vec![is_there; projected.len()]);
            embs.extend(projected);
        }
        let width = self.shape(EMBEDDING)[1];
        let root = (width as f32).sqrt();
        if self.mutation == Mutation::SqrtWidthOnImages {
            embs.iter_mut().flatten().for_each(|x| *x *= root);
        }
        let factor = if self.mutation == Mutation::NoSqrtWidthOnLang { 1.0 } else { root };
        let table = &self.weights[EMBEDDING].values;
        for token in given["in.tokens"].values() {
            let row = token as usize * width;
            embs.push(table[row..row + width].iter().map(|e| e * factor).collect());
        }
        valid.extend(given["in.token_mask"].is_set());
        case.insert("prefix.embs".into(), array(&[1], &embs));
        let slots = embs.len();
        case.insert("prefix.pad_mask".into(), Array::bits(&[1, slots], valid.clone()));
        if self.mutation == Mutation::MasksIgnored {
            valid = vec![true; slots];
        }

        let valid_slots = valid.iter().filter(|&&v| v).count();
        let mut positions = Vec::new();
        for slot in 0..slots {
            let before = valid[..=slot].iter().filter(|&&v| v).count() as i64 - 1;
            let skips = [Mutation::PrefixPositionsArange, Mutation::CumsumIsArange].contains(&self.mutation);
            positions.push(if skips { slot as i64 } else { before });
        }
        case.insert("prefix.position_ids".into(), Array::i64(&[1, slots], &positions));
        let is_causal = self.mutation == Mutation::CumsumIsArange;
        let sees = |i: usize, j: usize| valid[i] && valid[j] && (!is_causal || j <= i);
        let mask: Vec<Vec<bool>> = (0..slots).map(|i| (0..slots).map(|j| sees(i, j)).collect()).collect();
        case.insert("prefix.att_2d_mask".into(), Array::bits(&[1, slots, slots], mask.concat()));

        let mut x = embs;
        let mut cache = Vec::new();
        for i in 0..self.layers(LANGUAGE) {
            let kv =
                self.gemma_layer(&mut x, &format!("{LANGUAGE}.layers.{i}"), &positions, None, None, &mask);
            case.insert(format!("prefix.layer.{i}.out"), array(&[1], &x));
            case.insert(format!("prefix.kv.{i}.k"), array(&[1, 1], &kv.k));
            case.insert(format!("prefix.kv.{i}.v"), array(&[1, 1], &kv.v));
            cache.push(kv);
        }
        let final_norm = format!("{LANGUAGE}.norm");
        if self.weights.contains_key(&format!("{final_norm}.weight")) {
            case.insert("prefix.final_norm".into(), array(&[1], &self.rms_norm(&x, &final_norm, None).0));
        }

        // The denoise loop.
        let action_dim = *given["in.noise"].shape.last().unwrap();
        let mut x: Tokens = given["in.noise"].f32s().chunks(action_dim).map(<[f32]>::to_vec).collect();
        let horizon = x.len();
        let positions: Vec<i64> = (0..horizon).map(|i| (valid_slots + i) as i64).collect();
        case.insert("suffix.position_ids".into(), Array::i64(&[1, horizon], &positions));
        let is_causal = self.mutation == Mutation::CausalActionTokens;
        let row = |i| [valid.clone(), (0..horizon).map(|j| !is_causal || j <= i).collect()].concat();
        let mask: Vec<Vec<bool>> = (0..horizon).map(row).collect();
        case.insert("suffix.att_2d_mask".into(), Array::bits(&[1, horizon, slots + horizon], mask.concat()));
        case.insert("times".into(), Array::f32(&[times.len()], times));
        let dt = (-1.0 / times.len() as f64) as f32;
        for (step, &t) in times.iter().enumerate() {
            case.insert(format!("step.{step}.x_t"), array(&[1], &x));
            let (sincos, cond) = self.time_condition(t);
            let mut h = self.linear(&x, "action_in_proj");
            if step == 0 {
                case.insert("suffix.embs".into(), array(&[1], &h));
            }
            for (i, past) in cache.iter().enumerate() {
                let at = format!("{EXPERT}.layers.{i}");
                self.gemma_layer(&mut h, &at, &positions, Some(&cond), Some(past), &mask);
                if step == 0 {
                    case.insert(format!("suffix.layer.{i}.out"), array(&[1], &h));
                }
            }
            let h = self.rms_norm(&h, &format!("{EXPERT}.norm"), Some(&cond)).0;
            if step == 0 {
                case.insert("suffix.final_norm".into(), array(&[1], &h));
            }
            let v = self.linear(&h, "action_out_proj");
            for (x, v) in x.iter_mut().flatten().zip(v.iter().flatten()) {
                *x += dt * v;
            }
            case.insert(format!("step.{step}.v_t"), array(&[1], &v));
            case.insert(format!("step.{step}.time_sincos"), array(&[], &vec![sincos]));
            case.insert(format!("step.{step}.adarms_cond"), array(&[], &vec![cond]));
        }
        case.insert("actions".into(), array(&[1], &x));
        case
    }

    /// SigLIP and the projector, from `[side, side, 3]` bytes.
    fn image(&self, pixels: &[u8]) -> Tokens {
        let patch = self.shape(&format!("{VISION}.embeddings.patch_embedding.weight"))[3];
        let position = &self.weights[&format!("{VISION}.embeddings.position_embedding.weight")];
        let grid = (1..).find(|side| side * side >= position.shape[0]).unwrap();
        let side = grid * patch;
        assert_eq!(pixels.len(), side * side * 3);
        let mut patches = Tokens::new();
        for row in 0..grid {
            for column in 0..grid {
                let mut values = Vec::new();
                for channel in 0..3 {
                    for i in 0..patch {
                        for j in 0..patch {
                            let (y, x) = (row * patch + i, column * patch + j);
                            values.push(f32::from(pixels[(y * side + x) * 3 + channel]) / 255.0 * 2.0 - 1.0);
                        }
                    }
                }
                patches.push(values);
            }
        }
        let mut x = self.linear(&patches, &format!("{VISION}.embeddings.patch_embedding"));
        for (x, p) in x.iter_mut().flatten().zip(&position.values) {
            *x += p;
        }
        let everything = vec![vec![true; x.len()]; x.len()];
        for i in 0..self.layers(&format!("{VISION}.encoder")) {
            let at = format!("{VISION}.encoder.layers.{i}");
            let h = self.layer_norm(&x, &format!("{at}.layer_norm1"));
            let [q, k, v] = ["q", "k", "v"].map(|n| self.linear(&h, &format!("{at}.self_attn.{n}_proj")));
            let mixed = attention(&q, &k, &v, self.vision_heads, self.vision_heads, &everything);
            add(&mut x, &self.linear(&mixed, &format!("{at}.self_attn.out_proj")), None);
            let h = self.layer_norm(&x, &format!("{at}.layer_norm2"));
            let mut hidden = self.linear(&h, &format!("{at}.mlp.fc1"));
            hidden.iter_mut().flatten().for_each(|x| *x = gelu_tanh(*x));
            add(&mut x, &self.linear(&hidden, &format!("{at}.mlp.fc2")), None);
        }
        self.linear(&self.layer_norm(&x, &format!("{VISION}.post_layernorm")), PROJECTOR)
    }

    /// One decoder block, in place; gives the tokens' own keys and values. `cond` makes it the expert's.
    fn gemma_layer(
        &self,
        x: &mut Tokens,
        at: &str,
        positions: &[i64],
        cond: Option<&Vec<f32>>,
        past: Option<&Kv>,
        mask: &[Vec<bool>],
    ) -> Kv {
        let (h, gate) = self.rms_norm(x, &format!("{at}.input_layernorm"), cond);
        let [mut q, mut k, v] = ["q", "k", "v"].map(|n| self.linear(&h, &format!("{at}.self_attn.{n}_proj")));
        let heads = q[0].len() / k[0].len();
        self.rope(&mut q, heads, positions);
        self.rope(&mut k, 1, positions);
        let (mut all_k, mut all_v) = (k.clone(), v.clone());
        if let Some(past) = past {
            all_k = [past.k.clone(), all_k].concat();
            all_v = [past.v.clone(), all_v].concat();
        }
        let mixed = attention(&q, &all_k, &all_v, heads, 1, mask);
        add(x, &self.linear(&mixed, &format!("{at}.self_attn.o_proj")), gate.as_ref());

        let (h, gate) = self.rms_norm(x, &format!("{at}.post_attention_layernorm"), cond);
        let mut hidden = self.linear(&h, &format!("{at}.mlp.gate_proj"));
        let up = self.linear(&h, &format!("{at}.mlp.up_proj"));
        for (hidden, up) in hidden.iter_mut().flatten().zip(up.iter().flatten()) {
            let is_erf = self.mutation == Mutation::ErfGeluGemma;
            *hidden = if is_erf { gelu_erf(*hidden) } else { gelu_tanh(*hidden) } * up;
        }
        add(x, &self.linear(&hidden, &format!("{at}.mlp.down_proj")), gate.as_ref());
        Kv { k, v }
    }

    /// RMSNorm, or adaRMS where there is a `cond`, which also makes the gate.
    fn rms_norm(&self, x: &Tokens, name: &str, cond: Option<&Vec<f32>>) -> (Tokens, Option<Vec<f32>>) {
        let width = x[0].len();
        let (scale, shift, gate) = match cond {
            None => (self.values(&format!("{name}.weight")).to_vec(), vec![0.0; width], None),
            Some(cond) => {
                let modulation = &self.linear(&vec![cond.clone()], &format!("{name}.dense"))[0];
                let part = |i: usize| modulation[i * width..(i + 1) * width].to_vec();
                let gate = if self.mutation == Mutation::NoGate { vec![1.0; width] } else { part(2) };
                (part(0), part(1), Some(gate))
            }
        };
        let norm = |x: &Vec<f32>| {
            let mean_square = x.iter().map(|x| x * x).sum::<f32>() / width as f32;
            let inverse = 1.0 / (mean_square + 1e-6).sqrt();
            (0..width).map(|i| x[i] * inverse * (1.0 + scale[i]) + shift[i]).collect()
        };
        (x.iter().map(norm).collect(), gate)
    }

    fn layer_norm(&self, x: &Tokens, name: &str) -> Tokens {
        let weight = self.values(&format!("{name}.weight"));
        let bias = self.values(&format!("{name}.bias"));
        let norm = |x: &Vec<f32>| {
            let mean = x.iter().sum::<f32>() / x.len() as f32;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / x.len() as f32;
            (0..x.len()).map(|i| (x[i] - mean) / (variance + 1e-6).sqrt() * weight[i] + bias[i]).collect()
        };
        x.iter().map(norm).collect()
    }

    /// Rotates every head of every token by the token's position.
    fn rope(&self, x: &mut Tokens, heads: usize, positions: &[i64]) {
        let head_dim = x[0].len() / heads;
        let half = head_dim / 2;
        for (token, &position) in x.iter_mut().zip(positions) {
            for head in token.chunks_mut(head_dim) {
                let old = head.to_vec();
                for d in 0..head_dim {
                    let frequency = 1.0 / 10_000f32.powf((2 * (d % half)) as f32 / head_dim as f32);
                    let angle = position as f32 * frequency;
                    let turned = match self.mutation {
                        Mutation::RopeInterleavedRotate if d % 2 == 0 => -old[d + 1],
                        Mutation::RopeInterleavedRotate => old[d - 1],
                        _ if d < half => -old[d + half],
                        _ => old[d - half],
                    };
                    head[d] = old[d] * angle.cos() + turned * angle.sin();
                }
            }
        }
    }

    /// The sines and cosines of a time, and what the expert's norms are made from.
    fn time_condition(&self, t: f32) -> (Vec<f32>, Vec<f32>) {
        let half = self.shape("action_in_proj.weight")[0] / 2;
        let (mut sin, mut cos) = (Vec::new(), Vec::new());
        for j in 0..half {
            let [min, max] = self.periods;
            let period = min * (max / min).powf(j as f64 / (half - 1) as f64);
            let angle = f64::from(t) * (1.0 / period * 2.0 * std::f64::consts::PI);
            sin.push(angle.sin() as f32);
            cos.push(angle.cos() as f32);
        }
        let sincos = match self.mutation {
            Mutation::CosBeforeSin => [cos, sin].concat(),
            _ => [sin, cos].concat(),
        };
        let silu = |x: Tokens| -> Tokens { vec![x[0].iter().map(|x| x / (1.0 + (-x).exp())).collect()] };
        let hidden = silu(self.linear(&vec![sincos.clone()], "time_mlp_in"));
        let cond = silu(self.linear(&hidden, "time_mlp_out")).remove(0);
        (sincos, cond)
    }

    /// `x Wᵀ + b`
    fn linear(&self, x: &Tokens, name: &str) -> Tokens {
        let weight = &self.weights[&format!("{name}.weight")];
        let inputs = weight.shape[1..].iter().product::<usize>();
        let bias = self.weights.get(&format!("{name}.bias"));
        let mut y = Tokens::new();
        for x in x {
            assert_eq!(x.len(), inputs, "{name}");
            let mut row = Vec::new();
            for (o, weights) in weight.values.chunks(inputs).enumerate() {
                let mut sum = 0.0;
                for (x, w) in x.iter().zip(weights) {
                    sum += x * w;
                }
                row.push(sum + bias.map_or(0.0, |bias| bias.values[o]));
            }
            y.push(row);
        }
        y
    }

    fn shape(&self, name: &str) -> &[usize] {
        &self.weights[name].shape
    }

    fn values(&self, name: &str) -> &[f32] {
        &self.weights[name].values
    }

    /// How many layers there are below a name.
    fn layers(&self, at: &str) -> usize {
        let has = |i: &usize| self.weights.contains_key(&format!("{at}.layers.{i}.self_attn.q_proj.weight"));
        (0..).take_while(has).count()
    }
}

/// Attention of `heads` queries per token to `kv_heads` keys and values per token, under a mask of data.
fn attention(
    q: &Tokens,
    k: &Tokens,
    v: &Tokens,
    heads: usize,
    kv_heads: usize,
    mask: &[Vec<bool>],
) -> Tokens {
    let head_dim = q[0].len() / heads;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut mixed = vec![vec![0.0; heads * head_dim]; q.len()];
    for i in 0..q.len() {
        for head in 0..heads {
            let (own, shared) = (head * head_dim, head * kv_heads / heads * head_dim);
            let mut weights = Vec::new();
            for j in 0..k.len() {
                let mut dot = 0.0;
                for d in 0..head_dim {
                    dot += q[i][own + d] * k[j][shared + d];
                }
                weights.push(dot * scale + if mask[i][j] { 0.0 } else { MASKED });
            }
            let largest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            weights.iter_mut().for_each(|w| *w = (*w - largest).exp());
            let sum: f32 = weights.iter().sum();
            for (j, weight) in weights.iter().enumerate() {
                for d in 0..head_dim {
                    mixed[i][own + d] += weight / sum * v[j][shared + d];
                }
            }
        }
    }
    mixed
}

/// `x + gate * y`, the gate per channel.
fn add(x: &mut Tokens, y: &Tokens, gate: Option<&Vec<f32>>) {
    for (x, y) in x.iter_mut().zip(y) {
        for i in 0..x.len() {
            x[i] += y[i] * gate.map_or(1.0, |gate| gate[i]);
        }
    }
}

fn gelu_tanh(x: f32) -> f32 {
    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

fn gelu_erf(x: f32) -> f32 {
    (0.5 * f64::from(x) * (1.0 + erf(f64::from(x) / 2f64.sqrt()))) as f32
}

/// The error function by its power series, to 1e-9.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.5 {
        return x.signum();
    }
    let (mut power, mut sum) = (x, 0.0); // ± x^(2n+1) / n!
    for n in 0..120 {
        sum += power / f64::from(2 * n + 1);
        power *= -x * x / f64::from(n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// Tokens as a tensor, with dimensions of 1 before them.
fn array(leading: &[usize], tokens: &Tokens) -> Array {
    Array::f32(&[leading, &[tokens.len(), tokens[0].len()]].concat(), &tokens.concat())
}
