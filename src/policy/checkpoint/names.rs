//! Which tensor of a file is which part of the network: the loader rules of spec/PI05.md §11.2.
//!
//! Promises one canonical name for each tensor, whoever wrote the file. Knows names only, neither shapes nor files.

use crate::model::tensors::{LM_HEAD, TOKEN_EMBEDDING};

const VISION: &str = "paligemma_with_expert.paligemma.model.vision_tower.vision_model.";
const PROJECTOR: &str = "paligemma_with_expert.paligemma.model.multi_modal_projector.linear.";
const LANGUAGE: &str = "paligemma_with_expert.paligemma.model.language_model.";
const EXPERT: &str = "paligemma_with_expert.gemma_expert.model.";

/// What a tensor is to the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A part of it, under its canonical name.
    Network(String),
    /// Its token embedding, where the file has no tensor of that name.
    TiedEmbedding,
    /// Known, and not computed with: output heads, π0's state projection, plain norms of the expert.
    Ignored,
    /// Part of LeRobot's memory option, which is not supported.
    Memory,
    /// Nothing of π0.5.
    Unknown,
}

/// The role of a tensor, from its name in the file.
pub(super) fn role(stored: &str) -> Role {
    let name = stored.strip_prefix("model.").unwrap_or(stored);
    if name == LM_HEAD {
        return Role::TiedEmbedding;
    }
    if name.starts_with("proprio_history_proj.") {
        return Role::Memory;
    }
    if name == "paligemma_with_expert.gemma_expert.lm_head.weight"
        || name.starts_with("state_proj.")
        || name.strip_prefix(EXPERT).is_some_and(is_plain_norm)
    {
        return Role::Ignored;
    }
    let name = match name.strip_prefix("action_time_mlp_") {
        Some(rest) => format!("time_mlp_{rest}"),
        None => name.to_owned(),
    };
    if is_network(&name) { Role::Network(name) } else { Role::Unknown }
}

fn is_network(name: &str) -> bool {
    if name == TOKEN_EMBEDDING {
        return true;
    }
    if let Some(part) = name.strip_prefix(VISION) {
        return part == "embeddings.position_embedding.weight"
            || is_affine(part, &["embeddings.patch_embedding", "post_layernorm"])
            || layer(part, "encoder.layers.").is_some_and(|part| {
                is_affine(part, &["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"])
                    || is_affine(part, &["self_attn.q_proj", "self_attn.k_proj"])
                    || is_affine(part, &["self_attn.v_proj", "self_attn.out_proj"])
            });
    }
    if let Some(part) = name.strip_prefix(PROJECTOR) {
        return part == "weight" || part == "bias";
    }
    if let Some(part) = name.strip_prefix(LANGUAGE) {
        return is_plain_norm(part) || layer(part, "layers.").is_some_and(is_gemma_matrix);
    }
    if let Some(part) = name.strip_prefix(EXPERT) {
        return is_affine(part, &["norm.dense"])
            || layer(part, "layers.").is_some_and(|part| {
                is_gemma_matrix(part)
                    || is_affine(part, &["input_layernorm.dense", "post_attention_layernorm.dense"])
            });
    }
    is_affine(name, &["action_in_proj", "action_out_proj", "time_mlp_in", "time_mlp_out"])
}

/// `norm.weight` and the two norms of a layer, as plain Gemma has them.
fn is_plain_norm(part: &str) -> bool {
    part == "norm.weight"
        || layer(part, "layers.")
            .is_some_and(|part| part == "input_layernorm.weight" || part == "post_attention_layernorm.weight")
}

fn is_gemma_matrix(part: &str) -> bool {
    matches!(
        part,
        "self_attn.q_proj.weight"
            | "self_attn.k_proj.weight"
            | "self_attn.v_proj.weight"
            | "self_attn.o_proj.weight"
            | "mlp.gate_proj.weight"
            | "mlp.up_proj.weight"
            | "mlp.down_proj.weight"
    )
}

/// One of `owners`, followed by `.weight` or `.bias`.
fn is_affine(part: &str, owners: &[&str]) -> bool {
    part.strip_suffix(".weight").or_else(|| part.strip_suffix(".bias")).is_some_and(|o| owners.contains(&o))
}

/// What follows `prefix`, a layer number as it is usually written, and a dot.
fn layer<'a>(part: &'a str, prefix: &str) -> Option<&'a str> {
    let (number, rest) = part.strip_prefix(prefix)?.split_once('.')?;
    let usual = number.parse::<u16>().ok()?.to_string() == number; // not 007, not +7
    usual.then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_leading_model_is_stripped_and_no_more() {
        let inner = format!("{LANGUAGE}layers.3.mlp.up_proj.weight");
        assert_eq!(role(&inner), Role::Network(inner.clone()));
        assert_eq!(role(&format!("model.{inner}")), Role::Network(inner.clone()));
        assert_eq!(role(&format!("model.model.{inner}")), Role::Unknown);
    }

    #[test]
    fn pi0_names_and_leftovers_have_their_place() {
        assert_eq!(role("model.action_time_mlp_in.bias"), Role::Network("time_mlp_in.bias".into()));
        assert_eq!(role("action_time_mlp_out.weight"), Role::Network("time_mlp_out.weight".into()));
        assert_eq!(role("action_time_mlp_mid.weight"), Role::Unknown);
        for name in [
            "state_proj.weight",
            "paligemma_with_expert.gemma_expert.lm_head.weight",
            "model.paligemma_with_expert.gemma_expert.model.norm.weight",
            "paligemma_with_expert.gemma_expert.model.layers.17.input_layernorm.weight",
        ] {
            assert_eq!(role(name), Role::Ignored, "{name}");
        }
        assert_eq!(role("model.proprio_history_proj.bias"), Role::Memory);
        assert_eq!(role(LM_HEAD), Role::TiedEmbedding);
    }

    #[test]
    fn a_layer_has_one_way_to_be_numbered() {
        assert_eq!(layer("layers.12.mlp", "layers."), Some("mlp"));
        for odd in ["layers.012.mlp", "layers.+1.mlp", "layers.-1.mlp", "layers..mlp", "layers.99999.mlp"] {
            assert_eq!(layer(odd, "layers."), None, "{odd}");
        }
    }
}
