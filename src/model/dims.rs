//! The network's dimensions: read off tensor shapes and checked against each other, or one of the built-in two.

use std::collections::BTreeSet;

use thiserror::Error;

use super::names::{EXPERT, LANGUAGE, VISION, required};
use super::tensors::{LM_HEAD, TOKEN_EMBEDDING, TensorEntry, TensorTable};

/// SigLIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VisionDims {
    /// Side of the input image, pixels.
    pub image: usize,
    /// Side of a patch, pixels.
    pub patch: usize,
    /// Hidden width.
    pub width: usize,
    /// Encoder blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Hidden width of the MLP.
    pub mlp: usize,
}

impl VisionDims {
    /// Tokens per image.
    pub fn tokens(&self) -> usize {
        (self.image / self.patch) * (self.image / self.patch)
    }
}

/// A Gemma: the prefix model or the action expert. One K/V head, shared by all query heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmaDims {
    /// Hidden width.
    pub width: usize,
    /// Decoder blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Hidden width of the MLP.
    pub mlp: usize,
}

impl GemmaDims {
    /// `heads * head_dim`; differs from `width` in the expert.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// Ends of the range of periods in the time embedding (spec/PI05.md §6).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Periods {
    /// Of the first sine and cosine.
    pub min: f64,
    /// Of the last ones.
    pub max: f64,
}

impl Periods {
    /// openpi's, and LeRobot's defaults.
    pub const OFFICIAL: Periods = Periods { min: 4e-3, max: 4.0 };
}

/// All dimensions of one π0.5 network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dims {
    /// SigLIP.
    pub vision: VisionDims,
    /// Gemma-2B, the prefix model.
    pub language: GemmaDims,
    /// The action expert.
    pub expert: GemmaDims,
    /// Rows of the token embedding.
    pub vocab: usize,
    /// Values per action in the model (32 in official checkpoints).
    pub action_dim: usize,
    /// Actions per chunk.
    pub horizon: usize,
    /// Prompt slots; longer prompts are truncated.
    pub max_tokens: usize,
    /// Of the time embedding.
    pub periods: Periods,
}

/// How much one inference has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Cameras that are not masked.
    pub cameras: usize,
    /// Valid prompt tokens.
    pub tokens: usize,
    /// Actions.
    pub horizon: usize,
    /// Velocity evaluations.
    pub steps: usize,
}

/// What shapes cannot tell; `None` takes the official value.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DimsHints {
    /// SigLIP's heads. Default: heads of 72, as in So400m.
    pub vision_heads: Option<usize>,
    /// Actions per chunk. Default 50.
    pub horizon: Option<usize>,
    /// Prompt slots. Default 200.
    pub max_tokens: Option<usize>,
    /// Values per action; must agree with the tensors.
    pub action_dim: Option<usize>,
    /// Height and width of an image; must agree with the tensors.
    pub image: Option<[usize; 2]>,
    /// Of the time embedding.
    pub periods: Option<Periods>,
    /// It is said to be PaliGemma with Gemma-2B: what has their widths must have their layers.
    pub gemma_2b: bool,
}

/// Width of one SigLIP So400m head.
const SIGLIP_HEAD: usize = 72;
/// openpi's default `action_horizon`.
const DEFAULT_HORIZON: usize = 50;
/// openpi's `max_token_len` for π0.5.
const DEFAULT_MAX_TOKENS: usize = 200;

/// Why a set of tensors is no π0.5 network.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DimsError {
    /// A tensor that every π0.5 has is not there.
    #[error("tensor {name}: missing; {here}")]
    Missing {
        /// The first one missing.
        name: String,
        /// What is there instead.
        here: String,
    },
    /// A tensor has the wrong shape.
    #[error("tensor {name}: expected shape {expected}, found {found:?}")]
    Shape {
        /// The tensor, as its file names it.
        name: String,
        /// Its file, among those of the table.
        file: usize,
        /// Expected shape or rule.
        expected: String,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// Something that shapes cannot tell is needed or contradicts them.
    #[error("{0}")]
    Hint(String),
}

