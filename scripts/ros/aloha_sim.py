#!/usr/bin/env python3
"""The simulated bimanual ALOHA as a robot on ROS 2: joints, three rendered cameras, /clock; it does what it is commanded.

    python3 scripts/ros/aloha_sim.py --seconds 10 [--freeze cam_left_wrist 3 5] [--pictures out/sim]

Physics and pictures by MuJoCo on the scene of gym-aloha (scripts/setup sim installs both). Time is simulated and goes in
lockstep with the node: after each control period the simulation waits for the node's command, and a while after each set
of pictures for its chunk, so that neither slow rendering nor a slow engine changes what happens. Every wait is bounded:
a node that does not answer is simulated too.
"""

import argparse
import os
import struct
import sys
import threading
import time
import zlib
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")

import mujoco
import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from pi05_thor.msg import ActionChunk
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, JointState

# Topic of each camera of config/aloha.yaml, and the scene's camera.
CAMERAS = {"cam_high": "top", "cam_left_wrist": "left_wrist", "cam_right_wrist": "right_wrist"}
ARM = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper"]
JOINTS = [f"{side}_{joint}" for side in ("left", "right") for joint in ARM]
# Position of a finger, m, of a closed and of an open gripper, which are 0 and 1 to the policy.
CLOSED, OPEN = 0.01844, 0.05800
# Where the arms begin.
HOME = [0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.1] * 2

WIDTH, HEIGHT = 320, 240
START_NS = 1_000 * 10**9

RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)  # heard as best effort, but not lost on the way


