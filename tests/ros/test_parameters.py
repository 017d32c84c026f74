"""Parameters through ROS 2's standard services, as `ros2 param` and rqt set them."""

import threading

import pytest

from peers import JOINTS, robot_parameters, value
from process import NodeProcess, wait_for
from rcl_interfaces.msg import ParameterValue

BOOL, INTEGER, DOUBLE, STRING, BOOLS, DOUBLES, STRINGS = 1, 2, 3, 4, 6, 8, 9


@pytest.fixture(scope="module")
def policy(shared_world):
    policy = shared_world.start()
    assert policy.change("configure"), policy.reason()
    return policy


def test_every_parameter_is_listed_typed_and_described(policy):
    names, _ = policy.list()
    assert {"checkpoint", "prompt", "joints.names", "control.rate_hz", "sampler.seed", "cameras.base_0_rgb.topic"} <= set(names)
    types = dict(zip(names, policy.types(*names)))
    assert types["use_sim_time"] == BOOL and types["control.blend_steps"] == INTEGER and types["control.rate_hz"] == DOUBLE
    assert types["prompt"] == STRING and types["joints.names"] == STRINGS and types["joints.velocity_max"] == DOUBLES
    assert types["joints.velocity_controlled"] == BOOLS
    for descriptor in policy.describe(*names):
        assert descriptor.description and descriptor.type == types[descriptor.name], descriptor
    values = dict(zip(names, policy.get(*names)))
    assert values["joints.names"] == JOINTS and values["control.rate_hz"] == 100.0 and values["robot"] == "generic"


def test_a_list_can_be_narrowed__to_a_prefix_and_a_depth(policy):
    names, _ = policy.list("joints")
    assert names and all(name.startswith("joints.") for name in names)
    names, prefixes = policy.list("cameras", depth=2)
    assert "cameras.base_0_rgb.topic" in names and "cameras.base_0_rgb" in prefixes
    top, _ = policy.list(depth=1)
    assert "prompt" in top and not any("." in name for name in top)


def test_descriptors_have_ranges_and_say_what_is_read_only(policy):
    rate, blend, backend, age, seed = policy.describe(
        "control.rate_hz", "control.blend_steps", "backend", "joints.max_age_ms", "sampler.seed"
    )
    assert (rate.floating_point_range[0].from_value, rate.floating_point_range[0].to_value) == (1.0, 1000.0)
    assert (blend.integer_range[0].from_value, blend.integer_range[0].to_value) == (0, 50)
    assert (age.integer_range[0].from_value, age.integer_range[0].to_value) == (1, 60_000)
    assert "cpu" in backend.additional_constraints and "tensorrt" in backend.additional_constraints
    assert "[ms]" in age.description
    assert rate.read_only and backend.read_only and not blend.read_only and not seed.read_only


def test_live_parameters_change_and_are_announced(policy):
    events = policy.parameter_events
    assert policy.set(prompt="fold the towel", control__blend_steps=5) == [(True, ""), (True, "")]
    assert policy.get("prompt", "control.blend_steps") == ["fold the towel", 5]
    policy.status.wait_until(lambda status: status.prompt == "fold the towel", "the new prompt")

    def announced():
        changes = [p for m in events.messages if m.node == policy.name for p in m.changed_parameters]
        return {"prompt", "control.blend_steps"} <= {p.name for p in changes}

    wait_for(announced, lambda: f"parameter events: {events.messages}")
    assert policy.set(joints__max_age_ms=1900, observe__max_skew_ms=900, cameras__base_0_rgb__max_age_ms=1800, sampler__seed=7) == [(True, "")] * 4


