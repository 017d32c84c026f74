//! The canonical tensor names (openpi's, spec/PI05.md §11.1) and the shape of each, from the dimensions.

use super::dims::Dims;
use super::tensors::TOKEN_EMBEDDING;

/// SigLIP tower.
pub const VISION: &str = "paligemma_with_expert.paligemma.model.vision_tower.vision_model.";
/// Projector from SigLIP's width to Gemma's.
pub const PROJECTOR: &str = "paligemma_with_expert.paligemma.model.multi_modal_projector.linear";
/// Gemma-2B.
pub const LANGUAGE: &str = "paligemma_with_expert.paligemma.model.language_model.";
/// Action expert.
pub const EXPERT: &str = "paligemma_with_expert.gemma_expert.model.";

/// Every tensor that inference reads, with its shape, in a fixed order.
pub fn required(dims: &Dims) -> Vec<(String, Vec<usize>)> {
    let mut list = Vec::new();
    let mut add = |name: String, shape: &[usize]| list.push((name, shape.to_vec()));

    let v = &dims.vision;
    let embeddings = format!("{VISION}embeddings.");
    add(format!("{embeddings}patch_embedding.weight"), &[v.width, 3, v.patch, v.patch]);
    add(format!("{embeddings}patch_embedding.bias"), &[v.width]);
    add(format!("{embeddings}position_embedding.weight"), &[v.tokens(), v.width]);
    for i in 0..v.layers {
        let layer = format!("{VISION}encoder.layers.{i}.");
        for norm in ["layer_norm1", "layer_norm2"] {
            add(format!("{layer}{norm}.weight"), &[v.width]);
            add(format!("{layer}{norm}.bias"), &[v.width]);
        }
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            add(format!("{layer}self_attn.{projection}.weight"), &[v.width, v.width]);
            add(format!("{layer}self_attn.{projection}.bias"), &[v.width]);
        }
        add(format!("{layer}mlp.fc1.weight"), &[v.mlp, v.width]);
        add(format!("{layer}mlp.fc1.bias"), &[v.mlp]);
        add(format!("{layer}mlp.fc2.weight"), &[v.width, v.mlp]);
        add(format!("{layer}mlp.fc2.bias"), &[v.width]);
    }
    add(format!("{VISION}post_layernorm.weight"), &[v.width]);
    add(format!("{VISION}post_layernorm.bias"), &[v.width]);

    let (lm, ex) = (&dims.language, &dims.expert);
    add(format!("{PROJECTOR}.weight"), &[lm.width, v.width]);
    add(format!("{PROJECTOR}.bias"), &[lm.width]);
    add(TOKEN_EMBEDDING.to_owned(), &[dims.vocab, lm.width]);
    for (prefix, gemma, adaptive) in [(LANGUAGE, lm, false), (EXPERT, ex, true)] {
        for i in 0..gemma.layers {
            let layer = format!("{prefix}layers.{i}.");
            add(format!("{layer}self_attn.q_proj.weight"), &[gemma.q_width(), gemma.width]);
            add(format!("{layer}self_attn.k_proj.weight"), &[gemma.head_dim, gemma.width]);
            add(format!("{layer}self_attn.v_proj.weight"), &[gemma.head_dim, gemma.width]);
            add(format!("{layer}self_attn.o_proj.weight"), &[gemma.width, gemma.q_width()]);
            add(format!("{layer}mlp.gate_proj.weight"), &[gemma.mlp, gemma.width]);
            add(format!("{layer}mlp.up_proj.weight"), &[gemma.mlp, gemma.width]);
            add(format!("{layer}mlp.down_proj.weight"), &[gemma.width, gemma.mlp]);
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                if adaptive {
                    add(format!("{layer}{norm}.dense.weight"), &[3 * gemma.width, gemma.width]);
                    add(format!("{layer}{norm}.dense.bias"), &[3 * gemma.width]);
                } else {
                    add(format!("{layer}{norm}.weight"), &[gemma.width]);
                }
            }
        }
    }
    add(format!("{EXPERT}norm.dense.weight"), &[3 * ex.width, ex.width]);
    add(format!("{EXPERT}norm.dense.bias"), &[3 * ex.width]);

    add("action_in_proj.weight".into(), &[ex.width, dims.action_dim]);
    add("action_in_proj.bias".into(), &[ex.width]);
    add("action_out_proj.weight".into(), &[dims.action_dim, ex.width]);
    add("action_out_proj.bias".into(), &[dims.action_dim]);
    for name in ["time_mlp_in", "time_mlp_out"] {
        add(format!("{name}.weight"), &[ex.width, ex.width]);
        add(format!("{name}.bias"), &[ex.width]);
    }
    list
}

/// `language_model.norm.weight`: in every checkpoint, unused by inference; `verify` can compare against it.
pub fn language_final_norm() -> String {
    format!("{LANGUAGE}norm.weight")
}

/// Channels of an activation that fp8 quantises.
pub fn quantised_width(dims: &Dims, name: &str) -> usize {
    let (is_vision, last) = (name.starts_with("vision."), name.rsplit('.').next());
    match (last, is_vision) {
        (Some("hidden"), true) => dims.vision.mlp,
        (_, true) => dims.vision.width,
        (Some("hidden"), false) => dims.language.mlp,
        (Some("attention"), false) => dims.language.q_width(),
        (_, false) => dims.language.width,
    }
}

/// Activations that fp8 quantises: what matrices of vision, projector and prefix multiply, by the names that stages report. Of the last
/// layer of the prefix only keys and values are made.
pub fn quantised(dims: &Dims) -> Vec<String> {
    let parts = |stage: &str, layer: usize, parts: [&str; 4]| {
        parts.map(|part| format!("{stage}.layer.{layer}.{part}"))
    };
    let vision = (0..dims.vision.layers)
        .flat_map(|i| parts("vision", i, ["layer_norm1", "attention", "layer_norm2", "hidden"]));
    let of_prefix = ["input_layernorm", "attention", "post_attention_layernorm", "hidden"];
    let last = dims.language.layers.saturating_sub(1);
    let prefix = (0..last).flat_map(|i| parts("prefix", i, of_prefix));
    vision
        .chain(["vision.post_layernorm".to_owned()])
        .chain(prefix)
        .chain([format!("prefix.layer.{last}.input_layernorm")])
        .collect()
}
