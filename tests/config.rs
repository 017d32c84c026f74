//! Parameter files: what is taken, what is refused and in which words, and that the shipped files say what the table says.

#![allow(clippy::unwrap_used, clippy::panic)] // in functions that the tests share

use std::path::PathBuf;

use pi05_thor::config::parameters::{self, Change, DefaultValue, Kind, Range, TABLE};
use pi05_thor::config::{
    AutoBool, Backend, CommandType, Config, ConfigError, Execution, FILE_MAX, PromptFormatChoice, RobotKind,
    builtin_yaml,
};
use pi05_thor::control::{ControlMode, Scheduler};

const ROBOTS: [RobotKind; 4] = [RobotKind::Aloha, RobotKind::Droid, RobotKind::Libero, RobotKind::Generic];

/// A file with these parameters, one per line, for the node in any namespace.
fn file(lines: &str) -> String {
    let indented: Vec<String> = lines.lines().map(|line| format!("    {line}")).collect();
    format!("/**:\n  ros__parameters:\n{}\n", indented.join("\n"))
}

fn parse(lines: &str) -> Result<Config, ConfigError> {
    Config::from_yaml(&file(lines), "robot.yaml")
}

fn refusal(lines: &str) -> String {
    parse(lines).unwrap_err().to_string()
}

#[test]
fn every_shipped_file_is_a_whole_configuration() {
    for robot in ROBOTS {
        let config = Config::builtin(robot).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(config.robot, robot);
        let control = config.control_config(50).unwrap();
        assert_eq!(control.limits.as_slice().len(), config.joints.action_names.len());
        Scheduler::new(control).unwrap();
        // Read from disk, it is the same.
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("config/{}.yaml", robot.name()));
        assert_eq!(Config::from_file(&path).map(|c| c.robot).unwrap(), robot);
    }
    let aloha = Config::builtin(RobotKind::Aloha).unwrap();
    assert_eq!(aloha.joints.names.len(), 14);
    assert_eq!(
        aloha.cameras.iter().map(|c| c.slot.as_str()).collect::<Vec<_>>(),
        ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"]
    );
    assert_eq!(aloha.measured_index()[13], Some(13));
    let droid = Config::builtin(RobotKind::Droid).unwrap().control_config(15).unwrap();
    let modes: Vec<_> = droid.limits.as_slice().iter().map(|l| l.mode).collect();
    assert_eq!(modes[..7], [ControlMode::Velocity; 7]);
    assert_eq!(modes[7], ControlMode::Position);
    let libero = Config::builtin(RobotKind::Libero).unwrap();
    assert_eq!((libero.joints.names.len(), libero.joints.action_names.len()), (8, 7));
    assert_eq!(libero.measured_index(), [None; 7]);
    assert_eq!(libero.policy.prompt_format, PromptFormatChoice::Auto, "the checkpoint decides");
}

#[test]
fn a_file_says_only_what_differs_from_its_robot() {
    let config = parse("checkpoint: /data/pi05\ncontrol: {rate_hz: 250}").unwrap();
    let aloha = Config::builtin(RobotKind::Aloha).unwrap();
    assert_eq!(config.control.rate_hz, 250.0); // a whole number where a number is meant
    assert_eq!(config.checkpoint, "/data/pi05");
    assert_eq!(config.joints, aloha.joints);
    assert_eq!(config.cameras, aloha.cameras);
    assert_eq!(parse("robot: libero").unwrap().control.policy_rate_hz, 20.0);
    assert_eq!(Config::from_yaml("/**:\n  ros__parameters:\n", "x").unwrap(), aloha);
}