@pytest.mark.parametrize(
    ("name", "thing", "words"),
    [
        ("control.blend_steps", 51, ["control.blend_steps", "50", "51"]),
        ("control.blend_steps", -1, ["control.blend_steps", "0"]),
        ("control.blend_steps", "three", ["whole number", "three"]),
        ("control.blend_steps", 1.5, ["whole number", "1.5"]),
        ("joints.max_age_ms", 0, ["joints.max_age_ms", "1"]),
        ("control.execution", "backwards", ["latest", "backwards"]),
        ("control.rate_hz", 200.0, ["read-only"]),
        ("control.rate_hz", float("nan"), ["control.rate_hz", "NaN"]),
        ("checkpoint", "synth:full", ["read-only"]),
        ("joints.names", ["a"], ["read-only"]),
        ("joints.velocity_max", [1, 2, 3], ["joints.velocity_max"]),
        ("prompt", b"bytes", ["prompt", "text"]),
        ("prompt", None, ["prompt", "undeclared"]),
        ("prompt", "word " * 500, ["tokens"]),
        ("control.rate", 100.0, ["control.rate", "control.rate_hz"]),
        ("", 1, ["known parameter"]),
        ("no\nsuch\tname " * 100, True, ["known parameter"]),
    ],
)
def test_a_refusal_says_why_and_changes_nothing(policy, name, thing, words):
    before = policy.get(name, "prompt")
    successful, reason = policy.set_list([(name, thing)])
    assert not successful
    assert all(word in reason for word in words), reason
    assert "\n" not in reason and len(reason) < 600, reason
    assert repr(policy.get(name, "prompt")) == repr(before)


def test_the_token_count_is_in_the_refusal_of_a_long_prompt(policy):
    _, reason = policy.set(prompt="word " * 500)
    assert any(part.isdigit() and int(part) > 200 for part in reason.replace(",", " ").replace(";", " ").split()), reason


def test_atomically_all_or_nothing(policy):
    assert policy.set(control__blend_steps=4)[0]
    successful, reason = policy.set(atomically=True, control__blend_steps=2, joints__max_age_ms=-5)
    assert not successful and "joints.max_age_ms" in reason
    assert policy.get("control.blend_steps") == 4
    assert policy.set(atomically=True, control__blend_steps=2, joints__max_age_ms=1500) == (True, "")
    assert policy.get("control.blend_steps", "joints.max_age_ms") == [2, 1500]
    # One by one, each stands for itself.
    results = policy.set(control__blend_steps=3, joints__max_age_ms=-5)
    assert [ok for ok, _ in results] == [True, False]
    assert policy.get("control.blend_steps", "joints.max_age_ms") == [3, 1500]


def test_what_is_not_there_is_not_set(policy):
    assert policy.get("there.is.no.such") is None
    assert policy.types("there.is.no.such", "prompt") == [0, STRING]
    assert policy.describe("there.is.no.such").type == 0


def test_garbage_of_every_type_for_every_parameter_is_answered(policy):
    names, _ = policy.list()
    before = policy.get(*names)
    things = [None, True, -(2**63), 2**63 - 1, float("inf"), float("nan"), -1e308, "", "\u0007\u202e" * 50, "x" * 100_000]
    things += [[True] * 1000, list(range(-500, 500)), [float("nan")] * 1000, ["", "/", "a" * 10_000], b"\x00\xff" * 500, []]
    live = {"prompt", "sampler.seed", "control.execution", "control.blend_steps", "control.ensemble_decay", "control.open_loop_steps", "control.first_step_max", "rtc.schedule", "rtc.execution_horizon", "rtc.max_guidance_weight", "joints.fault_after_ms", "observe.max_skew_ms", "joints.max_age_ms"}
    for thing in things:
        odd = value(thing)
        results = policy.set_list([(name, odd) for name in names])
        for name, (ok, reason) in zip(names, results):
            assert ok or (reason and "\n" not in reason), (name, thing, reason)
            assert not ok or name in live or name.endswith("max_age_ms"), (name, thing)
    for number in (0, 10, 77, 255):
        assert not policy.set_list([("prompt", ParameterValue(type=number))])[0]
    # Whatever was taken of it is put back.
    for name, thing in zip(names, before):
        if name in live:
            assert policy.set_list([(name, thing)])[0], name
    assert policy.state() == "inactive"


