"""What every test of the node's ROS 2 side stands on: a domain of its own, peers that spin, processes that end."""

import os
import random
from pathlib import Path

# Before rclpy is loaded: nothing leaves this machine, nobody else's nodes are met, images find room.
os.environ["ROS_DOMAIN_ID"] = str(random.randint(1, 100))
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(Path(__file__).parents[2] / "config/fastdds.xml"))
if os.environ.get("ROS_DISTRO") == "humble":
    os.environ["ROS_LOCALHOST_ONLY"] = "1"

import pytest
import rclpy

from peers import World
from process import drop_dead_segments


def pytest_addoption(parser):
    parser.addoption("--soak-seconds", type=float, default=30.0, help="how long the node's memory is watched (CI: 30)")


@pytest.fixture(scope="session", autouse=True)
def ros():
    drop_dead_segments()  # of earlier runs
    rclpy.init()
    yield
    rclpy.shutdown()


@pytest.fixture
def world(request):
    """A namespace with peers and nodes that live as long as the test."""
    world = World()
    yield world
    world.close()


@pytest.fixture(scope="module")
def shared_world():
    """The same for the whole file."""
    world = World()
    yield world
    world.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows what its nodes said last."""
    report = (yield).get_result()
    if report.failed:
        for name in ("world", "shared_world"):
            for process in getattr(item.funcargs.get(name), "processes", []):
                report.sections.append((f"policy_node {process.pid}", "\n".join(process.lines[-40:])))