#[test]
fn cameras_are_those_of_the_file_in_its_order_and_an_empty_topic_leaves_one_out() {
    let config = parse(
        "cameras:\n  zebra: {topic: z}\n  observation.images.top: {topic: /top, max_age_ms: 50}\n  gone: {topic: \"\"}",
    )
    .unwrap();
    let cameras: Vec<_> =
        config.cameras.iter().map(|c| (c.slot.as_str(), c.topic.as_str(), c.max_age_ms)).collect();
    assert_eq!(cameras, [("zebra", "z", 200), ("observation.images.top", "/top", 50)]);
    assert!(refusal("cameras.one.topic: \"\"").contains("expected 1 to 8 cameras with a topic, found 0"));
    let nine: String = (0..9).map(|k| format!("cameras.c{k}.topic: t\n")).collect();
    assert!(refusal(&nine).contains("found 9 cameras"));
    assert!(refusal("cameras.one.max_age_ms: 5").contains("cameras.one.topic: expected a ROS 2 topic name"));
}

#[test]
fn naming_the_joints_means_giving_their_limits() {
    let lists = "joints.names: [a, b]\njoints.position_min: [0, -1]\njoints.position_max: [1, 1]\n\
                 joints.velocity_max: [1, 2]\njoints.acceleration_max: [1, 2]";
    let config = parse(lists).unwrap();
    assert_eq!(config.joints.action_names, ["a", "b"]);
    assert_eq!(config.joints.velocity_controlled, [false, false]);
    let text = refusal("joints.names: [a, b]");
    for limit in ["position_min", "position_max", "velocity_max"] {
        assert!(text.contains(&format!("joints.{limit}: expected a list of numbers")), "{text}");
    }
    assert_eq!(text.lines().count(), 3);
    assert!(
        refusal("robot: generic")
            .contains("joints.names: expected a list of texts, none empty, found nothing")
    );
    let short = parse(&lists.replace("velocity_max: [1, 2]", "velocity_max: [1]")).unwrap_err().to_string();
    assert_eq!(
        short,
        "robot.yaml: joints.velocity_max: expected a list of 2, one per action, found a list of 1; \
         give one for each of joints.action_names (or joints.names)"
    );
    // A robot that gives no accelerations stops from full speed within 0.2 s.
    let (given, _) = lists.rsplit_once('\n').unwrap();
    assert_eq!(parse(given).unwrap().joints.acceleration_max, [5.0, 10.0]);
    let fast = format!("joints.velocity_max: [1, {}]", 1e6);
    let fast = parse(&given.replace("joints.velocity_max: [1, 2]", &fast)).unwrap();
    assert_eq!(fast.joints.acceleration_max, [5.0, 1e6]);
    fast.control_config(50).unwrap();
    let short = refusal(&given.replace("velocity_max: [1, 2]", "velocity_max: [1]"));
    assert!(
        short.contains("joints.velocity_max: expected a list of 2") && short.lines().count() == 1,
        "{short}"
    );
    let short = refusal(&lists.replace("acceleration_max: [1, 2]", "acceleration_max: [1]"));
    assert!(
        short.contains("joints.acceleration_max: expected a list of 2, one per action, found a list of 1")
    );
    // Limits of the built-in joints can be changed one list at a time.
    let slow = format!("joints.velocity_max: {:?}", [0.5; 14]);
    assert_eq!(parse(&slow).unwrap().joints.velocity_max, [0.5; 14]);
}

