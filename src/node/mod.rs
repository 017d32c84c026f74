//! The ROS 2 node.

/// Runs.
pub fn run() -> Result<(), r2r::Error> {
    let context = r2r::Context::create()?;
    let mut node = r2r::Node::create(context, "policy", "")?;
    let publisher =
        node.create_publisher_untyped("~/chunks", "pi05_thor/msg/ActionChunk", r2r::QosProfile::default())?;
    let _ = publisher;
    node.spin_once(std::time::Duration::from_millis(10));
    Ok(())
}
