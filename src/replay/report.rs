//! `report.html`: one file that shows what a replay did, to be opened by hand, offline, years later.
//!
//! Promises a self-contained page (a content security policy in it forbids every request), of bounded size, in which
//! text from the recording is text whatever it contains. Called by `replay`. Tables and pictures are plain HTML, so
//! that they can be read without a script; `report.js` draws the plots from the embedded `Drawing`.

use std::fmt::Write;

use super::camera_strip::CameraStrip;
use super::drawing::Drawing;
use super::recording::Recording;
use super::summary::{JointSummary, Latency, Level, Summary, summary};

const TEMPLATE: &str = include_str!("report.html");
const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The report of a replay: a whole HTML document.
pub fn render(recording: &Recording) -> String {
    let summary = summary(recording);
    let drawing = Drawing::new(recording);
    let strip = CameraStrip::new(recording);
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
pub(super) fn escape(text: &str) -> String {
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
    bag.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("replay")
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
    let (policy_rate, rate) = (hertz(s.policy_rate_hz), hertz(s.rate_hz));
    [
        ("Prompt", s.prompt.as_str()),
        ("Bag", &s.bag),
        ("Checkpoint", &s.checkpoint),
        ("Engine", &s.engine),
        ("Robot", &s.robot),
        ("Policy rate", &policy_rate),
        ("Control rate", &rate),
    ]
    .iter()
    .filter(|(_, value)| !value.is_empty())
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
        return format!("<p>pi05 {VERSION}. Every sample is drawn.</p>");
    }
    let items: String = remarks.iter().map(|remark| format!("<li>{}</li>", escape(remark))).collect();
    format!("<p>pi05 {VERSION}. Reduced for drawing; the tables are of every sample.</p><ul>{items}</ul>")
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

/// A number with its unit, kept on one line.
pub(super) fn with_unit(value: Option<f64>, decimals: usize, unit: &str) -> String {
    match value.filter(|v| v.is_finite()) {
        Some(_) => format!("{}\u{202f}{unit}", number(value, decimals)),
        None => "–".to_owned(),
    }
}

fn range(low: Option<f64>, high: Option<f64>) -> String {
    format!("{} … {}", number(low, 3), number(high, 3))
}

fn hertz(rate: f64) -> String {
    if rate > 0.0 { plain(rate) + " Hz" } else { String::new() }
}

/// Without zeros at the end: `50`, `33.333`.
fn plain(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::clock::Stamp;
    use crate::replay::recording::{CommandSample, JointInfo};
    use crate::replay::synthetic;

    /// Renders, checks what every page must keep, and returns it with the data that its script will read.
    /// Set `PI05_REPORT_OUT` to a folder to look at the pages in a browser.
    fn page(name: &str, recording: &Recording) -> (String, Value) {
        let html = render(recording);
        if let Some(folder) = std::env::var_os("PI05_REPORT_OUT") {
            std::fs::write(std::path::Path::new(&folder).join(format!("{name}.html")), &html).unwrap();
        }
        let (_, data) = html.split_once("<script type=\"application/json\" id=\"data\">").unwrap();
        let (data, after) = data.split_once("</script>").unwrap();
        assert_eq!(after.matches("<script>").count(), 1, "the page's own script and nothing else");
        assert!(after.trim_end().ends_with("</html>"));
        assert!(!html.contains("http://") && !html.contains("https://"), "needs the network");
        let data = serde_json::from_str(data).unwrap();
        (html, data)
    }

    #[test]
    fn a_short_replay_fits_in_two_megabytes() {
        let recording = synthetic::recording(6, 1);
        let (html, data) = page("short", &recording);
        assert!(html.len() < 2_000_000, "{} bytes", html.len());
        assert!(html.contains("commands inside limits"));
        assert_eq!(data["commanded"]["t"].as_array().unwrap().len(), recording.commands.len());
        assert_eq!(data["commanded"]["lo"].as_array().unwrap().len(), 14);
    }

    #[test]
    fn ten_minutes_stay_usable_and_say_that_they_are_reduced() {
        let (html, data) = page("long", &synthetic::recording(600, 100));
        assert!(html.len() < 5_000_000, "{} bytes", html.len());
        assert!(html.contains("commands: 59988 samples are drawn as smallest and greatest of 15 at a time"));
        assert_eq!(data["commanded"]["t"].as_array().unwrap().len(), 4000);
    }

    #[test]
    fn text_stays_text() {
        let evil =
            "</script><script>alert(1)</script>\u{2028}<!--\"'><img src=x onerror=alert(2)>{{data}}&lt;";
        let mut recording = synthetic::recording(1, 3);
        for text in [
            &mut recording.bag,
            &mut recording.checkpoint,
            &mut recording.engine,
            &mut recording.robot,
            &mut recording.prompt,
            &mut recording.cameras[1],
            &mut recording.joints[3].name,
        ] {
            *text = evil.to_owned();
        }
        recording.counters.insert(evil.to_owned(), 1);
        recording.notes.push(evil.to_owned());
        let (html, data) = page("hostile", &recording);
        assert!(!html.contains("<script>alert") && !html.contains("<img src=x") && !html.contains("<!--"));
        assert_eq!(data["joints"][3]["name"], evil, "the script reads the very name");
        assert_eq!(html.matches("id=\"data\"").count(), 1, "no value is a template");
        assert!(!html.contains("\u{2028}<!"), "text is escaped");
    }

    #[test]
    fn what_is_not_a_number_is_null() {
        let mut recording = synthetic::recording(2, 0);
        let bad = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        for (i, bad) in bad.into_iter().enumerate() {
            recording.commands[50 + i].values[0] = bad;
            recording.measured[10 + i].positions[0] = bad;
            recording.chunks[3].actions[20 + i][0] = bad;
            recording.chunks[4 + i].timings.vision_ms = bad;
            recording.chunks[4 + i].image_age_ms[0] = Some(bad);
        }
        recording.joints[1].position_max = f64::INFINITY;
        recording.joints[2].velocity_max = f64::NAN;
        recording.commands[60].values.truncate(5);
        recording.policy_rate_hz = f64::NAN;
        recording.rate_hz = 0.0;
        let (html, data) = page("not_numbers", &recording);
        assert_eq!(data["commanded"]["lo"][0][50], Value::Null);
        assert_eq!(data["commanded"]["lo"][5][60], Value::Null, "a missing value");
        assert_eq!(data["measured"]["lo"][0][11], Value::Null);
        assert_eq!(data["joints"][1]["max"], Value::Null);
        assert!(html.contains("OUTSIDE limits"));
    }

    #[test]
    fn nothing_makes_a_page_too() {
        let (html, data) = page("empty", &Recording::default());
        assert!(html.contains("0 ticks, 0 chunks, 0 rejected, nothing commanded"));
        assert_eq!(data["end"], 0.0);

        let mut recording = synthetic::recording(2, 0);
        recording.chunks.clear();
        page("no_chunks", &recording);
        recording.commands.clear();
        recording.measured.clear();
        page("no_commands", &recording);
    }

    #[test]
    fn any_robot_has_a_page() {
        let joint = |name: &str| JointInfo {
            name: name.to_owned(),
            position_min: -1.0,
            position_max: 1.0,
            velocity_max: 1.0,
            is_velocity: false,
        };
        let command = |k: i64| CommandSample {
            stamp: Stamp(k * 20_000_000),
            values: vec![0.4, (k as f64 / 20.0).sin()],
            chunk: 0,
            resting: false,
            limited: false,
        };
        let recording = Recording {
            bag: "one_arm.mcap".to_owned(),
            end: Stamp(2_000_000_000),
            rate_hz: 50.0,
            joints: vec![
                joint("slider"),
                joint("a_joint_with_a_name_that_is_longer_than_any_reasonable_name"),
            ],
            commands: (0..100).map(command).collect(),
            ..Recording::default()
        };
        let (html, data) = page("one_arm", &recording);
        assert!(html.contains("<h1>one_arm.mcap</h1>"));
        assert_eq!(data["measured"]["lo"][0].as_array().unwrap().len(), 0, "never measured");
    }

    #[test]
    fn slots_are_filled_once_and_in_one_pass() {
        assert_eq!(fill("a{{x}}b{{y}}c{{z}}d", &[("x", "{{y}}"), ("y", "2")]), "a{{y}}b2cd");
    }
}