#[test]
fn each_violation_is_one_line_with_parameter_expected_found_and_advice() {
    for (lines, expected) in [
        (
            "control.rate_hz: 0",
            "control.rate_hz: expected a number from 1 to 1000 [Hz], found 0; correct it or leave it out",
        ),
        (
            "control.rate_hz: .nan",
            "control.rate_hz: expected a number from 1 to 1000 [Hz], found NaN; correct it or leave it out",
        ),
        (
            "sampler.steps: 51",
            "sampler.steps: expected a whole number from 0 to 50, found 51; correct it or leave it out",
        ),
        (
            "sampler.steps: 2.5",
            "sampler.steps: expected a whole number from 0 to 50, found 2.5; correct it or leave it out",
        ),
        (
            "sampler.seed: 99999999999999999999",
            "sampler.seed: expected a whole number, found 1e20; correct it or leave it out",
        ),
        (
            "joints.max_age_ms: -1",
            "joints.max_age_ms: expected a whole number from 1 to 60000 [ms], found -1; correct it or leave it out",
        ),
        ("prompt: 7", "prompt: expected a text, found 7; put it in quotes"),
        ("prompt:", "prompt: expected a text, found nothing; correct it or leave it out"),
        ("checkpoint: [a]", "checkpoint: expected a text, found a list of 1; give one value"),
        (
            "robot: \"alhoa\\n\"",
            "robot: expected one of aloha, droid, libero, generic, found \"alhoa\\n\"; correct it or leave it out",
        ),
        (
            "joints.topic: \"a b\"",
            "joints.topic: expected a ROS 2 topic name, found \"a b\"; correct it or leave it out",
        ),
        (
            "joints.names: waist",
            "joints.names: expected a list of texts, none empty, found \"waist\"; write it as [a, b, …]",
        ),
        (
            "joints.names: [a, \"\"]",
            "joints.names: expected a list of texts, none empty, found a list of 2; correct entry 1, which is \"\"",
        ),
        (
            "joints.velocity_max: [1, .inf]",
            "joints.velocity_max: expected a list of numbers from 0.000001 to 1000000 [rad/s or m/s], \
             found a list of 2; correct entry 1, which is inf",
        ),
        (
            "control.rate_hertz: 5",
            "control.rate_hertz: expected a known parameter, found an unknown name; the nearest known one is control.rate_hz",
        ),
        (
            "rate_hz: 5",
            "rate_hz: expected a known parameter, found an unknown name; the nearest known one is control.rate_hz",
        ),
        (
            "cameras.left.topics: a",
            "cameras.left.topics: expected a known parameter, found an unknown name; \
             the nearest known one is cameras.left.topic",
        ),
        (
            "policy.delta_mask: [true]",
            "policy.delta_mask: expected a list of 14, one per action, found a list of 1; \
             give one for each of joints.action_names (or joints.names)",
        ),
        ("joints.names: []", "joints.names: expected 1 to 256 names, found 0 names; name the robot's joints"),
    ] {
        let text = refusal(lines);
        let first = text.lines().next().unwrap();
        assert_eq!(first, format!("robot.yaml: {expected}"), "for {lines}");
    }
    let twice = refusal("joints.action_names: [a, a]\njoints.names: [b]");
    assert!(twice.contains("joints.action_names: expected names that are all different, found \"a\" twice"));
    let upside_down = refusal(&format!("joints.position_min: {:?}", [9.0; 14]));
    assert!(
        upside_down
            .contains("joints.position_min: expected less than joints.position_max, found 9 for left_waist")
    );
    assert_eq!(refusal("foo: 1\nprompt: 2\nsampler.steps: -1").lines().count(), 3);
    for (group, says) in [
        ("foo: {}", "foo: expected a known parameter"),
        (
            "control.rate_hz: {}",
            "control.rate_hz: expected a number from 1 to 1000 [Hz], found an empty group",
        ),
        ("control: {rate_hz: {x: {}}}", "control.rate_hz.x: expected a known parameter"),
    ] {
        assert!(refusal(group).contains(says), "{}", refusal(group));
    }
}

