//! Topic names as the network knows them: expanded and remapped, for questions about the graph.
//!
//! r2r expands and remaps when it subscribes and publishes, but does not tell the result, and its graph functions take
//! the final name.

/// The node's name and its remapping rules.
#[derive(Clone, Debug)]
pub struct Names {
    namespace: String,
    /// Fully qualified.
    node: String,
    /// From and to, both expanded; the first that fits wins.
    rules: Vec<(String, String)>,
}

impl Names {
    /// `namespace` and `node` as rcl has them; `arguments` are the process's own.
    pub fn new(namespace: &str, node: &str, arguments: &[String]) -> Self {
        let mut names = Self {
            namespace: namespace.trim_end_matches('/').to_owned(),
            node: format!("{}/{node}", namespace.trim_end_matches('/')),
            rules: Vec::new(),
        };
        names.rules = remappings(arguments)
            .filter(|(for_node, _, _)| for_node.is_none_or(|name| name == node))
            .map(|(_, from, to)| (names.expand(from), names.expand(to)))
            .collect();
        names
    }

    /// The node's full name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The final name of a topic.
    pub fn resolve(&self, topic: &str) -> String {
        let expanded = self.expand(topic);
        match self.rules.iter().find(|(from, _)| *from == expanded) {
            Some((_, to)) => to.clone(),
            None => expanded,
        }
    }

    fn expand(&self, name: &str) -> String {
        match name.strip_prefix("~/") {
            Some(private) => format!("{}/{private}", self.node),
            None if name.starts_with('/') => name.to_owned(),
            None => format!("{}/{name}", self.namespace),
        }
    }
}

/// The `-r from:=to` of topics among ROS arguments: the node that they are meant for, from, to.
fn remappings(arguments: &[String]) -> impl Iterator<Item = (Option<&str>, &str, &str)> {
    let mut in_ros_arguments = false;
    let mut flag = false;
    arguments.iter().filter_map(move |argument| {
        match argument.as_str() {
            "--ros-args" => in_ros_arguments = true,
            "--" => in_ros_arguments = false,
            "-r" | "--remap" if in_ros_arguments => {
                flag = true;
                return None;
            }
            rule if flag => {
                flag = false;
                return rule_of(rule);
            }
            _ => {}
        }
        flag = false;
        None
    })
}

fn rule_of(rule: &str) -> Option<(Option<&str>, &str, &str)> {
    let (from, to) = rule.split_once(":=")?;
    if from.starts_with("rosservice://") {
        return None;
    }
    let from = from.strip_prefix("rostopic://").unwrap_or(from);
    let (node, from) = match from.split_once(':') {
        Some((node, from)) => (Some(node), from),
        None => (None, from),
    };
    (!from.starts_with("__")).then_some((node, from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(namespace: &str, arguments: &str) -> Names {
        let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        Names::new(namespace, "policy", &arguments)
    }

    #[test]
    fn relative_absolute_and_private_names_expand() {
        let left = names("/left", "");
        assert_eq!(left.resolve("commands"), "/left/commands");
        assert_eq!(left.resolve("/commands"), "/commands");
        assert_eq!(left.resolve("~/status"), "/left/policy/status");
        assert_eq!(names("/", "").resolve("commands"), "/commands");
    }

    #[test]
    fn remappings_count_where_ros_takes_them() {
        let all = "policy_node -r not:=this --ros-args -r commands:=/arm/commands --remap ~/chunks:=chunks \
                   -r __ns:=/left -r other:joint_states:=x -r policy:joint_states:=js -r rosservice://a:=b -- -r a:=c";
        let names = names("/left", all);
        assert_eq!(names.resolve("commands"), "/arm/commands");
        assert_eq!(names.resolve("~/chunks"), "/left/chunks");
        assert_eq!(names.resolve("joint_states"), "/left/js");
        assert_eq!(names.resolve("a"), "/left/a");
        assert_eq!(names.resolve("not"), "/left/not");
    }
}
