"""What the node tells of itself: status, diagnostics, and the task that it was told."""

import time

import pytest

from peers import LATCHED, Recorder, robot_parameters
from process import wait_for
from pi05_thor.msg import PolicyStatus
from std_msgs.msg import String


def test_a_late_joiner_hears_the_status(world):
    policy = world.start()
    assert policy.change("configure"), policy.reason()
    policy.wait_for_state("inactive")
    late = Recorder(world.node, PolicyStatus, f"{policy.name}/status", LATCHED)
    status = late.wait_until(lambda status: True)
    assert (status.lifecycle, status.control, status.prompt, status.checkpoint) == ("inactive", "idle", "transfer the cube", "synth:tiny")
    assert "cpu" in status.engine
    assert abs(status.stamp.sec - time.time()) < 600
    assert len(late.received) == 1, "the last one only"


def test_status_follows_every_change(world):
    robot, _arm, policy = world.running()
    policy.wait_for_control("running")
    assert policy.reason() == ""
    robot.stop()
    status = policy.wait_for_control("braking", "holding")
    assert status.reason, "it says why"
    seen = [(status.lifecycle, status.control) for status in policy.status.messages]
    assert seen[0] == ("unconfigured", "idle")
    order = [("inactive", "idle"), ("active", "armed"), ("active", "running")]
    places = [seen.index(step) for step in order if step in seen]
    assert places == sorted(places) and ("active", "running") in seen and ("inactive", "idle") in seen
    assert all(a != b for a, b in zip(policy.status.messages, policy.status.messages[1:])), "on change only"


def test_a_prompt_by_topic_labels_the_chunks_from_then_on(world):
    _robot, _arm, policy = world.running()
    assert policy.chunks.last is None or policy.chunks.last.prompt == "transfer the cube"
    said = policy.say("fold the towel")
    policy.chunks.wait_until(lambda chunk: chunk.prompt == "fold the towel", "the new prompt")
    assert policy.get("prompt") == "fold the towel", "topic and parameter are one"
    policy.status.wait_until(lambda status: status.prompt == "fold the towel")
    assert policy.set(prompt="open the drawer")[0]
    policy.chunks.wait_until(lambda chunk: chunk.prompt == "open the drawer", "the newest word counts")
    labels = [chunk.prompt for chunk in policy.chunks.messages]
    assert labels == sorted(labels, key=["transfer the cube", "fold the towel", "open the drawer"].index), "no way back"
    del said


def test_a_prompt_that_is_too_long_is_rejected_with_its_token_count(world):
    _robot, _arm, policy = world.running()
    said = policy.say("word " * 500)
    policy.wait_for_count("prompt_dropped", "tokens")
    name = next(name for _, _, values in policy.health().values() for name in values if "prompt_dropped" in name)
    assert any(part.isdigit() and int(part) > 200 for part in name.replace(",", " ").replace(";", " ").split()), name
    assert policy.chunks.wait_for_more(2)[-1].prompt == "transfer the cube"
    successful, reason = policy.set(prompt="word " * 500)
    assert not successful and "tokens" in reason
    del said


def test_a_prompt_counts_though_one_that_is_refused_follows_at_once(world):
    policy = world.start()
    assert policy.change("configure"), policy.reason()
    said = world.node.create_publisher(String, "prompt", LATCHED)
    wait_for(said.get_subscription_count, "a subscription to the prompt")
    for number in range(10):
        said.publish(String(data=f"task {number}"))
        said.publish(String(data="word " * 500))
        policy.status.wait_until(lambda status: status.prompt == f"task {number}")
    policy.wait_for_count("prompt_dropped", "tokens", at_least=10)


def test_diagnostics_come_every_second_and_name_every_source(world):
    _robot, _arm, policy = world.running(rate_hz=20)
    start = time.monotonic()
    reports = policy.diagnostics.wait_for_more(4)
    assert 1.5 < time.monotonic() - start, "not faster than once a second"
    assert reports[-1].header.stamp.sec > 0
    parts = wait_for(lambda: "rate_hz" in policy.health().get("joints", (0, "", {}))[2] and policy.health(), "rates")
    assert {"policy", "base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb", "joints", "inference"} <= set(parts)
    for source in ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb", "joints"):
        level, _, values = parts[source]
        assert level == 0 and float(values["rate_hz"]) > 1 and abs(int(values["age_ms"])) < 5000
        assert int(values["taken"]) > 0 and int(values["refused"]) == 0
    _, _, values = parts["policy"]
    assert values["state"] == "active" and "cpu" in values["engine"]
    _, _, values = parts["inference"]
    assert int(values["chunks"]) > 0 and 0 < float(values["p50_ms"]) <= float(values["p99_ms"])
    assert "gpu_memory_mib" not in values, "there is none"
    everything = " ".join(name for _, _, found in parts.values() for name in found)
    assert "skipped_ticks" in everything, "deadline misses"


@pytest.mark.parametrize("state", ["unconfigured", "inactive"])
def test_a_node_that_waits_reports_too(world, state):
    policy = world.start(robot_parameters())
    if state == "inactive":
        assert policy.change("configure"), policy.reason()
    wait_for(lambda: policy.health().get("policy", (0, "", {}))[2].get("state") == state, f"a report of {state}")


def test_a_frozen_camera_is_warned_of(world):
    robot, _arm, policy = world.running()
    picture = robot.image
    robot.image = lambda index, ns, grey=None: picture(index, ns, grey=77 if index == 1 else None)
    wait_for(lambda: "frozen" in policy.health().get("left_wrist_0_rgb", (0, "", {}))[1], lambda: f"a warning: {policy.health()}")
    assert policy.health()["left_wrist_0_rgb"][0] == 1
