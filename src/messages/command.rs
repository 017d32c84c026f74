//! What an arm is told, in the three forms that ros2_control takes.
//!
//! The functions that write into a buffer keep its memory: a control loop that brings the same one allocates nothing.

use super::cdr::{CdrError, Reader, Writer};
use super::{encoded, put_header, put_time};
use crate::clock::Stamp;

/// ROS 2 name of the type of [`put_float64_multi_array`].
pub const FLOAT64_MULTI_ARRAY: &str = "std_msgs/msg/Float64MultiArray";

/// `trajectory_msgs/msg/JointTrajectory`, positions only.
#[derive(Clone, Debug, PartialEq)]
pub struct JointTrajectoryMessage<'a> {
    /// Where the points' times count from.
    pub stamp: Stamp,
    /// One per value of each point.
    pub joint_names: Vec<&'a str>,
    /// Earliest first.
    pub points: Vec<TrajectoryPoint<'a>>,
}

/// `trajectory_msgs/msg/JointTrajectoryPoint`, positions only.
#[derive(Clone, Debug, PartialEq)]
pub struct TrajectoryPoint<'a> {
    /// Nanoseconds after the trajectory's stamp.
    pub time_from_start: i64,
    /// rad or m.
    pub positions: &'a [f64],
}

/// A `std_msgs/msg/Float64MultiArray` without layout, as `forward_command_controller` takes it. Replaces what is in
/// `payload`.
pub fn put_float64_multi_array(values: &[f64], payload: &mut Vec<u8>) {
    let mut cdr = Writer::new(payload);
    cdr.length(0); // layout.dim
    cdr.u32(0); // layout.data_offset
    cdr.f64s(values);
}

/// The values of a `std_msgs/msg/Float64MultiArray`, whatever its layout.
pub fn decode_float64_multi_array(payload: &[u8]) -> Result<Vec<f64>, CdrError> {
    /// The least that a dimension takes: the length of its label, size, stride.
    const DIMENSION_BYTES: usize = 12;
    let mut cdr = Reader::new(payload)?;
    cdr.sequence("layout.dim", DIMENSION_BYTES, |cdr| {
        cdr.string("layout.dim.label")?;
        cdr.u32("layout.dim.size")?;
        cdr.u32("layout.dim.stride")
    })?;
    cdr.u32("layout.data_offset")?;
    cdr.f64s("data")
}

/// A `sensor_msgs/msg/JointState` of positions alone. Replaces what is in `payload`.
pub fn put_joint_state(stamp: Stamp, names: &[impl AsRef<str>], position: &[f64], payload: &mut Vec<u8>) {
    let mut cdr = Writer::new(payload);
    put_header(&mut cdr, stamp, "");
    cdr.strings(names);
    cdr.f64s(position);
    cdr.f64s(&[]); // velocity
    cdr.f64s(&[]); // effort
}

impl JointTrajectoryMessage<'_> {
    /// ROS 2 name of the type.
    pub const TYPE: &'static str = "trajectory_msgs/msg/JointTrajectory";

    /// Replaces what is in `payload`.
    pub fn put(&self, payload: &mut Vec<u8>) {
        let mut cdr = Writer::new(payload);
        put_header(&mut cdr, self.stamp, "");
        cdr.strings(&self.joint_names);
        cdr.length(self.points.len());
        for point in &self.points {
            cdr.f64s(point.positions);
            for _velocities_accelerations_effort in 0..3 {
                cdr.f64s(&[]);
            }
            put_time(&mut cdr, Stamp(point.time_from_start));
        }
    }

    /// To a buffer of its own.
    pub fn encode(&self) -> Vec<u8> {
        encoded(|payload| self.put(payload))
    }
}