#[test]
fn of_the_limits_of_a_urdf_and_of_the_parameters_the_tighter_ones_hold() {
    let folder = tempfile::tempdir().unwrap();
    let urdf = |text: &str| {
        let path = folder.path().join("robot.urdf");
        std::fs::write(&path, text).unwrap();
        format!("joints.urdf: {}", path.display())
    };
    let joints = "<joint name='left_waist' type='revolute'><limit lower='-1' upper='9' velocity='0.5'/></joint>
        <joint name='left_gripper' type='prismatic'><limit lower='0' upper='1' velocity='99' acceleration='3' jerk='40'/>
        </joint><joint name='unknown' type='revolute'><limit velocity='0'/></joint>";
    let config = parse(&urdf(&format!("<robot name='r'>{joints}</robot>"))).unwrap();
    let plain = Config::builtin(RobotKind::Aloha).unwrap();
    let (found, given) = (&config.joints, &plain.joints);
    assert_eq!((found.position_min[0], found.position_max[0]), (-1.0, given.position_max[0]));
    assert_eq!((found.velocity_max[0], found.velocity_max[6]), (0.5, given.velocity_max[6]));
    assert_eq!((found.acceleration_max[0], found.acceleration_max[6]), (given.acceleration_max[0], 3.0));
    assert_eq!((found.jerk_max[0], found.jerk_max[6]), (f64::INFINITY, 40.0));
    assert_eq!(found.position_max[1..6], given.position_max[1..6]);
    for (text, says) in [
        ("<robot/>", "which has none of joints.action_names"),
        (
            "<robot><joint name='left_waist'><limit velocity='0'/></joint></robot>",
            "velocity 0 of joint left_waist",
        ),
        (
            "<robot><joint name='left_waist'><limit lower='5' upper='9'/></joint></robot>",
            "lower limit 5 and upper limit 9 of joint left_waist, which leave nothing of its position_min -3.14158",
        ),
        // Of two limits the one that is left out is 0.
        (
            "<robot><joint name='left_waist'><limit lower='5'/></joint></robot>",
            "upper limit 0 of joint left_waist",
        ),
        ("no", "expected the path of a URDF"),
    ] {
        let refused = refusal(&urdf(text));
        assert!(refused.contains(says) && refused.lines().count() == 1, "{refused}");
    }
    assert!(refusal("joints.urdf: /no/such.urdf").contains("joints.urdf: expected the path of a URDF"));
}

#[test]
fn what_this_version_does_not_have_is_known_and_refused_in_one_line() {
    #[cfg(not(feature = "tensorrt"))]
    for backend in ["tensorrt", "vision=tensorrt,prefix=cuda,denoise=cuda"] {
        let text = refusal(&format!("backend: {backend}"));
        assert!(text.contains("--features tensorrt") && text.lines().count() == 1, "{text}");
        assert!(text.ends_with("this one runs only auto or cpu or cuda"), "{text}");
    }
    #[cfg(feature = "tensorrt")]
    for backend in ["tensorrt", "vision=cuda,prefix=cuda,denoise=tensorrt"] {
        let text = refusal(&format!("backend: {backend}\ndtype: f32"));
        assert!(text.contains("dtype: expected auto, bf16 or fp8") && text.lines().count() == 1, "{text}");
    }
    let config = parse("backend: vision=cuda,prefix=cuda,denoise=cuda\ndtype: f32").unwrap();
    assert_eq!(config.backend, Backend::Cuda);
    let config =
        parse("backend: cpu\ndtype: f32\npolicy.adapt_to_pi: true\ncontrol.command: joint_trajectory")
            .unwrap();
    assert_eq!(config.backend, Backend::Cpu);
    #[cfg(feature = "tensorrt")]
    for backend in ["tensorrt", "vision=tensorrt,prefix=cuda,denoise=tensorrt"] {
        assert_eq!(parse(&format!("backend: {backend}")).unwrap().backend.to_string(), backend);
    }
    assert_eq!(config.policy.adapt_to_pi, AutoBool::True);
    assert_eq!(config.control.command, CommandType::JointTrajectory);
    assert_eq!(config.control.execution, Execution::Latest);
    assert_eq!(parse("sampler.seed: -1").unwrap().sampler.seed, None);
    // Left out or 0, the steps are the checkpoint's; any other number means itself.
    for (lines, steps) in [("", None), ("sampler.steps: 0", None), ("sampler.steps: 10", Some(10))] {
        for robot in ROBOTS.iter().filter(|&&robot| robot != RobotKind::Generic) {
            let config = parse(&format!("robot: {}\n{lines}", robot.name())).unwrap();
            assert_eq!(config.sampler.steps, steps, "{robot}");
        }
    }
}