def test_structural_parameters_change_while_unconfigured(policy):
    assert policy.change("cleanup")
    assert not policy.describe("control.rate_hz").read_only
    assert policy.set(control__rate_hz=50.0) == (True, "")
    assert policy.set(atomically=True, control__command="float64_multi_array", control__command_topic="arm/commands") == (True, ""), "together"
    # What does not fit together is refused as a whole.
    successful, reason = policy.set_list([("joints.names", ["a", "b"])])
    assert not successful and "joints." in reason, reason
    assert policy.change("configure"), policy.reason()
    assert policy.get("control.rate_hz") == 50.0


@pytest.mark.parametrize(
    ("name", "found", "word"), [("prompt", "word " * 500, "tokens"), ("control.execution", "rtc_trained", "rtc_trained")]
)
def test_what_does_not_fit_the_checkpoint_is_refused_while_it_is_loaded_too(world, name, found, word):
    policy = world.start()
    policy.set(prompt="fold the towel")
    configured = []
    loading = threading.Thread(target=lambda: configured.append(policy.change("configure")))
    loading.start()
    wait_for(lambda: ("configure", "unconfigured", "configuring") in policy.event_labels(), "loading has begun")
    successful, reason = policy.set_list([(name, found)])
    loading.join()
    # Nobody knows what fits before the checkpoint is there: then the configuration is what is refused.
    assert configured == [not successful]
    reason = policy.status.wait_until(lambda status: status.reason).reason if successful else reason
    assert word in reason, reason


def test_a_whole_number_in_a_file_is_taken_where_a_number_is_meant(world):
    policy = world.start(robot_parameters(control__rate_hz=50))
    assert policy.get("control.rate_hz") == 50.0


def test_a_file_with_mistakes_ends_the_node_with_one_line_for_each():
    parameters = robot_parameters() | {"control.rate_hzz": 100.0, "joints.max_age_ms": -3, "prompt": 7}
    process = NodeProcess(parameters)
    assert process.wait() == 1
    for words in (["control.rate_hzz", "control.rate_hz"], ["joints.max_age_ms", "-3"], ["prompt", "7"]):
        assert any(all(word in line for word in words) for line in process.lines), process.log
    assert "panicked" not in process.log
    process.close()


@pytest.mark.parametrize("text", ["/**: [", "\x00\xff", "nothing: here\nat: all", ""])
def test_a_file_that_is_none_ends_the_node_with_a_line(tmp_path, text):
    path = tmp_path / "parameters.yaml"
    path.write_text(text)
    process = NodeProcess(arguments=["--params-file", str(path)])
    if text == "":
        # rcl takes an empty file, or refuses it; both are an answer.
        wait_for(lambda: not process.is_alive() or process.lines or True, "an answer")
    else:
        assert process.wait() == 1
        assert process.lines and "panicked" not in process.log, process.log
    process.close()


@pytest.mark.parametrize(("block", "namespace"), [("pi05_node", ""), ("/policy", "/left")])
def test_a_file_for_a_node_of_another_name_ends_the_node_instead_of_being_ignored(tmp_path, block, namespace):
    path = tmp_path / "robot.yaml"
    path.write_text(f"{block}:\n  ros__parameters:\n    prompt: fold the towel\n")
    process = NodeProcess(namespace=namespace, arguments=["--params-file", str(path), "-p", "checkpoint:=synth:tiny"])
    assert process.wait() == 1
    assert any("robot.yaml" in line and f"{namespace}/policy" in line and "/**" in line for line in process.lines), process.log
    process.close()


def test_a_single_parameter_is_given_by_dash_p(world):
    policy = world.start(robot_parameters(), arguments=["-p", "sampler.seed:=42", "-p", "prompt:=open the drawer"])
    assert policy.get("sampler.seed", "prompt") == [42, "open the drawer"]