impl Dims {
    /// Dimensions of a checkpoint's tensors; every tensor that inference needs is there with its shape, or an error
    /// names the first that is not.
    pub fn from_tensors(table: &TensorTable, hints: &DimsHints) -> Result<Self, DimsError> {
        let patches = Shape::of(table, &format!("{VISION}embeddings.patch_embedding.weight"))?;
        let [width, channels, patch, patch_w] = patches.dims("[width, 3, patch, patch]")?;
        if channels != 3 || patch != patch_w || patch == 0 {
            return Err(patches.not("[width, 3, patch, patch]"));
        }
        let positions = Shape::of(table, &format!("{VISION}embeddings.position_embedding.weight"))?;
        let [tokens, _] = positions.dims("[patches, width]")?;
        let side = tokens.isqrt();
        if side == 0 || side * side != tokens {
            return Err(positions.not("[patches, width] with a square number of patches"));
        }
        let fc1 = Shape::of(table, &format!("{VISION}encoder.layers.0.mlp.fc1.weight"))?;
        let [vision_mlp, _] = fc1.dims("[mlp, width]")?;
        let image = side * patch;
        if let Some(said) = hints.image.filter(|&said| said != [image; 2]) {
            return Err(DimsError::Hint(format!(
                "config.json says an image resolution of {said:?}, but {tokens} patches of {patch} pixels make {:?}: one of the two files is from another checkpoint",
                [image; 2]
            )));
        }
        let vision = VisionDims {
            image,
            patch,
            width,
            layers: count_layers(table, &format!("{VISION}encoder.layers.")),
            heads: vision_heads(width, hints.vision_heads)?,
            mlp: vision_mlp,
        };

        let embedding = Shape::of(table, TOKEN_EMBEDDING)?;
        let [vocab, _] = embedding.dims("[vocab, width]")?;
        let language = gemma(table, LANGUAGE)?;
        let expert = gemma(table, EXPERT)?;
        for (what, a, b) in [
            ("layers", language.layers, expert.layers),
            ("head_dim", language.head_dim, expert.head_dim),
            ("heads", language.heads, expert.heads),
        ] {
            if a != b {
                return Err(DimsError::Hint(format!(
                    "the expert attends to the prefix layer by layer, so both need the same {what}: expected {a} as in {LANGUAGE}, found {b} in {EXPERT}"
                )));
            }
        }
        if !expert.width.is_multiple_of(2) {
            return Err(DimsError::Hint(format!(
                "the expert's width holds as many sines as cosines of the time: expected an even one, found {} in {EXPERT}",
                expert.width
            )));
        }
        let action_in = Shape::of(table, "action_in_proj.weight")?;
        let [_, action_dim] = action_in.dims("[width, action_dim]")?;
        if let Some(said) = hints.action_dim.filter(|&said| said != action_dim) {
            return Err(DimsError::Hint(format!(
                "config.json says an action dimension of {said}, but action_in_proj.weight is {:?}: one of the two files is from another checkpoint",
                action_in.0.shape
            )));
        }
        if hints.gemma_2b {
            all_layers(&vision, &language)?;
        }
        let dims = Dims {
            vision,
            language,
            expert,
            vocab,
            action_dim,
            horizon: hints.horizon.unwrap_or(DEFAULT_HORIZON),
            max_tokens: hints.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS),
            periods: hints.periods.unwrap_or(Periods::OFFICIAL),
        };
        dims.check(table)?;
        Ok(dims)
    }

    /// Every required tensor is in the table with the shape that these dimensions imply.
    fn check(&self, table: &TensorTable) -> Result<(), DimsError> {
        for (name, shape) in required(self) {
            let found = Shape::of(table, &name)?;
            if shape.contains(&0) {
                return Err(found.not("no dimension of 0"));
            }
            if found.0.shape != shape {
                return Err(found.not(&format!("{shape:?} as the other tensors imply")));
            }
        }
        Ok(())
    }

    /// π0.5 as published: 3.35 billion parameters in use.
    pub const FULL: Dims = Dims {
        vision: VisionDims { image: 224, patch: 14, width: 1152, layers: 27, heads: 16, mlp: 4304 },
        language: GemmaDims { width: 2048, layers: 18, heads: 8, head_dim: 256, mlp: 16384 },
        expert: GemmaDims { width: 1024, layers: 18, heads: 8, head_dim: 256, mlp: 4096 },
        vocab: 257_152,
        action_dim: 32,
        horizon: 50,
        max_tokens: 200,
        periods: Periods::OFFICIAL,
    };

    /// The built-in tiny network: widths and layer counts of the fixtures, sizes of a real robot.
    pub const TINY: Dims = Dims {
        vision: VisionDims { image: 224, patch: 14, width: 64, layers: 2, heads: 4, mlp: 128 },
        language: GemmaDims { width: 128, layers: 3, heads: 8, head_dim: 32, mlp: 160 },
        expert: GemmaDims { width: 64, layers: 3, heads: 8, head_dim: 32, mlp: 96 },
        vocab: 512,
        action_dim: 32,
        horizon: 50,
        max_tokens: 200,
        periods: Periods::OFFICIAL,
    };

    /// Floating-point operations of one inference's matrix products (a multiply-add is two); the last prefix layer
    /// gives K and V only.
    pub fn flop(&self, work: &Work) -> f64 {
        self.flops(work).iter().sum()
    }

    /// The same by stage: vision, prefix, denoising.
    pub fn flops(&self, work: &Work) -> [f64; 3] {
        let (v, lm, ex) = (&self.vision, &self.language, &self.expert);
        let patches = v.tokens();
        let prefix = work.cameras * patches + work.tokens;
        let vision_layer = 4 * v.width * v.width + 2 * v.width * v.mlp + 2 * patches * v.width;
        let vision =
            patches * (v.layers * vision_layer + 3 * v.patch * v.patch * v.width + v.width * lm.width);
        let kv = |g: &GemmaDims| 2 * g.width * g.head_dim;
        let layer = |g: &GemmaDims, keys: usize| {
            kv(g) + 2 * g.width * g.q_width() + 3 * g.width * g.mlp + 2 * keys * g.q_width()
        };
        let language = prefix * ((lm.layers - 1) * layer(lm, prefix) + kv(lm));
        let velocity = ex.layers * layer(ex, prefix + work.horizon) + 2 * self.action_dim * ex.width;
        [work.cameras * vision, language, work.steps * work.horizon * velocity]
            .map(|products| 2.0 * products as f64)
    }

    /// Parameters of matrix products that each stage reads, the expert's once per step: vision, prefix, denoising.
    pub fn weights_read(&self, steps: usize) -> [usize; 3] {
        let (v, lm) = (&self.vision, &self.language);
        let vision = v.layers * (4 * v.width * v.width + 2 * v.width * v.mlp)
            + v.width * (3 * v.patch * v.patch + lm.width);
        let layer = |g: &GemmaDims| 2 * g.width * (g.head_dim + g.q_width()) + 3 * g.width * g.mlp;
        let language = (lm.layers - 1) * layer(lm) + 2 * lm.width * lm.head_dim;
        [vision, language, steps * self.expert.layers * layer(&self.expert)]
    }

    /// Parameters that inference reads.
    pub fn parameters(&self) -> usize {
        required(self).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }
}