#[test]
fn who_names_other_joints_of_a_robot_with_velocities_says_which_are() {
    let names = r#"["a", "b"]"#;
    let limits =
        "joints.position_min: [-1.0, -1.0]\njoints.position_max: [1.0, 1.0]\njoints.velocity_max: [1.0, 1.0]";
    let lines = format!("robot: droid\njoints.names: {names}\n{limits}");
    let text = refusal(&lines);
    assert!(
        text.contains("joints.velocity_controlled: expected which actions of this droid are velocities"),
        "{text}"
    );
    parse(&format!("{lines}\njoints.velocity_controlled: [true, false]")).unwrap();
    parse(&lines.replace("droid", "aloha")).unwrap();
}

#[test]
fn a_trajectory_of_velocities_is_refused() {
    let text = refusal("robot: droid\ncontrol.command: joint_trajectory");
    assert!(text.contains("control.command: expected float64_multi_array or joint_state"), "{text}");
    assert!(text.contains("panda_joint1") && text.lines().count() == 1, "{text}");
}

#[test]
fn a_backend_that_is_not_understood_is_refused_with_what_it_lacks() {
    for (backend, says) in [
        ("vision=tensorrt,prefix=tensorrt", "found no denoise; add denoise=cuda or denoise=tensorrt"),
        ("vision=cuda,vision=cuda,denoise=cuda", "found vision twice"),
        ("vision=cpu,prefix=cuda,denoise=cuda", "expected auto, cpu, cuda, tensorrt or a list like vision="),
        ("gpu", "expected auto, cpu, cuda, tensorrt or a list like vision="),
    ] {
        let text = refusal(&format!("backend: {backend}"));
        assert!(text.contains(says) && text.lines().count() == 1, "{text}");
    }
}

#[test]
fn blocks_merge_and_the_more_specific_wins() {
    let prompt = |text: &str| Config::from_yaml(text, "x").map(|c| (c.prompt, c.sampler.steps));
    let block = |node: &str, body: &str| format!("{node}:\n  ros__parameters: {{{body}}}\n");
    let wild = block("/**", "prompt: wild, sampler.steps: 3");
    for node in ["policy", "/policy", "/ns/policy", "/**/policy", "/*/policy", "/ns/*"] {
        let own = block(node, "prompt: own");
        assert_eq!(prompt(&format!("{own}{wild}")).unwrap(), ("own".to_owned(), Some(3)), "{node} first");
        assert_eq!(prompt(&format!("{wild}{own}")).unwrap(), ("own".to_owned(), Some(3)), "{node} last");
    }
    // Nested namespaces; blocks of other nodes, whatever they say.
    let nested = "/ns:\n  policy:\n    ros__parameters: {prompt: nested}\n";
    let camera = block("/camera", "exposure: 7, prompt: no");
    assert_eq!(prompt(&format!("{nested}{camera}")).unwrap().0, "nested");
    // One single block is meant for us: nodes can be renamed.
    assert_eq!(prompt(&block("/left_arm_policy", "prompt: renamed")).unwrap().0, "renamed");
    let neither = prompt(&format!("{camera}{}", block("/arm", "a: 1"))).unwrap_err().to_string();
    assert!(
        neither.contains("no parameters for the node policy or for /** (blocks: /camera, /arm)"),
        "{neither}"
    );
    let both = format!("{}{}", block("/left/policy", "prompt: l"), block("/right/policy", "prompt: r"));
    assert!(prompt(&both).unwrap_err().to_string().contains("two nodes, /left/policy and /right/policy"));
    // What ROS 2 gives every node.
    parse("use_sim_time: true\nqos_overrides./prompt.subscription.depth: 1").unwrap();
}

