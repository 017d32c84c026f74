//! `report.html`: one file that shows what a replay did, to be opened by hand, offline, years later.
//!
//! Promises a self-contained page (a content security policy in it forbids every request), of bounded size, in which
//! text from the recording is text whatever it contains. Called by `replay`. Tables and pictures are plain HTML, so
//! that they can be read without a script; `report.js` draws the plots from the embedded `Drawing`.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;

use super::drawing::Drawing;
use super::recording::{ChunkRecord, Recording};
use super::summary::{JointSummary, Latency, Level, Summary, summary};
use crate::clock::NS_PER_S;

const TEMPLATE: &str = include_str!("report.html");
const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");

/// Most chunks whose pictures are shown.
const MAX_SEEN: usize = 24;
/// Pictures are thinned until their base64 together is no longer than this.
const MAX_SEEN_BYTES: usize = 1_200_000;
/// The pictures were made for a model, not for a gallery.
const JPEG_QUALITY: u8 = 72;

/// The report of a replay: a whole HTML document.
pub fn render(recording: &Recording) -> String {
    let summary = summary(recording);
    let drawing = Drawing::new(recording);
    let strip = Strip::new(recording);
    let mut remarks = drawing.remarks.clone();
    remarks.extend(strip.remark());
    fill(
        TEMPLATE,
        &[
            ("title", &escape(bag_name(&summary.bag))),
            ("style", STYLE),
            ("level", level_class(summary.level)),
            ("level_word", level_word(summary.level)),
            ("verdict", &escape(&summary.verdict)),
            ("notes", &notes(&summary)),
            ("facts", &facts(&summary)),
            ("tiles", &tiles(&summary)),
            ("joint_rows", &joint_rows(&summary.joints)),
            ("latency_rows", &latency_rows(&summary)),
            ("strip", &strip.html(recording)),
            ("camera_rows", &camera_rows(&summary)),
            ("counter_rows", &counter_rows(&summary)),
            ("remarks", &remarks_html(&remarks)),
            ("data", &json_for_script(&drawing)),
            ("script", SCRIPT),
        ],
    )
}

/// Puts values into the template's `{{name}}` slots, in one pass: what a value contains is never looked at again.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(template.len() + values.iter().map(|(_, v)| v.len()).sum::<usize>());
    let mut rest = template;
    while let Some((before, from_slot)) = rest.split_once("{{") {
        out.push_str(before);
        let (name, after) = from_slot.split_once("}}").unwrap_or((from_slot, ""));
        if let Some((_, value)) = values.iter().find(|(n, _)| *n == name) {
            out.push_str(value);
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Text that is text between tags and inside quoted attributes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// JSON that nothing inside a `<script>` element can end or reinterpret. Outside strings JSON has none of these
/// characters, and inside strings their escapes mean the same.
fn json_for_script(drawing: &Drawing) -> String {
    let json = serde_json::to_string(drawing).unwrap_or_else(|_| "null".to_owned());
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

fn bag_name(bag: &str) -> &str {
    bag.trim_end_matches('/').rsplit('/').next().unwrap_or(bag)
}

fn level_class(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Attention => "attention",
        Level::Violation => "violation",
    }
}

fn level_word(level: Level) -> &'static str {
    match level {
        Level::Ok => "✓ OK",
        Level::Attention => "! Look here",
        Level::Violation => "✕ Limits violated",
    }
}

fn notes(s: &Summary) -> String {
    if s.notes.is_empty() {
        return String::new();
    }
    let items: String = s.notes.iter().map(|note| format!("<li>{}</li>", escape(note))).collect();
    format!("<ul class=\"notes\">{items}</ul>")
}

fn facts(s: &Summary) -> String {
    let rates = format!("policy {} Hz, control {} Hz", plain(s.policy_rate_hz), plain(s.rate_hz));
    [
        ("Prompt", s.prompt.as_str()),
        ("Bag", &s.bag),
        ("Checkpoint", &s.checkpoint),
        ("Engine", &s.engine),
        ("Robot", &s.robot),
        ("Rates", &rates),
    ]
    .iter()
    .map(|(name, value)| format!("<div><dt>{name}</dt><dd>{}</dd></div>", escape(value)))
    .collect()
}

fn tiles(s: &Summary) -> String {
    let latency = &s.timings.stages.total;
    let per_tick = |n: u64| format!("{} of {} ticks", share(n, s.ticks), s.ticks);
    let spread = |name: &str, value: Option<f64>, unit: &str| match value {
        Some(v) => format!("{name} {}{unit}", plain(v)),
        None => "no chunk".to_owned(),
    };
    [
        ("Duration", with_unit(Some(s.duration_s), 2, "s"), format!("{} ticks", s.ticks)),
        ("Chunks", s.chunks.to_string(), format!("{} followed", s.chunks_followed)),
        (
            "Inference, median",
            with_unit(latency.p50_ms, 1, "ms"),
            format!("99th percentile {}", with_unit(latency.p99_ms, 1, "ms")),
        ),
        (
            "Delay in bag time",
            with_unit(s.delay_ms.p50, 0, "ms"),
            spread("at most", s.dropped_steps.max, " steps dropped"),
        ),
        (
            "Longest gap",
            with_unit(s.longest_gap_s.map(|gap| gap * 1e3), 0, "ms"),
            "between two commands".to_owned(),
        ),
        ("Limited", s.limited.ticks.to_string(), per_tick(s.limited.ticks)),
        ("Resting", s.resting_ticks.to_string(), per_tick(s.resting_ticks)),
        (
            "Violations",
            (s.violations.position + s.violations.velocity).to_string(),
            format!("{} position, {} speed", s.violations.position, s.violations.velocity),
        ),
    ]
    .iter()
    .map(|(name, value, detail)| {
        format!("<div class=\"tile\"><dt>{name}</dt><dd>{value}<small>{detail}</small></dd></div>")
    })
    .collect()
}

fn joint_rows(joints: &[JointSummary]) -> String {
    let mut out = String::new();
    for joint in joints {
        let violations = joint.violations.position + joint.violations.velocity;
        let use_of_speed = joint.velocity_peak.map(|v| v / joint.velocity_max * 100.0);
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "<tr{}><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td class=\"bar\"><span style=\"width:{:.0}%\"></span>{}</td><td>{violations}</td></tr>",
            if violations > 0 { " class=\"bad\"" } else { "" },
            escape(&joint.name),
            range(Some(joint.position_min), Some(joint.position_max)),
            range(joint.command_min, joint.command_max),
            number(Some(joint.velocity_max), 2),
            number(joint.velocity_peak, 2),
            use_of_speed.filter(|p| p.is_finite()).unwrap_or_default().clamp(0.0, 100.0),
            with_unit(use_of_speed, 0, "%"),
        );
    }
    or_empty_row(out, 7, "no joints")
}