def to_ros(ns):
    return Time(sec=ns // 10**9, nanosec=ns % 10**9)


def to_ns(stamp):
    return stamp.sec * 10**9 + stamp.nanosec


def png(pixels):
    """A PNG file of [height, width, 3] bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = pixels.reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 1)) + chunk(b"IEND", b"")


class Aloha:
    """Physics and cameras. Positions are the policy's: radians, grippers from 0 to 1."""

    def __init__(self, seed=0):
        package = find_spec("gym_aloha")
        if package is None:
            sys.exit("aloha_sim: gym-aloha is not installed; run scripts/setup sim, or scripts/sim")
        scene = Path(package.submodule_search_locations[0], "assets", "bimanual_viperx_transfer_cube.xml")
        self.model = mujoco.MjModel.from_xml_path(str(scene))
        # Soft shadows at 4096 are most of the time of a software renderer.
        self.model.vis.quality.shadowsize, self.model.vis.quality.offsamples = 512, 0
        self.model.vis.global_.offwidth, self.model.vis.global_.offheight = WIDTH, HEIGHT
        self.data = mujoco.MjData(self.model)
        self._noise = np.random.default_rng(seed)
        self._joints = [self.model.joint(f"vx300s_{side}/{joint}") for side in ("left", "right") for joint in [*ARM[:6], "left_finger"]]
        self._fingers = [self.model.joint(f"vx300s_{side}/right_finger") for side in ("left", "right")]
        mujoco.mj_resetDataKeyframe(self.model, self.data, 0)
        for joint, position in zip(self._joints, self._positions_of(HOME)):
            self.data.qpos[joint.qposadr[0]] = position
        for finger, position in zip(self._fingers, self._positions_of(HOME)[6::7]):
            self.data.qpos[finger.qposadr[0]] = -position
        self.command(HOME)
        mujoco.mj_forward(self.model, self.data)
        self._renderer = mujoco.Renderer(self.model, HEIGHT, WIDTH)

    @staticmethod
    def _positions_of(values):
        return [CLOSED + value * (OPEN - CLOSED) if index % 7 == 6 else value for index, value in enumerate(values)]

    def command(self, values):
        """Where the arms are to go."""
        left, right = self._positions_of(values)[:7], self._positions_of(values)[7:]
        self.data.ctrl[:] = [*left, -left[6], *right, -right[6]]

    def step(self, seconds):
        end = self.data.time + seconds - 1e-9
        while self.data.time < end:
            mujoco.mj_step(self.model, self.data)

    def positions(self):
        values = [float(self.data.qpos[joint.qposadr[0]]) for joint in self._joints]
        return [(value - CLOSED) / (OPEN - CLOSED) if index % 7 == 6 else value for index, value in enumerate(values)]

    def picture(self, camera):
        """[height, width, 3] bytes, with the noise without which a camera would look frozen while nothing moves."""
        self._renderer.update_scene(self.data, camera=camera)
        pixels = self._renderer.render()
        noise = self._noise.integers(0, 2, pixels.shape, np.uint8)
        return np.where(pixels < 255, pixels + noise, pixels).astype(np.uint8)

    def close(self):
        self._renderer.close()


class AlohaSim:
    """The robot in a namespace: publishers, subscriptions, and the time."""

    def __init__(self, node, period_ns=10_000_000, picture_ns=100_000_000, latency_ns=50_000_000, policy="policy"):
        self.node, self.now = node, START_NS
        self.period_ns, self.picture_ns, self.latency_ns = period_ns, picture_ns, latency_ns
        self.aloha = Aloha()
        # What was commanded: (stamp, values), oldest first; where the arms were: (stamp, values).
        self.commands, self.measured = [], []
        self.missed_commands = self.missed_chunks = 0
        self.frozen = set()
        self._last_pictures = {}
        self._chunk_stamps = set()
        self._arrived = threading.Condition()
        self._commanding = False
        self._waiting_for = None
        self._pictures_due = self.now
        self._clock = node.create_publisher(Clock, "/clock", RELIABLE)
        self._joints = node.create_publisher(JointState, "joint_states", SENSOR)
        self._cameras = {name: node.create_publisher(CompressedImage, f"{name}/image_raw/compressed", SENSOR) for name in CAMERAS}
        node.create_subscription(JointState, "commands", self._take_command, QoSProfile(depth=100))
        node.create_subscription(ActionChunk, f"{policy}/chunks", self._take_chunk, RELIABLE)

    def _take_command(self, message):
        with self._arrived:
            self.commands.append((to_ns(message.header.stamp), list(message.position)))
            self._arrived.notify_all()

    def _take_chunk(self, message):
        with self._arrived:
            self._chunk_stamps.update(to_ns(stamp) for stamp in message.image_stamps)
            self._arrived.notify_all()

    def _wait(self, condition, seconds):
        with self._arrived:
            return self._arrived.wait_for(condition, seconds)

    def chunk_count(self):
        """Sets of pictures that a chunk was computed from."""
        return len(self._chunk_stamps - {0})

    def observe(self):
        """Joints and, when they are due, pictures of now."""
        stamp = to_ros(self.now)
        if self.now >= self._pictures_due:
            self._pictures_due += self.picture_ns
            for name, publisher in self._cameras.items():
                if name not in self.frozen or name not in self._last_pictures:
                    message = CompressedImage(format="png", data=png(self.aloha.picture(CAMERAS[name])))
                    message.header.stamp, message.header.frame_id = stamp, name
                    self._last_pictures[name] = message
                publisher.publish(self._last_pictures[name])  # a frozen one sends the same again, stamp and all
            self._waiting_for = None if self.frozen else self.now
        positions = self.aloha.positions()
        self.measured.append((self.now, positions))
        message = JointState(name=JOINTS, position=positions)
        message.header.stamp = stamp
        self._joints.publish(message)

    def stand(self):
        """Time stands still, but everything goes on being said: for a node that is about to be activated."""
        self._pictures_due = self.now
        self.observe()
        self._clock.publish(Clock(clock=to_ros(self.now)))

    def step(self):
        """One control period: observe, let the node tick, do what it says."""
        self.observe()
        self._clock.publish(Clock(clock=to_ros(self.now)))
        # While commands flow each tick gives one; a node that is silent is not waited for long.
        in_time = self._wait(lambda: bool(self.commands) and self.commands[-1][0] >= self.now, 1.0 if self._commanding else 0.004)
        self.missed_commands += int(self._commanding and not in_time)
        self._commanding = in_time
        if self._waiting_for is not None and self.now >= self._waiting_for + self.latency_ns:
            asked, self._waiting_for = self._waiting_for, None
            if not self._wait(lambda: asked in self._chunk_stamps, 3.0):
                self.missed_chunks += 1
        if in_time:
            self.aloha.command(self.commands[-1][1])
        self.aloha.step(self.period_ns * 1e-9)
        self.now += self.period_ns

    def run(self, seconds, each=None):
        """So many simulated seconds; `each` is called with the seconds that have passed."""
        begin = self.now
        while self.now - begin < seconds * 1e9:
            if each:
                each((self.now - begin) * 1e-9)
            self.step()

    def close(self):
        self.aloha.close()


def spinning(node):
    """Spins the node in a thread of its own."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def spin():
        try:
            executor.spin()
        except ExternalShutdownException:
            pass

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    return executor, thread


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="simulated; 0: until SIGINT")
    parser.add_argument("--freeze", nargs=3, metavar=("CAMERA", "FROM", "TO"), help="a camera that freezes in between, s")
    parser.add_argument("--pictures", type=Path, help="folder for what the cameras saw at the end")
    arguments, ros_arguments = parser.parse_known_args()
    if arguments.freeze and arguments.freeze[0] not in CAMERAS:
        sys.exit(f"aloha_sim: --freeze: expected one of {', '.join(CAMERAS)}, found {arguments.freeze[0]}")
    rclpy.init(args=ros_arguments)
    node = rclpy.create_node("aloha_sim")
    sim = AlohaSim(node)
    executor, thread = spinning(node)
    print("aloha_sim: waiting for the node's first command", file=sys.stderr)
    try:
        while not sim.commands:
            sim.now += sim.period_ns  # a node that starts by itself looks again as time goes on
            sim.stand()
            time.sleep(0.1)

        def each(seconds):
            if arguments.freeze:
                camera, begin, end = arguments.freeze[0], *map(float, arguments.freeze[1:])
                sim.frozen = {camera} if begin <= seconds < end else set()

        begin = time.monotonic()
        sim.run(arguments.seconds or float("inf"), each)
        took = time.monotonic() - begin
        print(
            f"aloha_sim: {arguments.seconds:g} simulated seconds in {took:.1f} s: {len(sim.commands)} commands,"
            f" {sim.chunk_count()} chunks, {sim.missed_commands} ticks without a command",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        pass
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        for name, camera in CAMERAS.items():
            (arguments.pictures / f"{name}.png").write_bytes(png(sim.aloha.picture(camera)))
    executor.shutdown()
    sim.close()
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