#[test]
fn what_is_no_parameter_file_is_refused_in_one_line() {
    let long_name =
        format!("/**:\n  ros__parameters:\n    ? {}\n    : {{a: 1, b: 2}}\n", "x".repeat(100_000));
    let bomb =
        "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\n/**: {ros__parameters: {x: [*b,*b]}}";
    for (text, says) in [
        ("", "an empty file"),
        ("5", "5 instead of a node name"),
        ("robot: aloha", "\"aloha\" under /robot, without ros__parameters"),
        ("ros__parameters: {robot: aloha}", "without a node name"),
        ("/**: {ros__parameters: 7}", "7 under ros__parameters"),
        ("/**: {ros__parameters: {prompt: a, prompt: b}}", "the name prompt twice at line 1, column 36"),
        ("/**: {ros__parameters: {sampler.steps: 1, sampler: {steps: 2}}}", "parameter sampler.steps twice"),
        ("/**: {ros__parameters: {prompt: [}}", "line 1, column"),
        (
            "/**: {ros__parameters: {prompt: a}}\n---\n/**: {ros__parameters: {prompt: b}}",
            "a second document at line 2",
        ),
        ("a: [[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]", "limit"),
        (bomb, "a YAML anchor or alias, which ROS 2 does not take at line 1"),
        (&long_name, "longer than 256 bytes"),
        (&"# padding\n".repeat(FILE_MAX / 10 + 1), "bytes, more than"),
    ] {
        let error = Config::from_yaml(text, "robot.yaml").unwrap_err();
        let line = error.to_string();
        assert!(matches!(error, ConfigError::Malformed { .. }), "{line}");
        assert!(line.starts_with("robot.yaml: ") && line.contains(says) && !line.contains('\n'), "{line}");
        assert!(line.len() < 500, "{line}");
    }
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("latin1.yaml", Some(vec![b'#', 0xe4])),
        ("huge.yaml", Some(vec![b'#'; FILE_MAX + 1])),
        ("none.yaml", None),
    ] {
        let path = folder.path().join(name);
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let error = Config::from_file(&path).unwrap_err();
        assert!(matches!(error, ConfigError::Unreadable { .. }));
        assert!(error.to_string().contains(name));
    }
    assert!(Config::from_file(folder.path()).is_err());
}

#[test]
fn the_table_agrees_with_itself() {
    for parameter in TABLE {
        let name = parameter.name;
        assert_eq!(TABLE.iter().filter(|p| p.name == name).count(), 1, "{name} once");
        assert!(
            parameter.doc.ends_with('.') && !parameter.doc.contains('\n'),
            "{name}: a sentence on one line"
        );
        let fits = match parameter.range {
            Range::Any => true,
            Range::Integer(min, max) => parameter.kind == Kind::Integer && min < max,
            Range::Double(min, max) | Range::Above(min, max) => {
                matches!(parameter.kind, Kind::Double | Kind::DoubleArray) && min < max
            }
            Range::OneOf(_) | Range::Backend | Range::Topic => parameter.kind == Kind::String,
            Range::NotEmpty => parameter.kind == Kind::StringArray,
        };
        assert!(fits, "{name}: range of the kind");
        let value = match parameter.default {
            DefaultValue::Bool(v) => parameters::Value::Bool(v),
            DefaultValue::Integer(v) => parameters::Value::Integer(v),
            DefaultValue::Double(v) => parameters::Value::Double(v),
            DefaultValue::Text(v) => parameters::Value::String(v.to_owned()),
            DefaultValue::Empty | DefaultValue::Robot => continue,
        };
        assert!(parameter.check(&value), "{name}: default in range");
    }
    assert_eq!(parameters::find("prompt").unwrap().change, Change::Live);
    assert_eq!(parameters::find("cameras.a.b.topic").unwrap().name, "cameras.<slot>.topic");
    assert!(parameters::find("cameras..topic").is_none());
}