fn gemma(table: &TensorTable, prefix: &str) -> Result<GemmaDims, DimsError> {
    let layer = format!("{prefix}layers.0.");
    let k = Shape::of(table, &format!("{layer}self_attn.k_proj.weight"))?;
    let [head_dim, width] = k.dims("[head_dim, width]")?;
    if head_dim == 0 || head_dim % 2 != 0 || width == 0 {
        return Err(k.not("[head_dim, width] with an even head_dim"));
    }
    let q = Shape::of(table, &format!("{layer}self_attn.q_proj.weight"))?;
    let [q_width, _] = q.dims("[heads * head_dim, width]")?;
    if q_width == 0 || q_width % head_dim != 0 {
        return Err(q.not(&format!("[heads * {head_dim}, {width}]")));
    }
    let gate = Shape::of(table, &format!("{layer}mlp.gate_proj.weight"))?;
    let [mlp, _] = gate.dims("[mlp, width]")?;
    let layers = count_layers(table, &format!("{prefix}layers."));
    Ok(GemmaDims { width, layers, heads: q_width / head_dim, head_dim, mlp })
}

fn vision_heads(width: usize, said: Option<usize>) -> Result<usize, DimsError> {
    match said {
        Some(heads) if heads > 0 && width.is_multiple_of(heads) => Ok(heads),
        Some(heads) => Err(DimsError::Hint(format!(
            "config.json: pi05_thor.vision_heads: expected a divisor of SigLIP's width {width}, found {heads}"
        ))),
        None if width > 0 && width.is_multiple_of(SIGLIP_HEAD) => Ok(width / SIGLIP_HEAD),
        None => Err(DimsError::Hint(format!(
            "SigLIP's width {width} is no multiple of {SIGLIP_HEAD}, so its number of heads is unknown: add \"pi05_thor\": {{\"vision_heads\": N}} to config.json"
        ))),
    }
}

/// Layers are counted by what is there, so whole ones lost at the end would not be missed; but where all else is
/// PaliGemma's, its depth is known. (The expert has as many layers as the prefix.)
fn all_layers(vision: &VisionDims, language: &GemmaDims) -> Result<(), DimsError> {
    let Dims { vision: siglip, language: gemma, .. } = Dims::FULL;
    let is_siglip = VisionDims { layers: siglip.layers, ..*vision } == siglip;
    let is_gemma = GemmaDims { layers: gemma.layers, ..*language } == gemma;
    for (prefix, is_official, expected, found) in [
        (VISION, is_siglip, siglip.layers, vision.layers),
        (LANGUAGE, is_gemma, gemma.layers, language.layers),
    ] {
        if is_official && found != expected {
            return Err(DimsError::Hint(format!(
                "config.json says gemma_2b, whose {prefix} has {expected} layers, found {found}: is the checkpoint complete?"
            )));
        }
    }
    Ok(())
}

