//! SigLIP's weights as the vision stage takes them: matrices layer by layer, norms folded into the products after them,
//! positions with all that is the same for every image. Called when the stage is made; puts nothing on its stream.

use super::driver::{Buffer, Gpu, Launch};
use super::heads::suit;
use super::lane::{STAGES, compiled};
use super::load::{Loader, Weight};
use crate::engine::EngineError;
use crate::model::dims::VisionDims;
use crate::model::names::VISION;

pub struct Norm {
    pub weight: Buffer,
    pub bias: Buffer,
}

/// Matrices with their biases.
pub struct Layer {
    pub norm1: Norm,
    pub qkv: (Weight, Buffer),
    pub out: (Weight, Buffer),
    pub norm2: Norm,
    pub fc1: (Weight, Buffer),
    pub fc2: (Weight, Buffer),
    /// Of q, k, v and of fc1 with the norms before them, where they are folded.
    pub folds: Option<[Fold; 2]>,
}

/// A norm's part in the product after it: see [`super::product::Norm::of_means`], and the bias with what the norm's own
/// adds to it.
pub struct Fold {
    pub of_means: Buffer,
    pub bias: Buffer,
}

impl Norm {
    pub fn new(load: &mut Loader<'_>, name: String) -> Result<Self, EngineError> {
        Ok(Self {
            weight: load.wide(&format!("{name}.weight"), 0.0)?,
            bias: load.wide(&format!("{name}.bias"), 0.0)?,
        })
    }
}

impl Layer {
    pub fn new(load: &mut Loader<'_>, i: usize) -> Result<Self, EngineError> {
        let at = format!("{VISION}encoder.layers.{i}.");
        let parts = |what: &str| ["q", "k", "v"].map(|part| format!("{at}self_attn.{part}_proj.{what}"));
        let of = |what: &str| format!("vision.layer.{i}.{what}");
        let one = |name: &str, what: &str| [format!("{at}{name}.{what}")];
        let weight = |load: &mut Loader<'_>, name: &str, input: &str| {
            load.weight(&one(name, "weight"), &one(name, "bias"), &of(input))
        };
        // A product with an f32 result takes its bias in f32, another one in the engine's type.
        Ok(Self {
            norm1: Norm::new(load, format!("{at}layer_norm1"))?,
            qkv: (
                load.weight(&parts("weight"), &parts("bias"), &of("layer_norm1"))?,
                load.vectors(&parts("bias"))?,
            ),
            out: (
                weight(load, "self_attn.out_proj", "attention")?,
                load.wide(&format!("{at}self_attn.out_proj.bias"), 0.0)?,
            ),
            norm2: Norm::new(load, format!("{at}layer_norm2"))?,
            fc1: (weight(load, "mlp.fc1", "layer_norm2")?, load.vectors(&one("mlp.fc1", "bias"))?),
            fc2: (weight(load, "mlp.fc2", "hidden")?, load.wide(&format!("{at}mlp.fc2.bias"), 0.0)?),
            folds: None,
        })
    }

    fn is_fp8(&self) -> bool {
        [&self.qkv, &self.out, &self.fc1, &self.fc2].iter().any(|(weight, _)| weight.is_fp8())
    }
}

/// Folds the norms before q, k, v and fc1 into them, where there are own products for that: those in bf16 take and leave
/// norms half done; e4m3's take them whole.
pub fn fold(gpu: &Gpu, v: &VisionDims, bf16: bool, layers: &mut [Layer]) -> Result<(), EngineError> {
    let fits = suit(v) && v.width.is_multiple_of(128) && v.mlp.is_multiple_of(8);
    if !(bf16 && gpu.arch == 90 && fits) || layers.iter().any(Layer::is_fp8) {
        return Ok(());
    }
    let kernels = compiled(gpu, STAGES, &["BF16".to_owned()], &[("fold_norm", 0)])?;
    let fold = |norm: &Norm, (w, bias): &(Weight, Buffer), columns: usize| {
        let vector = || gpu.zeros(columns * 4);
        let fold = Fold { of_means: vector()?, bias: vector()? };
        let args = [
            (&w.values).into(),
            bias.into(),
            (&norm.weight).into(),
            (&norm.bias).into(),
            (&fold.of_means).into(),
            (&fold.bias).into(),
            v.width.into(),
        ];
        gpu.launch(kernels["fold_norm"], Launch::new([columns, 1, 1], 128, 0), false, &args)?;
        Ok::<_, EngineError>(fold)
    };
    for layer in layers {
        let qkv = fold(&layer.norm1, &layer.qkv, 3 * v.width)?;
        layer.folds = Some([qkv, fold(&layer.norm2, &layer.fc1, v.mlp)?]);
    }
    Ok(())
}

/// What the patches' product is added to, f32 `[cameras * tokens, width]`: position + bias - the sum of weights, since
/// pixels enter as `p = 0..255` and mean `p / 127.5 - 1`.
pub fn positions(
    load: &Loader<'_>,
    dims: &VisionDims,
    cameras: usize,
    bf16: bool,
) -> Result<Vec<f32>, EngineError> {
    let at = format!("{VISION}embeddings.");
    let bias = load.tensor(&format!("{at}patch_embedding.bias"))?.to_vec();
    let weight = load.tensor(&format!("{at}patch_embedding.weight"))?.to_vec();
    let rounded = |w: f32| if bf16 { half::bf16::from_f32(w).to_f64() } else { f64::from(w) };
    let sums = weight
        .chunks_exact(3 * dims.patch * dims.patch)
        .map(|row| row.iter().map(|&w| rounded(w)).sum::<f64>());
    let offsets: Vec<f64> = bias.iter().zip(sums).map(|(&b, sum)| f64::from(b) - sum).collect();
    let table = load.tensor(&format!("{at}position_embedding.weight"))?.to_vec();
    let one: Vec<f32> = table
        .chunks_exact(dims.width)
        .flat_map(|row| row.iter().zip(&offsets).map(|(&p, o)| (f64::from(p) + o) as f32))
        .collect();
    Ok(one.repeat(cameras))
}
