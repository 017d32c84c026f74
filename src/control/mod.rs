//! From chunks to commands: plan, splice, limits, tick. Pure: no ROS, no CUDA, no clock, no allocation in the tick.