/// How many different `i` there are in names `{prefix}{i}.…`; a gap shows up as missing tensors.
fn count_layers(table: &TensorTable, prefix: &str) -> usize {
    let from_prefix = table.entries.range(prefix.to_owned()..).map(|(name, _)| name);
    let in_layers = from_prefix.map_while(|name| name.strip_prefix(prefix));
    in_layers.filter_map(|rest| rest.split_once('.')?.0.parse::<usize>().ok()).collect::<BTreeSet<_>>().len()
}

/// A tensor's shape that remembers where it is from.
struct Shape<'a>(&'a TensorEntry);

impl<'a> Shape<'a> {
    fn of(table: &'a TensorTable, name: &str) -> Result<Self, DimsError> {
        table.entries.get(name).map(Self).ok_or_else(|| missing(table, name))
    }

    fn dims<const N: usize>(&self, expected: &str) -> Result<[usize; N], DimsError> {
        self.0.shape.as_slice().try_into().map_err(|_| self.not(expected))
    }

    fn not(&self, expected: &str) -> DimsError {
        let TensorEntry { stored, file, shape, .. } = self.0;
        let expected = expected.to_owned();
        DimsError::Shape { name: stored.clone(), file: *file, expected, found: shape.clone() }
    }
}

/// That a tensor is not there, and what is: names of another kind show at once.
fn missing(table: &TensorTable, name: &str) -> DimsError {
    let name = if name == TOKEN_EMBEDDING { format!("{LM_HEAD} or {name}") } else { name.to_owned() };
    let known = table.entries.len();
    let here = match table.foreign.as_slice() {
        [] => format!("{known} other tensors of π0.5 are here: is the checkpoint complete?"),
        [first, ..] => format!(
            "{known} other tensors of π0.5 are here, and {} of unknown names, such as {first}: expected the names that openpi or LeRobot give",
            table.foreign.len()
        ),
    };
    DimsError::Missing { name, here }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tensors::{Dtype, TensorEntry};

    fn table(dims: &Dims) -> TensorTable {
        let entry = |(name, shape): (String, Vec<usize>)| {
            let stored = if name == TOKEN_EMBEDDING { LM_HEAD.to_owned() } else { name.clone() };
            (name, TensorEntry { stored, dtype: Dtype::F32, shape, file: 0, offset: 0 })
        };
        let entries = required(dims).into_iter().map(entry).collect();
        TensorTable { files: vec!["model.safetensors".into()], entries, foreign: vec![] }
    }

    fn hints(dims: &Dims) -> DimsHints {
        DimsHints { vision_heads: Some(dims.vision.heads), ..Default::default() }
    }

    #[test]
    fn shapes_tell_the_dimensions() {
        for dims in [Dims::FULL, Dims::TINY] {
            assert_eq!(Dims::from_tensors(&table(&dims), &hints(&dims)), Ok(dims));
        }
        assert_eq!(Dims::from_tensors(&table(&Dims::FULL), &DimsHints::default()), Ok(Dims::FULL));
    }

    #[test]
    fn the_full_model_has_the_published_number_of_parameters() {
        // spec §1: 3 353 433 872 used, counting language_model.norm [2048], which inference does not read.
        assert_eq!(Dims::FULL.parameters() + 2048, 3_353_433_872);
    }

    #[test]
    fn the_work_of_a_full_chunk_is_the_published_one() {
        // shared figures: SigLIP 0.66 T, prefix 3.76 T, expert 0.39 T (which count the last prefix layer whole)
        let work = Work { cameras: 3, tokens: 200, horizon: 50, steps: 10 };
        let tera = Dims::FULL.flop(&work) * 1e-12;
        assert!((4.4..4.9).contains(&tera), "{tera}");
    }

    #[test]
    fn any_missing_or_misshapen_tensor_is_named() {
        for (name, shape) in required(&Dims::TINY) {
            let mut without = table(&Dims::TINY);
            without.entries.remove(&name);
            let said = Dims::from_tensors(&without, &hints(&Dims::TINY)).unwrap_err().to_string();
            assert!(said.contains(&name) && said.contains("missing"), "{name}: {said}");

            let mut wrong = table(&Dims::TINY);
            let mut shape = shape;
            *shape.last_mut().unwrap() += 1;
            wrong.entries.get_mut(&name).unwrap().shape = shape;
            Dims::from_tensors(&wrong, &hints(&Dims::TINY)).unwrap_err();
        }
    }

    #[test]
    fn what_is_here_instead_is_told_and_nothing_is_guessed() {
        let said =
            |table: &TensorTable| Dims::from_tensors(table, &hints(&Dims::TINY)).unwrap_err().to_string();
        let mut one_less = table(&Dims::TINY);
        one_less.entries.remove("time_mlp_in.bias");
        let others = one_less.entries.len();
        assert!(
            said(&one_less).contains(&format!("{others} other tensors of π0.5 are here: ")),
            "{}",
            said(&one_less)
        );

        let foreign = vec!["module.time_mlp_in.bias".to_owned(), "module.time_mlp_in.weight".to_owned()];
        let prefixed = said(&TensorTable { foreign, ..Default::default() });
        assert!(prefixed.contains("0 other tensors of π0.5 are here, and 2 of"), "{prefixed}");
        assert!(prefixed.contains("such as module.time_mlp_in.bias"), "{prefixed}");
    }

    #[test]
    fn the_embedding_is_called_what_its_file_calls_it() {
        let mut wrong = table(&Dims::TINY);
        wrong.entries.get_mut(TOKEN_EMBEDDING).unwrap().shape = vec![512];
        let error = Dims::from_tensors(&wrong, &hints(&Dims::TINY)).unwrap_err();
        assert!(matches!(&error, DimsError::Shape { name, .. } if name == LM_HEAD), "{error}");
        wrong.entries.remove(TOKEN_EMBEDDING);
        let said = Dims::from_tensors(&wrong, &hints(&Dims::TINY)).unwrap_err().to_string();
        assert!(said.contains(LM_HEAD) && said.contains(TOKEN_EMBEDDING), "{said}");
    }

    #[test]
    fn a_network_of_no_size_is_refused() {
        for dims in [Dims { action_dim: 0, ..Dims::TINY }, Dims { vocab: 0, ..Dims::TINY }] {
            let said = Dims::from_tensors(&table(&dims), &hints(&dims)).unwrap_err().to_string();
            assert!(said.contains("no dimension of 0"), "{said}");
        }
    }

    #[test]
    fn an_odd_expert_is_refused() {
        let dims = Dims { expert: GemmaDims { width: 63, ..Dims::TINY.expert }, ..Dims::TINY };
        let said = Dims::from_tensors(&table(&dims), &hints(&dims)).unwrap_err().to_string();
        assert!(said.contains("even") && said.contains("63"), "{said}");
    }

    #[test]
    fn layers_that_got_lost_are_missed_where_the_depth_is_known() {
        let refused = |dims: Dims| {
            let hints = DimsHints { gemma_2b: true, ..hints(&dims) };
            Dims::from_tensors(&table(&dims), &hints).map_err(|e| e.to_string()).err()
        };
        assert_eq!(
            (refused(Dims::FULL), refused(Dims::TINY)),
            (None, None),
            "a network of other widths may say so"
        );
        let vision = VisionDims { layers: 26, ..Dims::FULL.vision };
        let said = refused(Dims { vision, ..Dims::FULL }).unwrap();
        assert!(said.contains(VISION) && said.contains("27 layers, found 26"), "{said}");
        let shorter = |gemma| GemmaDims { layers: 17, ..gemma };
        let (language, expert) = (shorter(Dims::FULL.language), shorter(Dims::FULL.expert));
        let said = refused(Dims { language, expert, ..Dims::FULL }).unwrap();
        assert!(said.contains(LANGUAGE) && said.contains("18 layers, found 17"), "{said}");
    }

    #[test]
    fn contradicting_hints_are_refused() {
        let tiny = table(&Dims::TINY);
        for bad in [
            DimsHints::default(), // 64 is no multiple of 72
            DimsHints { vision_heads: Some(5), ..hints(&Dims::TINY) },
            DimsHints { vision_heads: Some(0), ..hints(&Dims::TINY) },
            DimsHints { action_dim: Some(7), ..hints(&Dims::TINY) },
            DimsHints { image: Some([56, 56]), ..hints(&Dims::TINY) },
            DimsHints { image: Some([224, 112]), ..hints(&Dims::TINY) },
        ] {
            assert!(matches!(Dims::from_tensors(&tiny, &bad), Err(DimsError::Hint(_))), "{bad:?}");
        }
    }
}
