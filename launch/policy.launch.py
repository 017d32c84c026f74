"""The policy node on a robot.

ros2 launch pi05_thor policy.launch.py params_file:=my_robot.yaml checkpoint:=path/to/checkpoint

Arguments are for what changes from one deployment to the next; the truth is the parameter file. An argument that is left
empty overrides nothing.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(get_package_share_directory("pi05_thor"))

# name, default, description
ARGUMENTS = [
    ("params_file", str(SHARE / "config" / "aloha.yaml"), "ROS 2 parameter file of the robot"),
    ("namespace", "", "namespace of the node and of its relative topics"),
    ("checkpoint", "", "folder of a checkpoint, synth:tiny or synth:full; empty: as the parameter file says"),
    ("backend", "", "auto, cpu, cuda, tensorrt, or one for each stage (docs/tensorrt.md); empty: as the parameter file says"),
    ("autostart", "true", "configure and activate by itself; false: wait for a lifecycle manager"),
    ("log_level", "info", "debug, info, warn, error or fatal"),
    ("use_sim_time", "", "true: take the time from /clock; empty: as the parameter file says"),
]


def boolean(name, text):
    """The YAML words for yes and no."""
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise RuntimeError(f"{name}: expected true or false, found {text!r}")


def node(context):
    """The node, with the arguments that were given laid over the parameter file."""
    given = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    overrides = {name: ParameterValue(given[name], value_type=str) for name in ("checkpoint", "backend") if given[name]}
    for name in ("autostart", "use_sim_time"):
        if given[name]:
            overrides[name] = boolean(name, given[name])
    return [
        Node(
            package="pi05_thor",
            executable="policy_node",
            name="policy",
            namespace=given["namespace"] or None,
            parameters=[given["params_file"], overrides],
            arguments=["--ros-args", "--log-level", given["log_level"]],
            output="screen",
            emulate_tty=True,
            # A node that dies has braked the arm, or left it holding; it comes back unconfigured, and starts anew only
            # with autostart.
            respawn=True,
            respawn_delay=2.0,
        )
    ]


def generate_launch_description():
    """Called by `ros2 launch`."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=node)])
