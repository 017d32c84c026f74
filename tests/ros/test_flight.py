"""The flight recorder: what it holds becomes a bag after a fault and on request, whatever the disk says."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from rosbags.highlevel import AnyReader

from peers import JOINTS, robot_parameters
from process import program, wait_for


def recording(tmp_path, **overrides):
    return robot_parameters(recorder__folder=str(tmp_path / "flights"), recorder__seconds=5.0, **overrides)


def messages(path):
    """{topic: [(log time, message)]} by an independent reader."""
    found = {}
    with AnyReader([Path(path)]) as reader:
        for connection, at, payload in reader.messages():
            found.setdefault(connection.topic, []).append((at, reader.deserialize(payload, connection.msgtype)))
    return found


def test_on_request_the_last_seconds_are_a_bag_while_the_commands_go_on(world, tmp_path):
    _robot, arm, policy = world.running(recording(tmp_path))
    policy.wait_for_control("running")
    arm.wait_for_more(300)
    before = len(arm.received)
    success, path = policy.trigger("record")
    assert success and path.startswith(str(tmp_path / "flights")) and "_request.mcap" in path, path
    arm.wait_for_more(50)
    heard = {tuple(command.position) for command in arm.messages[:before]}

    bag = messages(path)
    base, name = world.namespace, policy.name
    commands = [message for _, message in bag[f"{base}/commands"]]
    assert len(commands) > 200 and all(list(command.name) == JOINTS for command in commands)
    missing = [c for c in commands if tuple(c.position) not in heard]
    assert len(missing) < len(commands) / 10, "what was recorded is what was sent"
    assert len(bag[f"{base}/joint_states"]) > 20
    chunks = [message for _, message in bag[f"{name}/chunks"]]
    assert chunks and all(chunk.prompt == "transfer the cube" and len(chunk.image_stamps) == 3 for chunk in chunks)
    assert "running" in [message.control for _, message in bag[f"{name}/status"]]
    ticks = [message.data for _, message in bag[f"{name}/ticks"]]
    assert len(ticks) >= len(commands) and all(len(tick) == 7 and tick[0] >= 0 and tick[1] >= 0 for tick in ticks)
    times = [at for at, _ in bag[f"{name}/ticks"]]
    assert times == sorted(times) and (times[-1] - times[0]) * 1e-9 <= 5.01
    assert abs(times[-1] * 1e-9 - time.time()) < 60

    # And the report draws it.
    out = tmp_path / "report"
    config = tmp_path / "robot.yaml"
    shutil.copy(policy.process._file, config)
    report = subprocess.run([program("pi05"), "report", path, "--config", config, "--out", out], capture_output=True, text=True)
    assert report.returncode == 0 and (out / "report.html").exists(), report.stderr


def test_without_anything_to_record_the_request_is_refused_with_the_reason(world, tmp_path):
    policy = world.start(recording(tmp_path))
    success, message = policy.trigger("record")
    assert not success and "not configured" in message
    assert policy.change("configure")
    success, message = policy.trigger("record")
    assert not success and "activate" in message
    assert not list(tmp_path.glob("flights/*"))


def test_after_a_fault_the_brake_is_in_the_file(world, tmp_path):
    robot, arm, policy = world.running(recording(tmp_path, joints__max_age_ms=200, joints__fault_after_ms=1500))
    policy.wait_for_control("running")
    arm.wait_for_motion()
    robot.silent = {"joints"}
    policy.wait_for_control("fault")
    wait_for(lambda: any("ERROR" in line and "fault: joint states were stale" in line for line in policy.process.lines), "a line in the log")
    path = wait_for(lambda: next(tmp_path.glob("flights/*_fault.mcap"), None), "a file")
    bag = messages(path)
    states = [(message.control, message.reason) for _, message in bag[f"{policy.name}/status"]]
    names = [control for control, _ in states]
    assert names[-1] == "fault" and "running" in names, states
    assert states[-1][1], "the reason is in the file"
    positions = [list(message.position) for _, message in bag[f"{world.namespace}/commands"]]
    assert positions[-1] == positions[-2] and positions[0] != positions[-1], "it came to rest"
    time.sleep(2)
    assert len(list(tmp_path.glob("flights/*"))) == 1, "one file for one fault"

    # It outlasts deactivation, and is still the same one.
    robot.silent = set()
    assert policy.change("deactivate")
    wait_for(lambda: policy.change("activate"), policy.reason)
    policy.status.wait_until(lambda status: status.control == "fault" and "joint states were stale" in status.reason)
    time.sleep(2)
    assert policy.status.last.control == "fault" and len(list(tmp_path.glob("flights/*"))) == 1
    assert policy.trigger("reset")[0]
    policy.wait_for_control("running")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one page."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_answered_and_counted_and_control_goes_on(world, small_disk):
    _robot, arm, policy = world.running(robot_parameters(recorder__folder=str(small_disk)))
    arm.wait_for_more(200)
    before = len(arm.received)
    success, message = policy.trigger("record")
    assert not success and "No space left" in message, message
    assert not list(small_disk.iterdir()), "nothing half written is left"
    policy.wait_for_count("recording_failed")
    arm.wait_for_more(100)
    assert len(arm.received) > before and policy.state() == "active"
    policy.wait_for_control("running")


def test_diagnostics_say_how_punctual_control_is_and_what_it_was_granted(world):
    _robot, _arm, policy = world.running()
    wait_for(lambda: "late_p999_us" in policy.health().get("control", (0, "", {}))[2], lambda: f"percentiles: {policy.health()}")
    values = policy.health()["control"][2]
    assert "SCHED_FIFO 40" in values["real_time"] and "memory" in values["real_time"]
    assert 0 <= float(values["late_p50_us"]) <= float(values["late_p999_us"])
    assert float(values["work_p50_us"]) > 0
    warnings = [line for line in policy.process.lines if "not permitted" in line]
    assert len(warnings) == ("not permitted" in values["real_time"]), warnings