/// The template shows every parameter, and the comment above each is the table's. With UPDATE_CONFIG=1 the comments in
/// the files are rewritten instead.
#[test]
fn comments_in_the_shipped_files_are_those_of_the_table() {
    for robot in ROBOTS {
        let text = builtin_yaml(robot);
        let documented = with_comments(text);
        if std::env::var_os("UPDATE_CONFIG").is_some() {
            let path =
                PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("config/{}.yaml", robot.name()));
            std::fs::write(path, &documented).unwrap();
        } else {
            assert_eq!(text, documented, "config/{}.yaml: run once with UPDATE_CONFIG=1", robot.name());
        }
    }
    let template = builtin_yaml(RobotKind::Generic);
    let shown: Vec<String> = names_of_lines(template).into_iter().flatten().collect();
    for parameter in TABLE {
        let shows = |name: &String| parameters::find(name).is_some_and(|p| p.name == parameter.name);
        assert!(shown.iter().any(shows), "config/generic.yaml shows {}", parameter.name);
    }
}

/// The table of docs/ros.md. With UPDATE_CONFIG=1 it is rewritten instead.
#[test]
fn the_parameters_of_the_documentation_are_those_of_the_table() {
    const END: &str = "<!-- end of parameters -->";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/ros.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let begin = text.find("<!-- parameters:").and_then(|at| Some(at + text[at..].find('\n')? + 1)).unwrap();
    let end = text.find(END).unwrap();
    let mut documented = text[..begin].to_owned();
    documented += "| name | type | default | | meaning |\n|---|---|---|---|---|\n";
    for parameter in TABLE {
        let change = match parameter.change {
            Change::Live => "live",
            Change::Structural => "structural",
        };
        documented += &format!(
            "| `{}` | {} | {} | {change} | {} |\n",
            parameter.name,
            parameter.expected().replace('|', "\\|"),
            default_of(parameter),
            parameter.doc,
        );
    }
    documented += &text[end..];
    if std::env::var_os("UPDATE_CONFIG").is_some() {
        std::fs::write(path, documented).unwrap();
    } else {
        assert_eq!(text, documented, "docs/ros.md: run once with UPDATE_CONFIG=1");
    }
}

fn default_of(parameter: &parameters::Parameter) -> String {
    match parameter.default {
        DefaultValue::Bool(v) => v.to_string(),
        DefaultValue::Integer(v) => v.to_string(),
        DefaultValue::Double(v) => format!("{v:?}"),
        DefaultValue::Text("") | DefaultValue::Empty => "empty".to_owned(),
        DefaultValue::Text(v) => format!("`{v}`"),
        DefaultValue::Robot => "the robot's".to_owned(),
    }
}

/// For each line, the parameter that it sets, if it does: by the indentation of its keys.
fn names_of_lines(text: &str) -> Vec<Option<String>> {
    let mut path: Vec<(usize, &str)> = Vec::new();
    text.lines()
        .map(|line| {
            let indent = line.len() - line.trim_start().len();
            let (key, _) = line.trim_start().split_once(':')?;
            if key.starts_with(['#', '"', '/']) || key == "ros__parameters" {
                return None;
            }
            path.retain(|&(outer, _)| outer < indent);
            path.push((indent, key));
            let name = path.iter().map(|&(_, key)| key).collect::<Vec<_>>().join(".");
            parameters::find(&name).map(|_| name)
        })
        .collect()
}

/// `text` with the table's comment right above each parameter, in place of a comment that is there.
fn with_comments(text: &str) -> String {
    let mut out: Vec<String> = Vec::new();
    for (line, name) in text.lines().zip(names_of_lines(text)) {
        if let Some(name) = name {
            let indent = &line[..line.len() - line.trim_start().len()];
            while out.last().is_some_and(|above| above.starts_with(&format!("{indent}# "))) {
                out.pop();
            }
            let comment = parameters::find(&name).unwrap().comment();
            out.extend(comment.lines().map(|line| format!("{indent}# {line}")));
        }
        out.push(line.to_owned());
    }
    out.join("\n") + "\n"
}
