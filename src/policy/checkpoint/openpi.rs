//! openpi's side files: `assets/<asset_id>/norm_stats.json` (spec/PI05.md §11.4).

use std::path::{Path, PathBuf};

use super::{
    error::CheckpointError,
    folder,
    json::{Field, SideFile},
    norm,
};
use crate::{
    policy::statistics::{FeatureStats, NormMode, Statistics},
    printable::printable,
};

/// Name of the file, in the folder of its asset.
pub(super) const NORM_STATS: &str = "norm_stats.json";
/// Folder of the assets.
pub(super) const ASSETS: &str = "assets";
/// openpi's epsilon (spec/PI05.md §3.1).
pub(super) const EPS: f64 = 1e-6;

/// The statistics of `asset_id`, or the only ones there are; `None` if there are none and none were asked for.
pub(super) fn statistics(
    folder: &Path,
    asset_id: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<Option<Statistics>, CheckpointError> {
    let Some(path) = find(folder, asset_id)? else { return Ok(None) };
    let Some(file) = SideFile::read(&path)? else { return Ok(None) };
    let stats = file.root().require("norm_stats", "an object of features")?;
    let state = feature(&stats.require("state", "an object of statistics")?)?;
    let action = feature(&stats.require("actions", "an object of statistics")?)?;
    norm::check(&path, "norm_stats.state", &state, notes)?;
    norm::check(&path, "norm_stats.actions", &action, notes)?;
    let mode = NormMode::Quantiles; // π0.5 in openpi: always, unless the parameters say otherwise
    Ok(Some(Statistics {
        state,
        action,
        state_mode: mode,
        action_mode: mode,
        eps: EPS,
        source: path.display().to_string(),
    }))
}

fn feature(stats: &Field<'_>) -> Result<FeatureStats, CheckpointError> {
    let mut feature = FeatureStats::default();
    for (name, values) in norm::by_name_mut(&mut feature) {
        *values = stats.get(name)?.map(|list| list.numbers()).transpose()?;
    }
    Ok(feature)
}

fn find(folder: &Path, asset_id: Option<&str>) -> Result<Option<PathBuf>, CheckpointError> {
    let assets = folder.join(ASSETS);
    if let Some(id) = asset_id {
        let Some(asset) = folder::inside(&assets, id) else {
            let problem =
                format!("asset id \"{}\" leads out of here, expected one like \"droid\"", printable(id));
            return Err(CheckpointError::file(&assets, problem));
        };
        let path = asset.join(NORM_STATS);
        if path.is_file() {
            return Ok(Some(path));
        }
        let there = listed(&assets, &all(&assets)?);
        return Err(CheckpointError::file(&path, format!("not found; statistics in this folder: {there}")));
    }
    let mut found = all(&assets)?;
    found.extend(Some(folder.join(NORM_STATS)).filter(|path| path.is_file()));
    if found.len() > 1 {
        let problem =
            format!("statistics of several robots, name the asset id of one: {}", listed(&assets, &found));
        return Err(CheckpointError::file(folder, problem));
    }
    Ok(found.pop())
}

fn all(assets: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    folder::files_below(assets, |name| name == NORM_STATS)
}

/// The asset ids of these files, for a message.
fn listed(assets: &Path, files: &[PathBuf]) -> String {
    const MAX_LISTED: usize = 20;
    if files.is_empty() {
        return "none".into();
    }
    let id = |file: &PathBuf| {
        let asset = file.parent().unwrap_or(file);
        let asset = asset.strip_prefix(assets).unwrap_or(asset).display().to_string();
        if asset.is_empty() { format!("{ASSETS}/") } else { printable(&asset) }
    };
    let more = if files.len() > MAX_LISTED { ", …" } else { "" };
    files.iter().take(MAX_LISTED).map(id).collect::<Vec<_>>().join(", ") + more
}
