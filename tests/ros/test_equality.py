"""The same inputs give the same actions and the same commands, in the node as in `pi05 replay`."""

import struct
import subprocess
from pathlib import Path

import pytest
import yaml
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from clock import SimulatedClock
from peers import SENSOR, to_ns
from process import BAGS, ROOT, parameter_file, program, wait_for

from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, JointState
from trajectory_msgs.msg import JointTrajectory

STORE = get_typestore(Stores.ROS2_JAZZY)
TICK = 10_000_000
# One tick: control takes a chunk at its tick, and this one is there for the next one.
LATENCY_MS = 10
CAMERAS = ["/cam_high/image_raw/compressed", "/cam_left_wrist/image_raw/compressed", "/cam_right_wrist/image_raw/compressed"]
JOINT_STATES = "/joint_states"
# Of the sample bag's frames, which are 60 ms apart: six in two seconds.
EVERY, MOMENTS = 5, 6


def moments():
    """[(stamp, {topic: (type, payload)})]: every n-th frame of the sample bag with the joints of its moment.

    There a set's parts are up to 3 ms apart; here they get the stamp of the joints, so that a set is of one instant.
    """
    tracks = {}
    with AnyReader([BAGS / "aloha_sim"]) as reader:
        for connection, _, payload in reader.messages():
            stamp = to_ns(reader.deserialize(payload, connection.msgtype).header.stamp)
            tracks.setdefault(connection.topic, []).append((stamp, connection.msgtype, bytes(payload)))
    sets = []
    for frames in list(zip(*(tracks[topic] for topic in CAMERAS)))[::EVERY][:MOMENTS]:
        joints = min(tracks[JOINT_STATES], key=lambda joint: abs(joint[0] - frames[0][0]))
        parts = zip([*CAMERAS, JOINT_STATES], [*frames, joints])
        sets.append((joints[0], {topic: (kind, stamped(payload, joints[0])) for topic, (_, kind, payload) in parts}))
    return sets


def stamped(payload, ns):
    """A serialized message with another header stamp: the eight bytes behind the encapsulation."""
    assert payload[1] == 1, "little endian"
    return payload[:4] + struct.pack("<iI", ns // 10**9, ns % 10**9) + payload[12:]


def write_bag(path, sets):
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        for stamp, messages in sets:
            for topic, (kind, payload) in messages.items():
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
                writer.write(connections[topic], stamp, payload)


def parameters(**overrides):
    """config/aloha.yaml, for observations that are further apart than a robot's."""
    text = (ROOT / "config" / "aloha.yaml").read_text()
    tree = yaml.safe_load(text)["/**"]["ros__parameters"]
    tree["control"]["command"] = "joint_state"
    tree["joints"]["max_age_ms"] = 60_000
    tree["observe"]["max_skew_ms"] = 1
    for camera in tree["cameras"].values():
        camera["max_age_ms"] = 60_000
    tree.setdefault("replay", {})["latency_ms"] = LATENCY_MS
    for name, thing in overrides.items():
        group, _, field = name.partition("__")
        tree[group][field] = thing
    return tree


def replayed(bag, tree, out):
    """(stamp, values) of every command, and the actions of every chunk, of `pi05 replay`."""
    command = [program("pi05"), "replay", str(bag), "--config", parameter_file(tree, out.parent), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands, chunks = [], []
    with AnyReader([Path(out) / "commands.mcap"]) as reader:
        for connection, _, payload in reader.messages():
            if connection.topic == "/commands":
                message = deserialize_message(bytes(payload), JointState)
                commands.append((to_ns(message.header.stamp), list(message.position)))
            elif connection.topic == "/chunks":
                message = deserialize_message(bytes(payload), JointTrajectory)
                chunks.append([value for point in message.points for value in point.positions])
    return commands, chunks


class Lockstep:
    """A node whose time stands still while it computes."""

    def __init__(self, world, tree):
        self.node = world.node
        kinds = {**{topic: CompressedImage for topic in CAMERAS}, JOINT_STATES: JointState}
        self.publishers = {topic: self.node.create_publisher(kind, world.namespace + topic, SENSOR) for topic, kind in kinds.items()}
        self.arm = world.arm()
        self.clock = SimulatedClock(self.node)
        self.policy = world.start(tree | {"use_sim_time": True})
        assert self.policy.change("configure"), self.policy.reason()
        self.clock.wait_for_listeners(1)

    def deliver(self, messages):
        for topic, (_, payload) in messages.items():
            self.publishers[topic].publish(payload)

    def chunk_of(self, index, messages):
        """The chunk of a moment, which is delivered anew if it got lost."""
        for _ in range(20):
            try:
                wait_for(lambda: len(self.policy.chunks.received) > index, "a chunk", timeout=2)
                break
            except AssertionError:
                self.deliver(messages)
        chunk = self.policy.chunks.messages[index]
        assert chunk.id == index
        return chunk

    def tick(self, stamp):
        """One tick, and its command."""
        before = len(self.arm.received)
        for attempt in range(20):
            self.clock.set(stamp)
            try:
                wait_for(lambda: len(self.arm.received) > before, "a command", timeout=2)
                break
            except AssertionError:
                pass
        wait_for(lambda: len(self.arm.received) > before, f"a command at {stamp}")

    def play(self, sets, end):
        """Everything up to the tick at `end`; gives commands and chunks."""
        start = sets[0][0]

        def activated():
            self.clock.set(start)
            self.clock.settle(self.policy)
            self.deliver(sets[0][1])
            return self.policy.change("activate")

        wait_for(activated, self.policy.reason)
        self.chunk_of(0, sets[0][1])
        due = {stamp: (index, messages) for index, (stamp, messages) in enumerate(sets) if index > 0}
        for stamp in range(start + TICK, end + 1, TICK):
            self.tick(stamp)
            if stamp in due:
                index, messages = due[stamp]
                self.deliver(messages)
                self.chunk_of(index, messages)
        commands = [(to_ns(command.header.stamp), list(command.position)) for command in self.arm.messages]
        return commands, [list(chunk.actions) for chunk in self.policy.chunks.messages]


def farthest(a, b):
    assert len(a) == len(b) > 0
    return max(abs(x - y) for x, y in zip(a, b))


@pytest.mark.parametrize("blend", ["at once", "as configured"])
def test_the_sample_bag_gives_the_commands_of_a_replay(world, tmp_path, blend):
    overrides = {"control__blend_steps": 0} if blend == "at once" else {}
    tree = parameters(**overrides)
    sets = moments()
    write_bag(tmp_path / "bag", sets)
    expected, expected_chunks = replayed(tmp_path / "bag", tree, tmp_path / "out")
    assert len(expected_chunks) == len(sets)
    commands, chunks = Lockstep(world, tree).play(sets, expected[-1][0])

    assert len(chunks) == len(expected_chunks)
    for index, (ours, theirs) in enumerate(zip(chunks, expected_chunks)):
        assert farthest(ours, theirs) < 1e-6, f"chunk {index}"
    assert [stamp for stamp, _ in commands] == [stamp for stamp, _ in expected]
    worst = max(farthest(ours, theirs) for (_, ours), (_, theirs) in zip(commands, expected))
    assert worst < 1e-6
    moved = max(farthest(a, b) for (_, a), (_, b) in zip(expected, expected[50:]))
    assert moved > 1e-2, "the arm moves in this bag"
