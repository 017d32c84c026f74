//! The command line as its users meet it: help, exit codes, one line per problem.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pi05_thor::config::Config;
use pi05_thor::engine::cuda::CudaEngine;
use pi05_thor::pipeline::setup::Setup;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

fn pi05(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pi05"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(args)
        .output()
        .unwrap()
}

/// A copy of the recorded checkpoint with this tokenizer.
fn checkpoint_with(tokenizer: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    for file in fs::read_dir("tests/data/fixtures/lerobot_ckpt").unwrap().map(Result::unwrap) {
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let name = Path::new(tokenizer).extension().unwrap();
    fs::copy(tokenizer, folder.path().join("tokenizer").with_extension(name)).unwrap();
    folder
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in ["replay", "report", "verify", "inspect", "synth", "bench"] {
        let output = pi05(&[command, "--help"]);
        assert!(output.status.success());
        let help = text(&output.stdout);
        assert!(help.contains("Example:") && help.contains(&format!("pi05 {command}")), "{help}");
    }
    assert!(text(&pi05(&["--help"]).stdout).contains("replay"));
}

#[test]
fn wrong_usage_exits_with_2() {
    for args in [
        &["juggle"][..],
        &["replay"],
        &["report"],
        &["replay", "bag", "--speed", "fast"],
        &["replay", "bag", "--speed", "-1"],
        &["replay", "bag", "--backend", "abacus"],
        &["bench", "--backend", "vision=tensorrt,prefix=cuda"],
        &["verify", "case.safetensors"],
        &["verify", "--checkpoint", "synth:tiny"],
        &["synth", "medium", "folder"],
        &["bench", "--workload", "C"],
        &["bench", "--runs", "0"],
        &["bench", "--every", "0"],
    ] {
        let output = pi05(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn what_this_version_lacks_is_refused_in_one_line() {
    for args in [
        &["bench", "--backend", "cuda", "--checkpoint", "synth:tiny"][..],
        &["bench", "--dtype", "bf16", "--checkpoint", "synth:tiny"],
        &["bench", "--streams", "pipelined", "--every", "100", "--backend", "cuda"],
        &["replay", "tests/data/bags/aloha_raw", "--backend", "tensorrt"],
        &["bench", "--backend", "vision=tensorrt,prefix=tensorrt,denoise=cuda"],
        &[
            "calibrate",
            "--bag",
            "tests/data/bags/aloha_sim",
            "--backend",
            "vision=tensorrt,prefix=cuda,denoise=cuda",
        ],
        &["replay", "tests/data/bags/aloha_raw", "--checkpoint", "synth:huge"],
        &["replay", "no/such/bag"],
        &["replay", "README.md"],
        &["verify", "--checkpoint", "no/such/folder", "case.safetensors"],
    ] {
        let output = pi05(args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.starts_with("pi05: "));
    }
}

#[test]
fn inspect_shows_the_built_in_model() {
    let output = pi05(&["inspect", "--checkpoint", "synth:full"]);
    let page = text(&output.stdout);
    assert!(output.status.success(), "{page}");
    for expected in
        ["27 layers × 1152, 16 heads", "18 layers × 2048", "18 layers × 1024", "257152", "left_gripper"]
    {
        assert!(page.contains(expected), "{expected} in {page}");
    }
}

#[test]
fn inspect_names_every_problem() {
    let page = text(&pi05(&["inspect", "--checkpoint", "tests/data/fixtures/tiny"]).stdout);
    assert!(problems(&page).iter().any(|p| p.contains("no normalisation statistics")), "{page}");
    assert!(problems(&page).iter().any(|p| p.contains("no tokenizer")), "{page}");
    assert!(page.contains("camera      base_0_rgb"), "the rest is shown all the same");

    let folder = TempDir::new().unwrap();
    let config = folder.path().join("robot.yaml");
    fs::write(&config, "/**:\n  ros__parameters:\n    promt: x\n    cameras: {tail: {topic: t}}\n    control: {rate_hz: 0}\n").unwrap();
    let output = pi05(&["inspect", "--checkpoint", "no/such/folder", "--config", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let page = text(&output.stdout);
    for expected in ["promt", "prompt", "control.rate_hz", "no/such/folder"] {
        assert!(page.contains(expected), "{expected} in {page}");
    }
}

/// What an inspection calls a problem.
fn problems(page: &str) -> Vec<&str> {
    page.lines().filter_map(|line| line.strip_prefix("PROBLEM     ")).collect()
}

/// The parameters of a robot of so many joints.
fn robot_of(joints: usize) -> String {
    let list = |value: &str| format!("[{}]", vec![value; joints].join(", "));
    let names: Vec<String> = (0..joints).map(|i| format!("j{i}")).collect();
    format!(
        "/**:\n  ros__parameters:\n    robot: generic\n    cameras: {{base_0_rgb: {{topic: c}}}}\n    joints:\n      names: [{}]\n      \
         position_min: {}\n      position_max: {}\n      velocity_max: {}\n      acceleration_max: {}\n",
        names.join(", "),
        list("-1.0"),
        list("1.0"),
        list("1.0"),
        list("5.0")
    )
}

/// The LeRobot fixture with a tokenizer and the parameters of a robot that it fits.
fn whole_folder() -> (TempDir, String) {
    let folder = checkpoint_with("tests/data/fixtures/data/tiny_tokenizer.model");
    let config = folder.path().join("robot.yaml");
    // Its network reads few tokens.
    let short = "    prompt: a\n    policy.prompt_format: task\n";
    fs::write(&config, robot_of(7) + short).unwrap();
    (folder, config.to_str().unwrap().to_owned())
}

#[test]
fn inspect_of_a_whole_folder_finds_it_can_run() {
    let (folder, config) = whole_folder();
    let output =
        pi05(&["inspect", "--checkpoint", folder.path().to_str().unwrap(), "--config", config.as_str()]);
    assert!(output.status.success(), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("LeRobot"));
}

/// Replaces text of a side file that must be there.
fn edit(folder: &TempDir, file: &str, from: &str, to: &str) {
    let path = folder.path().join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    fs::write(path, text.replace(from, to)).unwrap();
}

/// What `inspect` says of a folder and these parameters.
fn inspected(folder: &TempDir, config: &str) -> String {
    text(&pi05(&["inspect", "--checkpoint", folder.path().to_str().unwrap(), "--config", config]).stdout)
}

#[test]
fn as_many_denoise_steps_run_as_the_parameters_say_else_the_checkpoint_else_ten() {
    let (folder, path) = whole_folder();
    let robot = fs::read_to_string(&path).unwrap();
    let run = |sampler: &str| {
        fs::write(&path, format!("{robot}    sampler: {{{sampler}}}\n")).unwrap();
        let mut config = Config::from_file(Path::new(&path)).unwrap();
        config.checkpoint = folder.path().to_str().unwrap().to_owned();
        let inference = Setup::open(&config).unwrap().load(&config, |_, _| {}).unwrap();
        let page = inspected(&folder, &path);
        let line = page.lines().find_map(|line| line.strip_prefix("sampler     ")).unwrap().to_owned();
        (inference.sampler.steps, line)
    };
    edit(&folder, "config.json", "\"num_inference_steps\": 10", "\"num_inference_steps\": 5");
    for sampler in ["seed: 0", "steps: 0"] {
        let (steps, line) = run(sampler);
        assert_eq!(steps, 5);
        assert!(line.starts_with("5 steps, as the checkpoint's num_inference_steps says;"), "{line}");
    }
    let (steps, line) = run("steps: 10");
    assert_eq!(steps, 10, "what is said is meant, though it is the number where nobody says any");
    assert!(line.starts_with("10 steps, as sampler.steps says; the checkpoint's num_inference_steps: 5"));
    edit(&folder, "config.json", "num_inference_steps", "nothing");
    let (steps, line) = run("seed: 0");
    assert_eq!(steps, 10);
    assert!(line.starts_with("10 steps, as neither sampler.steps nor the checkpoint says"), "{line}");
}

#[test]
fn a_prompt_that_lerobot_would_cut_is_said_to_be_too_long() {
    let (folder, config) = whole_folder();
    edit(&folder, "config.json", "\"tokenizer_max_length\": 24", "\"tokenizer_max_length\": 200");
    edit(&folder, "policy_preprocessor.json", "\"max_length\": 24", "\"max_length\": 200");
    let robot = robot_of(7);
    fs::write(&config, format!("{robot}    prompt: pick up the cube and put it into the bowl\n")).unwrap();
    let page = inspected(&folder, &config);
    assert!(page.contains("of 200 tokens") && !page.contains("note "), "{page}");
    edit(&folder, "policy_preprocessor.json", "\"max_length\": 200", "\"max_length\": 30");
    let page = inspected(&folder, &config);
    assert!(page.contains("; 30 prompt tokens\n"), "{page}");
    let notes: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("note        ")).collect();
    let ([cut], [prompt]) = (notes.as_slice(), &problems(&page)[..]) else { panic!("{page}") };
    assert!(cut.contains("to 30 tokens") && cut.contains("config.json to 200"), "{cut}");
    assert!(prompt.contains("pick up the cube") && prompt.contains("30"), "{prompt}");
}

#[test]
fn a_step_of_lerobots_that_does_not_run_here_is_shown_and_logged_and_no_reason_to_refuse() {
    let (folder, config) = whole_folder();
    edit(&folder, "policy_preprocessor.json", "\"steps\": [", "\"steps\": [{\"registry_name\": \"crop\"},");
    let page = inspected(&folder, &config);
    let said = "policy_preprocessor.json: step 0 (crop) is not known here and does not run";
    assert!(page.contains(&format!("note        {said}")) && page.ends_with("it can run\n"), "{page}");
    let checkpoint = folder.path().to_str().unwrap();
    let bag = "tests/data/bags/aloha_sim";
    // The bag is another robot's, which is refused afterwards.
    let output = pi05(&["steps", "--checkpoint", checkpoint, "--config", &config, "--bag", bag]);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("WARN") && stderr.contains(said), "{stderr}");
}

#[test]
fn inspect_says_which_actions_are_relative() {
    let (folder, config) = whole_folder();
    for list in ["policy_preprocessor.json", "policy_postprocessor.json"] {
        edit(&folder, list, "\"enabled\": false", "\"enabled\": true");
    }
    // No name, and so none with the word that would be left out.
    assert!(inspected(&folder, &config).contains("actions     all relative to the state"));
    edit(
        &folder,
        "policy_preprocessor.json",
        "\"action_names\": null",
        "\"action_names\": [\"a\", \"gripper\"]",
    );
    assert!(inspected(&folder, &config).contains("actions     relative to the state, but for gripper"));
}

#[test]
fn inspect_asks_about_units_where_actions_range_far_beyond_a_position_s_limits() {
    let (folder, config) = whole_folder();
    let yaml = fs::read_to_string(&config).unwrap();
    let asked = |lines: &str, limit: &str| {
        let wide = |sign: &str| format!("[{sign}{limit}{}]", format!(", {sign}1000.0").repeat(6));
        let limits = |yaml: &str, sign: &str, name: &str| {
            let before = format!("{name}: [{sign}1.0{}]", format!(", {sign}1.0").repeat(6));
            yaml.replace(&before, &format!("{name}: {}", wide(sign)))
        };
        let yaml = limits(&limits(&yaml, "-", "position_min"), "", "position_max");
        fs::write(&config, format!("{yaml}{lines}")).unwrap();
        let output = pi05(&["inspect", "--checkpoint", folder.path().to_str().unwrap(), "--config", &config]);
        assert!(output.status.success(), "a question is no refusal: {}", text(&output.stdout));
        let asks = |line: &&str| line.starts_with("note  ") && line.ends_with("other units?");
        text(&output.stdout).lines().filter(asks).map(str::to_owned).collect::<Vec<_>>()
    };
    let relative_first = |is: bool| format!("    policy.delta_mask: [{is}{}]\n", ", false".repeat(6));
    let absolute = &relative_first(false);
    let [line] = &asked(absolute, "0.001")[..] else { panic!("one joint of the seven") };
    assert!(
        line.contains("actions of joint j0 range from") && line.contains("limits from -0.001 to 0.001"),
        "{line}"
    );
    assert!(asked(absolute, "1000.0").is_empty());
    assert!(asked(&relative_first(true), "0.001").is_empty(), "relative");
    let velocity = "    joints.velocity_controlled: [true, false, false, false, false, false, false]\n";
    assert!(asked(&format!("{velocity}{absolute}"), "0.001").is_empty(), "a velocity");
}

#[test]
fn inspect_refuses_the_prompt_that_the_node_refuses() {
    let (folder, config) = whole_folder();
    let yaml = fs::read_to_string(&config).unwrap();
    fs::write(&config, yaml.replace("prompt: a", &format!("prompt: {}", "zebra ".repeat(150)))).unwrap();
    let output = pi05(&["inspect", "--checkpoint", folder.path().to_str().unwrap(), "--config", &config]);
    let page = text(&output.stdout);
    assert!(problems(&page).iter().any(|p| p.contains("tokens together with the state")), "{page}");
    assert!(page.ends_with("it could not run\n"), "{page}");
}

#[test]
fn inspect_says_of_a_broken_side_file_what_is_true_and_no_more() {
    const STATE: &str = "policy_preprocessor_step_3_normalizer_processor.safetensors";
    for broken in ["policy_preprocessor.json", STATE] {
        let (folder, config) = whole_folder();
        fs::write(folder.path().join(broken), "nonsense").unwrap();
        // A name that the broken steps may give to a camera.
        let yaml = fs::read_to_string(&config).unwrap();
        let named = if broken == STATE { "base_0_rgb" } else { "top" };
        fs::write(&config, yaml.replace("base_0_rgb", named)).unwrap();
        let output = pi05(&["inspect", "--checkpoint", folder.path().to_str().unwrap(), "--config", &config]);
        let page = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(problems(&page).len(), 1, "{page}");
        assert!(problems(&page)[0].contains(broken), "{page}");
    }
}

#[test]
fn inspect_conceals_no_problem_behind_another() {
    let page = text(&pi05(&["inspect", "--checkpoint", "tests/data/fixtures/lerobot_ckpt"]).stdout);
    let problems = problems(&page);
    for expected in
        ["no tokenizer", "14 action values, the model gives 8", "state statistic", "action statistic"]
    {
        assert_eq!(problems.iter().filter(|p| p.contains(expected)).count(), 1, "{expected} in {page}");
    }
}

#[test]
fn inspect_finds_what_keeps_the_engine_from_running() {
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("robot.yaml");
    let inspect = |line: &str| {
        let yaml = format!("/**:\n  ros__parameters:\n    robot: aloha\n    {line}\n");
        fs::write(&config, yaml).unwrap();
        let output = pi05(&["inspect", "--checkpoint", "synth:tiny", "--config", config.to_str().unwrap()]);
        let page = text(&output.stdout);
        assert_eq!(output.status.success(), problems(&page).is_empty(), "{page}");
        page
    };
    assert!(problems(&inspect("backend: auto")).is_empty());
    for (line, expected) in [
        ("dtype: fp8", "calibration"),
        ("recipe: nope", "recipe \"nope\""),
        (&format!("prompt: {}", "a".repeat(4097)), "4097 bytes"),
    ] {
        let page = inspect(line);
        assert!(problems(&page).iter().any(|p| p.contains(expected)), "{page}");
        assert!(page.ends_with("it could not run\n"), "{page}");
    }
    // A checkpoint for another machine than this is well, and said to be.
    let page = inspect("backend: cuda");
    match CudaEngine::missing() {
        Some(_) => {
            assert!(problems(&page)[0].starts_with("on this machine: backend cuda"), "{page}");
            assert!(page.ends_with("it could not run on this machine\n"), "{page}");
        }
        None => assert!(problems(&page).is_empty(), "{page}"),
    }
}

#[test]
fn an_interrupted_synth_leaves_nothing_behind() {
    let folder = TempDir::new().unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_pi05"))
        .args(["synth", "full", folder.path().to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let weights = || {
        let mut files = fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().metadata());
        files.any(|file| file.is_ok_and(|file| file.len() > 1 << 20))
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !weights() {
        assert!(Instant::now() < deadline, "nothing is written");
        sleep(Duration::from_millis(1));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("interrupted") && text(&output.stderr).lines().count() == 1);
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
}

#[test]
fn synth_refuses_a_robot_that_its_network_cannot_drive() {
    let folder = TempDir::new().unwrap();
    let (config, out) = (folder.path().join("robot.yaml"), folder.path().join("out"));
    fs::write(&config, robot_of(40)).unwrap();
    let output = pi05(&["synth", "tiny", out.to_str().unwrap(), "--config", config.to_str().unwrap()]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("40 action values, the model gives 32") && stderr.lines().count() == 1,
        "{stderr}"
    );
    assert!(!out.exists());
}

#[test]
fn bench_prints_json() {
    let output = pi05(&["bench", "--checkpoint", "synth:tiny", "--workload", "A", "--runs", "2", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(results["workload"], "A");
    let total = results["total_ms"]["p50"].as_f64().unwrap();
    let stages = ["vision_ms", "prefix_ms", "denoise_ms"].map(|s| results[s]["p99"].as_f64().unwrap());
    assert!(stages.iter().all(|&ms| ms > 0.0) && stages.iter().sum::<f64>() >= 0.99 * total, "{results}");
    assert!(results["ratio_to_roofline"].as_f64().unwrap() > 0.1);
}

#[test]
fn bench_control_measures_idle_and_loaded_and_finds_no_allocation() {
    let output = pi05(&["bench", "control", "--seconds", "0.2", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = results["punctuality"].as_array().unwrap();
    let periods: Vec<_> =
        rows.iter().map(|row| (row["loaded"].as_bool(), row["period_ms"].as_i64())).collect();
    let expected = [false, true].map(|loaded| [1, 2, 4, 20].map(|ms| (Some(loaded), Some(ms))));
    assert_eq!(periods, expected.concat());
    for row in rows {
        // What was skipped counts as well: a loaded machine may be late, and says so.
        let ticks = row["ticks"].as_i64().unwrap() + row["overruns"].as_i64().unwrap();
        assert!(ticks >= 200 / row["period_ms"].as_i64().unwrap(), "{row}");
        assert!(row["late_us"]["p999"].as_f64().unwrap() <= row["late_us"]["max"].as_f64().unwrap(), "{row}");
    }
    // Five modes of execution, without and with limited jerk.
    let modes = results["tick"].as_array().unwrap();
    assert_eq!(modes.len(), 10, "{modes:?}");
    for mode in modes {
        assert!(mode["allocator_calls"] == 0 && mode["ticks"] == 200_000, "{mode}");
        assert!(
            mode["best_us"]["p999"].as_f64().unwrap() <= mode["work_us"]["p999"].as_f64().unwrap(),
            "{mode}"
        );
    }
    let said = results["granted"].as_str().unwrap().contains("not permitted");
    assert_eq!(results["warning"].is_string(), said, "{results}");
}

#[test]
fn a_reader_that_leaves_changes_no_verdict() {
    for (checkpoint, code) in [("synth:tiny", 0), ("tests/data/fixtures/tiny", 1)] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pi05"))
            .args(["inspect", "--checkpoint", checkpoint])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(code), ""), "{checkpoint}");
    }
}

#[test]
fn libraries_are_heard_only_when_asked_and_a_file_gets_no_colours() {
    let folder = checkpoint_with("tests/data/tiny_tokenizer.json");
    let logged = |asked: Option<&str>| {
        let mut pi05 = Command::new(env!("CARGO_BIN_EXE_pi05"));
        pi05.args(["inspect", "--checkpoint"]).arg(folder.path()).env_remove("RUST_LOG");
        text(&pi05.envs(asked.map(|level| ("RUST_LOG", level))).output().unwrap().stderr)
    };
    assert_eq!(logged(None), "");
    let asked = logged(Some("info"));
    assert!(asked.contains("INFO") && !asked.contains('\u{1b}'), "{asked:?}");
}
