"""launch/*.launch.py, loaded with stand-ins for `launch` and `launch_ros`: these are not among PyPI's wheels.

What is checked is ours: which arguments are declared, and what the node gets for them. On a machine with the real
packages these are used instead.
"""

import importlib.util
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = ["params_file", "namespace", "checkpoint", "backend", "autostart", "log_level", "use_sim_time"]


class Recorded:
    """Keeps what it was made with."""

    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs


class Configuration(Recorded):
    """A launch argument's value, out of a plain dict for a context."""

    def perform(self, context):
        return context[self.args[0]]


def stand_ins(share):
    made = {
        "launch": {"LaunchDescription": Recorded},
        "launch.actions": {
            name: type(name, (Recorded,), {})
            for name in (
                "DeclareLaunchArgument",
                "ExecuteProcess",
                "IncludeLaunchDescription",
                "OpaqueFunction",
                "TimerAction",
            )
        },
        "launch.conditions": {"IfCondition": Recorded},
        "launch.launch_description_sources": {"PythonLaunchDescriptionSource": Recorded},
        "launch.substitutions": {"LaunchConfiguration": Configuration},
        "launch_ros": {},
        "launch_ros.actions": {"Node": type("Node", (Recorded,), {})},
        "launch_ros.parameter_descriptions": {"ParameterValue": lambda value, value_type: value_type(value)},
        "ament_index_python": {},
        "ament_index_python.packages": {"get_package_share_directory": lambda package: str(share)},
    }
    for name, members in made.items():
        module = types.ModuleType(name)
        module.__dict__.update(members)
        yield name, module


@pytest.fixture
def load(monkeypatch):
    for name, module in stand_ins(ROOT):
        monkeypatch.setitem(sys.modules, name, module)

    def load(file):
        spec = importlib.util.spec_from_file_location(file.replace(".", "_"), ROOT / "launch" / file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def defaults(description):
    declared = [action for action in description.args[0] if type(action).__name__ == "DeclareLaunchArgument"]
    return {action.args[0]: action.kwargs["default_value"] for action in declared}


def node_of(module, **given):
    description = module.generate_launch_description()
    (opaque,) = [action for action in description.args[0] if type(action).__name__ == "OpaqueFunction"]
    (node,) = opaque.kwargs["function"]({**defaults(description), **given})
    return node.kwargs


def test_policy_declares_its_arguments(load):
    declared = defaults(load("policy.launch.py").generate_launch_description())
    assert list(declared) == ARGUMENTS
    assert Path(declared["params_file"]).is_file()


def test_arguments_that_are_left_out_override_nothing_of_the_parameter_file(load):
    node = node_of(load("policy.launch.py"))
    file, overrides = node["parameters"]
    assert file.endswith("config/aloha.yaml")
    assert overrides == {"autostart": True}
    assert (node["package"], node["executable"], node["name"]) == ("pi05_thor", "policy_node", "policy")
    assert node["respawn"] and node["respawn_delay"] > 0


def test_arguments_that_are_given_are_laid_over_the_parameter_file(load):
    node = node_of(
        load("policy.launch.py"),
        params_file="mine.yaml",
        namespace="left",
        checkpoint="123",
        backend="cpu",
        autostart="false",
        log_level="debug",
        use_sim_time="True",
    )
    file, overrides = node["parameters"]
    assert file == "mine.yaml"
    assert overrides == {"checkpoint": "123", "backend": "cpu", "autostart": False, "use_sim_time": True}
    assert node["namespace"] == "left"
    assert node["arguments"] == ["--ros-args", "--log-level", "debug"]


def test_a_word_that_is_neither_true_nor_false_is_refused(load):
    with pytest.raises(RuntimeError, match="autostart: expected true or false, found 'maybe'"):
        node_of(load("policy.launch.py"), autostart="maybe")


def test_replay_plays_a_bag_beside_the_node(load):
    description = load("replay.launch.py").generate_launch_description()
    actions = description.args[0]
    names = [type(action).__name__ for action in actions]
    assert names.count("IncludeLaunchDescription") == 1 and names.count("TimerAction") == 1
    (timer,) = [action for action in actions if type(action).__name__ == "TimerAction"]
    (play,) = timer.kwargs["actions"]
    assert play.kwargs["cmd"][:4] == ["ros2", "bag", "play", "--clock"]
    (include,) = [action for action in actions if type(action).__name__ == "IncludeLaunchDescription"]
    assert dict(include.kwargs["launch_arguments"])["use_sim_time"] == "true"
