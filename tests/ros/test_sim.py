"""Closed loop: the node and the simulated bimanual ALOHA, physics and rendered cameras, in simulated time."""

import sys
from importlib.util import find_spec

import pytest
import yaml

from process import ROOT, wait_for

if find_spec("mujoco") is None:
    pytest.skip("MuJoCo is not installed: scripts/setup sim", allow_module_level=True)
sys.path.insert(0, str(ROOT / "scripts" / "ros"))
from aloha_sim import JOINTS, START_NS, AlohaSim  # noqa: E402

TICK_NS = 10_000_000
FROZEN = (3.0, 6.0)


def limits():
    """Position and speed limits by joint, as config/aloha.yaml says."""
    joints = yaml.safe_load((ROOT / "config" / "aloha.yaml").read_text())["/**"]["ros__parameters"]["joints"]
    assert joints["names"] == JOINTS
    return list(zip(joints["position_min"], joints["position_max"], joints["velocity_max"]))


def assert_within_limits(commands):
    for (_, before), (_, after) in zip(commands, commands[1:]):
        for a, b, (low, high, speed) in zip(before, after, limits()):
            assert low - 1e-9 <= b <= high + 1e-9, (b, low, high)
            assert abs(b - a) <= speed * TICK_NS * 1e-9 * (1 + 1e-6), (a, b, speed)


def between(samples, begin, end):
    """Values from so many seconds after the start of the run to so many."""
    return [values for stamp, values in samples if begin <= (stamp - between.start) * 1e-9 < end]


def test_ten_simulated_seconds_with_a_camera_that_freezes_and_returns(world):
    sim = AlohaSim(world.node)
    policy = world.start({"use_sim_time": True, "control.command": "joint_state", "prompt": "transfer the cube"})
    try:
        assert policy.change("configure"), policy.reason()

        def activated():
            sim.now += sim.period_ns
            sim.stand()
            return policy.change("activate")

        wait_for(activated, policy.reason)
        between.start = sim.now
        states, chunks = [], {}

        def each(seconds):
            sim.frozen = {"cam_left_wrist"} if FROZEN[0] <= seconds < FROZEN[1] else set()
            chunks[round(seconds, 2)] = sim.chunk_count()
            states.append((seconds, policy.status.last.control, policy.status.last.reason))

        sim.run(10.0, each)
    finally:
        sim.close()

    # Liveness: one command per tick, on the grid, from the first one on; about ten chunks per second.
    stamps = [stamp for stamp, _ in sim.commands]
    assert stamps == sorted(set(stamps)) and all((stamp - START_NS) % TICK_NS == 0 for stamp in stamps)
    assert len(stamps) > 900 and sim.missed_commands <= 5, (len(stamps), sim.missed_commands)
    assert chunks[2.9] - chunks[0.5] > 15, "chunks before the camera freezes"
    assert policy.state() == "active" and "panicked" not in policy.process.log

    # Limits, always.
    assert_within_limits(sim.commands)

    # The camera freezes: no inference any more, the arms come to rest, the status names the camera.
    assert chunks[5.9] - chunks[3.4] <= 1, "no inference with a frozen camera"
    tail = between(sim.commands, 5.5, FROZEN[1])
    assert len(tail) == 50 and all(values == tail[0] for values in tail), "at rest"
    frozen = [(control, reason) for seconds, control, reason in states if 5.0 < seconds < FROZEN[1]]
    assert all(control in ("braking", "holding") for control, _ in frozen), set(frozen)
    assert any("left_wrist_0_rgb" in reason for _, reason in frozen), set(frozen)

    # It returns: chunks, commands that move, arms that follow.
    assert chunks[9.9] - chunks[6.5] > 20
    last = between(sim.commands, 7.0, 10.0)
    assert any(a != b for a, b in zip(last, last[1:]))
    assert policy.wait_for_control("running")
    moved = [max(values) - min(values) for values in zip(*between(sim.measured, 0.0, 10.0))]
    assert max(moved) > 0.02, f"the arms move: {moved}"
