//! ROS 2 parameter files: from text to a flat list of names and raw values.
//!
//! Promises: the text may be anything. It is read without panic, in memory bounded by its length; what is no parameter
//! file is refused in one line. Takes what rcl takes: blocks for several nodes, wildcards in their names, nested and
//! dotted parameter names. Like rcl it refuses anchors and aliases. Called by [`super::Config`] only; knows no parameter.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Error;
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};

use super::error::{ConfigError, shortened};

/// Largest parameter file. The shipped ones have 5 kB.
pub const FILE_MAX: usize = 256 * 1024;
/// Deepest nesting: a few namespaces and name parts.
const DEPTH_MAX: usize = 16;
/// Most keys, values and lists together.
const NODES_MAX: usize = 20_000;
/// Longest name of a parameter or a node, in bytes.
const NAME_MAX: usize = 256;
/// The node's name, where it is not renamed.
const NODE: &str = "policy";
/// The key under which a node's parameters stand.
const PARAMETERS: &str = "ros__parameters";

/// A value as YAML has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    /// Nothing.
    Null,
    /// `true`, and what YAML 1.1 and rcl take for it (`yes`, `on`).
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number; may be NaN or infinite.
    Double(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Raw>),
    /// Names and values, as written.
    Map(Vec<(String, Raw)>),
}

impl fmt::Display for Raw {
    /// For an error message: short, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => write!(f, "nothing"),
            Self::Bool(v) => write!(f, "{v}"),
            Self::Integer(v) => write!(f, "{v}"),
            Self::Double(v) => write!(f, "{v:?}"),
            Self::Text(v) => write!(f, "\"{}\"", shortened(v)),
            Self::List(v) if v.is_empty() => write!(f, "an empty list"),
            Self::List(v) => write!(f, "a list of {}", v.len()),
            Self::Map(v) if v.is_empty() => write!(f, "an empty group"),
            Self::Map(_) => write!(f, "names with values of their own"),
        }
    }
}

/// The parameters that `text` gives this node, each name once, in the order of the file. Blocks that name the node win
/// over wildcards, later ones over earlier ones.
pub fn parse(text: &str, origin: &str) -> Result<Vec<(String, Raw)>, ConfigError> {
    let malformed = |reason: String| ConfigError::Malformed { origin: origin.to_owned(), reason };
    if text.len() > FILE_MAX {
        return Err(malformed(format!("{} bytes, more than {FILE_MAX}", text.len())));
    }
    let root: Raw = serde_saphyr::from_str_with_options(text, options())
        .map_err(|error| malformed(yaml_reason(&error)))?;
    let mut blocks = Vec::new();
    find_blocks(String::new(), root, &mut blocks).map_err(malformed)?;
    let mut parameters: Vec<(String, Raw)> = Vec::new();
    for block in choose(blocks).map_err(malformed)? {
        let mut flat = Vec::new();
        flatten(None, block.parameters, &mut flat).map_err(malformed)?;
        let mut names: Vec<&str> = flat.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(malformed(format!(
                "parameter {} twice in {}",
                shortened(twice[0]),
                shortened(&block.node)
            )));
        }
        parameters.extend(flat);
    }
    Ok(last_of_each(parameters))
}

/// The parameters of one node, or of all that a wildcard matches.
struct Block {
    /// Its name with namespace: `/policy`, `/**`, `/left/policy`.
    node: String,
    parameters: Raw,
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            flow_nesting_limit: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: 4 * NODES_MAX,
            max_documents: 1,
            max_anchors: 0,
            max_aliases: 0,
            max_total_scalar_bytes: FILE_MAX,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        // Comments are skipped; otherwise their number in a row would be limited.
        emit_comments: false,
        with_snippet: false,
    }
}

/// What the YAML reader refuses, in our words where its own are for programmers; on one line.
fn yaml_reason(error: &Error) -> String {
    let error = error.without_snippet();
    let at = match error.location() {
        Some(location) => format!(" at line {}, column {}", location.line(), location.column()),
        None => String::new(),
    };
    match error {
        Error::DuplicateMappingKey { key, .. } => {
            format!("the name {} twice{at}", shortened(key.as_deref().unwrap_or("?")))
        }
        Error::Budget { breach: BudgetBreach::Anchors { .. } | BudgetBreach::Aliases { .. }, .. } => {
            format!("a YAML anchor or alias, which ROS 2 does not take{at}")
        }
        Error::Budget { breach: BudgetBreach::Documents { .. }, .. } => format!("a second document{at}"),
        Error::Budget { .. } => format!("more names and values than any robot has{at}"),
        other => {
            let words: Vec<String> = other.to_string().split_whitespace().map(str::to_owned).collect();
            words.join(" ").chars().take(300).collect()
        }
    }
}

