//! Parameters: one table, one YAML file per robot.