fn latency_rows(s: &Summary) -> String {
    let t = &s.timings.stages;
    let rows: [(&str, &Latency); 6] = [
        ("encode", &t.encode),
        ("vision", &t.vision),
        ("prefix", &t.prefix),
        ("denoise", &t.denoise),
        ("decode", &t.decode),
        ("total", &t.total),
    ];
    let mut out = String::new();
    for (name, l) in rows {
        let cells = [l.mean_ms, l.p50_ms, l.p90_ms, l.p99_ms, l.max_ms];
        let cells: String = cells.iter().map(|ms| format!("<td>{}</td>", number(*ms, 2))).collect();
        let _ = write!(
            out,
            "<tr class=\"{name}\"><th scope=\"row\"><i class=\"swatch stage-{name}\"></i>{name}</th>{cells}</tr>"
        );
    }
    out
}

fn camera_rows(s: &Summary) -> String {
    let rows: String = s
        .cameras
        .iter()
        .map(|c| {
            format!(
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(&c.name),
                c.images,
                c.masked,
                number(c.age_p50_ms, 1),
                number(c.age_max_ms, 1)
            )
        })
        .collect();
    or_empty_row(rows, 5, "no cameras")
}

fn counter_rows(s: &Summary) -> String {
    let rows: String = s
        .counters
        .iter()
        .map(|(name, n)| format!("<tr><th scope=\"row\">{}</th><td>{n}</td></tr>", escape(name)))
        .collect();
    or_empty_row(rows, 2, "nothing was counted")
}

fn or_empty_row(rows: String, columns: usize, text: &str) -> String {
    if rows.is_empty() {
        format!("<tr><td class=\"none\" colspan=\"{columns}\">{text}</td></tr>")
    } else {
        rows
    }
}

fn remarks_html(remarks: &[String]) -> String {
    if remarks.is_empty() {
        return "<p>Every sample is drawn.</p>".to_owned();
    }
    let items: String = remarks.iter().map(|remark| format!("<li>{}</li>", escape(remark))).collect();
    format!("<p>Reduced for drawing; the tables are of every sample.</p><ul>{items}</ul>")
}

/// What the model saw: some chunks' pictures, encoded.
struct Strip<'a> {
    columns: Vec<(&'a ChunkRecord, Vec<Picture>)>,
    recorded: usize,
}

enum Picture {
    Masked,
    /// Its bytes are not `[side, side, 3]`.
    Unreadable,
    /// Base64.
    Jpeg(String),
}

