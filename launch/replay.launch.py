"""The policy node beside a recorded bag, on the built-in model: to see it work without a robot.

ros2 launch pi05_thor replay.launch.py
ros2 launch pi05_thor replay.launch.py bag:=my_bag params_file:=my_robot.yaml checkpoint:=path/to/checkpoint

The bag's own time is the node's (`use_sim_time`). Something has to hear the commands, or the node does not activate:
`ros2 bag record` does, with record:=true, or `ros2 topic echo /commands`.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, IncludeLaunchDescription, TimerAction
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

SHARE = Path(get_package_share_directory("pi05_thor"))

# name, default, description
ARGUMENTS = [
    ("bag", str(SHARE / "sample_bag"), "rosbag2 bag to play"),
    ("rate", "1.0", "bag seconds per second"),
    ("params_file", str(SHARE / "config" / "aloha.yaml"), "ROS 2 parameter file of the robot in the bag"),
    ("checkpoint", "", "folder of a checkpoint; empty: as the parameter file says"),
    ("log_level", "info", "debug, info, warn, error or fatal"),
    ("record", "true", "record the node's topics to the folder `output`"),
    ("output", "policy_commands", "bag to record to; must not exist"),
]

# What `pi05 report` reads of a live run, beside the inputs.
RECORDED = ["/commands", "/policy/chunks", "/policy/status", "/diagnostics"]


def generate_launch_description():
    """Called by `ros2 launch`."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    passed = {name: LaunchConfiguration(name) for name in ("params_file", "checkpoint", "log_level")}
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "policy.launch.py")),
        launch_arguments={**passed, "autostart": "true", "use_sim_time": "true"}.items(),
    )
    record = ExecuteProcess(
        cmd=["ros2", "bag", "record", "-o", LaunchConfiguration("output"), *RECORDED],
        output="log",
        condition=IfCondition(LaunchConfiguration("record")),
    )
    play = ExecuteProcess(
        cmd=["ros2", "bag", "play", "--clock", "200", "--rate", LaunchConfiguration("rate"), LaunchConfiguration("bag")],
        output="screen",
    )
    # The node loads its checkpoint meanwhile.
    return LaunchDescription([*declared, policy, record, TimerAction(period=3.0, actions=[play])])
