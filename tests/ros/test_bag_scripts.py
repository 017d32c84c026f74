"""scripts/ros/play_bag.py and record_bag.py: bags in and out without `ros2 bag`, around a running node."""

import signal
import subprocess
import sys
import time

from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader

from peers import to_ns
from process import BAGS, ROOT

PLAY, RECORD = ROOT / "scripts" / "ros" / "play_bag.py", ROOT / "scripts" / "ros" / "record_bag.py"


def test_a_bag_that_is_played_moves_the_arm_and_all_of_it_is_recorded(world, tmp_path):
    """As scripts/demo does it: the recorder is the arm."""
    name = world.namespace
    topics = [f"{name}/commands", f"{name}/policy/chunks", f"{name}/policy/status", f"{name}/joint_states"]
    recorder = subprocess.Popen([sys.executable, RECORD, tmp_path / "bag", "--topics", *topics], stderr=subprocess.PIPE, text=True)
    try:
        policy = world.start({"autostart": True, "joints.max_age_ms": 1000, "control.command": "joint_state"})
        policy.wait_for_state("inactive")
        begin = time.time_ns()
        played = subprocess.run(
            [sys.executable, PLAY, BAGS / "aloha_sim", "--restamp", "--loop", "2", "--namespace", name], stderr=subprocess.PIPE, text=True, timeout=120
        )
        assert played.returncode == 0 and "1200 messages of 4 topics" in played.stderr, played.stderr
    finally:
        recorder.send_signal(signal.SIGINT)
        _, said = recorder.communicate(timeout=30)
    assert recorder.returncode == 0, said
    found = {}
    with AnyReader([tmp_path / "bag"]) as reader:
        for connection, log_time, payload in reader.messages():
            found.setdefault(connection.topic, []).append((log_time, reader.deserialize(payload, connection.msgtype)))
    assert set(found) == set(topics), said
    commands, chunks = found[topics[0]], found[topics[1]]
    assert len(commands) > 100 and len(commands[0][1].position) == 14
    assert len(chunks) > 2 and chunks[0][1].steps == 50
    assert [status.lifecycle for _, status in found[topics[2]]][-1] == "active"
    for log_time, joints in found[topics[3]]:
        assert begin <= to_ns(joints.header.stamp) <= log_time, "stamped as it was sent"


def test_without_restamp_messages_go_out_as_they_are(world, tmp_path):
    topic = f"{world.namespace}/camera/image_raw"
    recorder = subprocess.Popen([sys.executable, RECORD, tmp_path / "bag", "--topics", topic], stderr=subprocess.PIPE, text=True)
    try:
        played = subprocess.run(
            [sys.executable, PLAY, BAGS / "peer_mcap_zstd", "--namespace", world.namespace, "--topics", "/camera/image_raw", "--rate", "2"],
            stderr=subprocess.PIPE, text=True, timeout=120,
        )
        assert played.returncode == 0, played.stderr
    finally:
        time.sleep(0.5)
        recorder.send_signal(signal.SIGTERM)
        _, said = recorder.communicate(timeout=30)
    assert recorder.returncode == 0, said
    with Reader(BAGS / "peer_mcap_zstd") as reader:
        sent = [bytes(payload) for connection, _, payload in reader.messages() if connection.topic == "/camera/image_raw"]
    with Reader(tmp_path / "bag") as reader:
        heard = [bytes(payload) for _, _, payload in reader.messages()]
    assert heard == sent


def test_a_mistake_is_one_line(tmp_path):
    done = subprocess.run([sys.executable, RECORD, tmp_path, "--all"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "not there yet" in done.stderr
    done = subprocess.run([sys.executable, PLAY, BAGS / "aloha_sim", "--topics", "/none"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "/joint_states" in done.stderr