/// Collects every `ros__parameters` below `node`.
fn find_blocks(node: String, raw: Raw, blocks: &mut Vec<Block>) -> Result<(), String> {
    let entries = match raw {
        Raw::Map(entries) => entries,
        Raw::Null if node.is_empty() => return Err("an empty file".to_owned()),
        other if node.is_empty() => return Err(format!("{other} instead of a node name")),
        other => return Err(format!("{other} under {}, without {PARAMETERS}", shortened(&node))),
    };
    for (key, value) in entries {
        if key != PARAMETERS {
            find_blocks(
                format!("/{}", joined(node.trim_matches('/'), '/', key.trim_matches('/'))?),
                value,
                blocks,
            )?;
        } else if node.is_empty() {
            return Err(format!("{PARAMETERS} without a node name above it, such as /**"));
        } else if matches!(value, Raw::Map(_) | Raw::Null) {
            blocks.push(Block { node: node.clone(), parameters: value });
        } else {
            return Err(format!("{value} under {PARAMETERS} of {}", shortened(&node)));
        }
    }
    Ok(())
}

/// The blocks that are for this node, the one that wins last.
///
/// A replay has no namespace: a block for the node in any namespace is meant. Two such namespaces are two robots, and
/// are refused. A file with one single block is meant for us whatever its name, for nodes can be renamed.
fn choose(blocks: Vec<Block>) -> Result<Vec<Block>, String> {
    let single = blocks.len() == 1;
    let mut found: Vec<String> = Vec::new();
    let mut chosen: Vec<Block> = Vec::new();
    for block in blocks {
        if single || matches!(last_part(&block.node), NODE | "*" | "**") {
            chosen.push(block);
        } else {
            found.push(shortened(&block.node));
        }
    }
    if chosen.is_empty() {
        found.truncate(8);
        let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
        return Err(format!("no parameters for the node {NODE} or for /** (blocks: {found})"));
    }
    let mut named =
        chosen.iter().map(|b| b.node.as_str()).filter(|n| !n.contains('*') && parts(n).count() > 1);
    if let Some(first) = named.next()
        && let Some(other) = named.find(|&n| n != first)
    {
        return Err(format!(
            "parameters for two nodes, {} and {}, of which one is meant",
            shortened(first),
            shortened(other)
        ));
    }
    chosen.sort_by_key(|block| specificity(&block.node)); // stable: later ones stay later
    Ok(chosen)
}

/// How precisely a block names its node: (named at all, parts that are words, `*` rather than `**`).
fn specificity(node: &str) -> (bool, usize, usize) {
    let words = parts(node).filter(|part| !part.contains('*')).count();
    let single = parts(node).filter(|&part| part == "*").count();
    (words > 0 && words == parts(node).count(), words, single)
}

fn parts(node: &str) -> impl Iterator<Item = &str> {
    node.split('/').filter(|part| !part.is_empty())
}

fn last_part(node: &str) -> &str {
    parts(node).last().unwrap_or_default()
}

/// `{control: {rate_hz: 50}}` and `{"control.rate_hz": 50}` both become `control.rate_hz`.
fn flatten(path: Option<&str>, raw: Raw, flat: &mut Vec<(String, Raw)>) -> Result<(), String> {
    match (raw, path) {
        (Raw::Map(entries), Some(name)) if entries.is_empty() => {
            flat.push((name.to_owned(), Raw::Map(entries)))
        }
        (Raw::Map(entries), _) => {
            for (key, value) in entries {
                let name = joined(path.unwrap_or_default(), '.', &key)?;
                flatten(Some(&name), value, flat)?;
            }
        }
        (value, Some(name)) => flat.push((name.to_owned(), value)),
        (_, None) => {} // nothing under ros__parameters
    }
    Ok(())
}

/// One name made of two; bounded, for many values may stand below one long name.
fn joined(path: &str, separator: char, key: &str) -> Result<String, String> {
    if path.len() + key.len() >= NAME_MAX {
        return Err(format!("the name {}, longer than {NAME_MAX} bytes", shortened(&format!("{path}{key}"))));
    }
    Ok(if path.is_empty() { key.to_owned() } else { format!("{path}{separator}{key}") })
}

/// Each name once, where it first stood, with the value that it had last.
fn last_of_each(parameters: Vec<(String, Raw)>) -> Vec<(String, Raw)> {
    let mut index = std::collections::HashMap::new();
    let mut merged: Vec<(String, Raw)> = Vec::new();
    for (name, value) in parameters {
        match index.get(&name) {
            Some(&at) => merged[at] = (name, value),
            None => {
                index.insert(name.clone(), merged.len());
                merged.push((name, value));
            }
        }
    }
    merged
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a parameter value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Raw, E> {
        Ok(Raw::Integer(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Raw, E> {
        Ok(i64::try_from(v).map_or(Raw::Double(v as f64), Raw::Integer))
    }

    fn visit_i128<E>(self, v: i128) -> Result<Raw, E> {
        Ok(i64::try_from(v).map_or(Raw::Double(v as f64), Raw::Integer))
    }

    fn visit_u128<E>(self, v: u128) -> Result<Raw, E> {
        Ok(i64::try_from(v).map_or(Raw::Double(v as f64), Raw::Integer))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Raw, E> {
        Ok(Raw::Double(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Raw, E> {
        Ok(Raw::Text(v.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element()? {
            list.push(value);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, Raw>()? {
            entries.push((key, value));
        }
        Ok(Raw::Map(entries))
    }
}
