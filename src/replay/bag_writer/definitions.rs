//! The message types that are written, as rosbag2 stores them: each with the types that it contains.

use crate::messages::{
    ActionChunkMessage, FLOAT64_MULTI_ARRAY as FLOAT64_MULTI_ARRAY_NAME, JointStateMessage,
    JointTrajectoryMessage, PolicyStatusMessage, STRING as STRING_NAME,
};

/// A message type.
#[derive(Debug)]
pub(in crate::replay) struct MessageType {
    pub(super) name: &'static str,
    /// Hash of its description (REP 2016), with which ROS 2 tells whether two sides mean the same type. Empty for our
    /// own types: who has their package has them from there.
    pub(super) hash: &'static str,
    /// The type, then each contained type behind a line of 80 `=` and its name.
    pub(super) definition: &'static str,
}

macro_rules! contained {
    ($name:literal, $fields:literal) => {
        concat!(
            "================================================================================\nMSG: ",
            $name,
            "\n",
            $fields
        )
    };
}

macro_rules! header {
    () => {
        concat!(
            contained!("std_msgs/Header", "builtin_interfaces/Time stamp\nstring frame_id\n"),
            contained!("builtin_interfaces/Time", "int32 sec\nuint32 nanosec\n")
        )
    };
}

impl MessageType {
    pub const FLOAT64_MULTI_ARRAY: Self = Self {
        name: FLOAT64_MULTI_ARRAY_NAME,
        hash: "RIHS01_1025ddc6b9552d191f89ef1a8d2f60f3d373e28b283d8891ddcc974e8c55397f",
        definition: concat!(
            "std_msgs/MultiArrayLayout layout\nfloat64[] data\n",
            contained!(
                "std_msgs/MultiArrayLayout",
                "std_msgs/MultiArrayDimension[] dim\nuint32 data_offset\n"
            ),
            contained!("std_msgs/MultiArrayDimension", "string label\nuint32 size\nuint32 stride\n")
        ),
    };

    pub const JOINT_STATE: Self = Self {
        name: JointStateMessage::TYPE,
        hash: "RIHS01_a13ee3a330e346c9d87b5aa18d24e11690752bd33a0350f11c5882bc9179260e",
        definition: concat!(
            "std_msgs/Header header\nstring[] name\nfloat64[] position\nfloat64[] velocity\nfloat64[] effort\n",
            header!()
        ),
    };

    pub const JOINT_TRAJECTORY: Self = Self {
        name: JointTrajectoryMessage::TYPE,
        hash: "RIHS01_179b33eba59d676f6d967ac71fe35e7ca2f64b2f3928f4a018cec115e213796e",
        definition: concat!(
            "std_msgs/Header header\nstring[] joint_names\ntrajectory_msgs/JointTrajectoryPoint[] points\n",
            header!(),
            contained!(
                "trajectory_msgs/JointTrajectoryPoint",
                "float64[] positions\nfloat64[] velocities\nfloat64[] accelerations\nfloat64[] effort\n\
                 builtin_interfaces/Duration time_from_start\n"
            ),
            contained!("builtin_interfaces/Duration", "int32 sec\nuint32 nanosec\n")
        ),
    };

    pub const STRING: Self = Self {
        name: STRING_NAME,
        hash: "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18",
        definition: "string data\n",
    };

    pub const ACTION_CHUNK: Self = Self {
        name: ActionChunkMessage::TYPE,
        hash: "",
        definition: concat!(include_str!("../../../msg/ActionChunk.msg"), header!()),
    };

    pub const POLICY_STATUS: Self = Self {
        name: PolicyStatusMessage::TYPE,
        hash: "",
        definition: concat!(
            include_str!("../../../msg/PolicyStatus.msg"),
            contained!("builtin_interfaces/Time", "int32 sec\nuint32 nanosec\n")
        ),
    };
}