impl<'a> Strip<'a> {
    fn new(recording: &'a Recording) -> Self {
        let seen: Vec<&ChunkRecord> = recording.chunks.iter().filter(|c| c.seen.is_some()).collect();
        let every = seen.len().div_ceil(MAX_SEEN).max(1);
        let pictures = |chunk: &'a ChunkRecord| {
            let slots = chunk.seen.iter().flatten();
            (chunk, slots.map(|pixels| picture(pixels.as_deref(), chunk.seen_side)).collect())
        };
        let mut columns: Vec<(&ChunkRecord, Vec<Picture>)> =
            seen.iter().copied().step_by(every).map(pictures).collect();
        let size = |columns: &[(&ChunkRecord, Vec<Picture>)]| -> usize {
            let of = |p: &Picture| if let Picture::Jpeg(base64) = p { base64.len() } else { 0 };
            columns.iter().flat_map(|(_, pictures)| pictures).map(of).sum()
        };
        while columns.len() > 1 && size(&columns) > MAX_SEEN_BYTES {
            let mut keep = false;
            columns.retain(|_| {
                keep = !keep;
                keep
            });
        }
        Self { columns, recorded: seen.len() }
    }

    fn remark(&self) -> Option<String> {
        let shown = self.columns.len();
        (shown < self.recorded)
            .then(|| format!("pictures: of {shown} of the {} chunks recorded with them", self.recorded))
    }

    fn html(&self, recording: &Recording) -> String {
        if self.columns.is_empty() {
            return "<p class=\"none\">No pictures were recorded.</p>".to_owned();
        }
        let names: String =
            recording.cameras.iter().map(|name| format!("<div>{}</div>", escape(name))).collect();
        let columns: String =
            self.columns.iter().map(|(chunk, pictures)| column(recording, chunk, pictures)).collect();
        format!(
            "<div class=\"strip\" tabindex=\"0\" role=\"region\" aria-label=\"What the model saw, by time\">\
             <div class=\"slots\" aria-hidden=\"true\"><div class=\"when\"></div>{names}</div>{columns}</div>"
        )
    }
}

fn column(recording: &Recording, chunk: &ChunkRecord, pictures: &[Picture]) -> String {
    let t = chunk.observed.since(recording.start) as f64 / NS_PER_S as f64;
    let mut out = format!(
        "<div class=\"seen\" data-t=\"{t:.4}\"><button type=\"button\" class=\"when\" \
         title=\"Show this time in the plots\">{t:.2} s <span>chunk {}</span></button>",
        chunk.id
    );
    for (slot, picture) in pictures.iter().enumerate() {
        let name =
            recording.cameras.get(slot).map(|name| escape(name)).unwrap_or_else(|| format!("slot {slot}"));
        let age = chunk.image_age_ms.get(slot).copied().flatten();
        let caption = with_unit(age, 0, "ms old");
        // Writing to a String cannot fail.
        let _ = match picture {
            Picture::Jpeg(base64) => write!(
                out,
                "<figure><img alt=\"{name} at {t:.2} s\" title=\"{name}\" src=\"data:image/jpeg;base64,{base64}\">\
                 <figcaption>{caption}</figcaption></figure>"
            ),
            Picture::Masked => write!(
                out,
                "<figure class=\"masked\" title=\"{name}: masked, the model sees nothing here\"><span>masked</span>\
                 <figcaption>no image</figcaption></figure>"
            ),
            Picture::Unreadable => write!(
                out,
                "<figure class=\"masked\" title=\"{name}\"><span>unreadable</span><figcaption>{caption}</figcaption>\
                 </figure>"
            ),
        };
    }
    out.push_str("</div>");
    out
}

fn picture(pixels: Option<&[u8]>, side: u32) -> Picture {
    let Some(pixels) = pixels else { return Picture::Masked };
    if u64::from(side).pow(2).checked_mul(3) != Some(pixels.len() as u64) {
        return Picture::Unreadable;
    }
    let mut jpeg = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY);
    match { encoder }.encode(pixels, side, side, ExtendedColorType::Rgb8) {
        Ok(()) => Picture::Jpeg(BASE64_STANDARD.encode(&jpeg)),
        Err(_) => Picture::Unreadable, // no side, or more than JPEG can say
    }
}

fn share(n: u64, of: u64) -> String {
    if of == 0 { "none".to_owned() } else { format!("{:.1}\u{202f}%", n as f64 / of as f64 * 100.0) }
}

/// A dash for what cannot be told.
fn number(value: Option<f64>, decimals: usize) -> String {
    match value.filter(|v| v.is_finite()) {
        Some(v) => format!("{v:.decimals$}").replace('-', "\u{2212}"),
        None => "–".to_owned(),
    }
}

fn with_unit(value: Option<f64>, decimals: usize, unit: &str) -> String {
    match value.filter(|v| v.is_finite()) {
        Some(_) => format!("{}\u{202f}{unit}", number(value, decimals)),
        None => "–".to_owned(),
    }
}

fn range(low: Option<f64>, high: Option<f64>) -> String {
    format!("{} … {}", number(low, 3), number(high, 3))
}

/// Without zeros at the end: `50`, `33.333`.
fn plain(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::synthetic;

    /// Set `PI05_REPORT_OUT` to look at it in a browser.
    #[test]
    fn a_short_replay_fits_in_two_megabytes() {
        let html = render(&synthetic::recording(6, 2));
        assert!(html.len() < 2_000_000, "{} bytes", html.len());
        if let Some(path) = std::env::var_os("PI05_REPORT_OUT") {
            std::fs::write(path, html).unwrap();
        }
    }
}
