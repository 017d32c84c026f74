//! The limits in a robot's URDF: position, velocity and, where it says so, acceleration and jerk, by joint name.
//!
//! Promises: a file is at most [`URDF_MAX`] bytes and has no document type (and so no entities that grow); a number that
//! is none is refused with the joint's name. Called while parameters are read. It knows no kinematics.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::error::shortened;

/// Largest URDF that is read. Meshes are in files of their own.
pub const URDF_MAX: usize = 16 << 20;

/// What a URDF says of one joint. `None`: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct UrdfLimit {
    /// Lowest position (rad or m): the higher one of the limit and the soft limit. None of a continuous joint.
    pub lower: Option<f64>,
    /// Highest position, likewise.
    pub upper: Option<f64>,
    /// rad/s or m/s.
    pub velocity: Option<f64>,
    /// rad/s² or m/s².
    pub acceleration: Option<f64>,
    /// rad/s³ or m/s³.
    pub jerk: Option<f64>,
}

/// The limits of the joints of a file, or what is wrong with it.
pub fn read(path: &Path) -> Result<BTreeMap<String, UrdfLimit>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(URDF_MAX as u64 + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() > URDF_MAX {
        return Err(format!("more than {URDF_MAX} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "bytes that are no UTF-8".to_owned())?;
    limits(&text)
}

/// The limits of the joints of a text.
pub fn limits(text: &str) -> Result<BTreeMap<String, UrdfLimit>, String> {
    let document = roxmltree::Document::parse(text).map_err(|error| error.to_string())?;
    let robot = document.root_element();
    if robot.tag_name().name() != "robot" {
        return Err(format!("the element <{}> where <robot> is expected", robot.tag_name().name()));
    }
    let mut joints = BTreeMap::new();
    // Those of the robot itself: a transmission has elements of the same name.
    for joint in robot.children().filter(|node| node.has_tag_name("joint")) {
        let Some(name) = joint.attribute("name") else { continue };
        let child = |tag: &str| joint.children().find(|node| node.has_tag_name(tag));
        let number = |tag: &str, attribute: &str| -> Result<Option<f64>, String> {
            let Some(text) = child(tag).and_then(|node| node.attribute(attribute)) else { return Ok(None) };
            match text.trim().parse::<f64>() {
                Ok(value) if value.is_finite() => Ok(Some(value)),
                _ => Err(format!(
                    "{attribute}=\"{}\" of joint {}, which is no number",
                    shortened(text),
                    shortened(name)
                )),
            }
        };
        let tighter = |a: Option<f64>, b: Option<f64>, of: fn(f64, f64) -> f64| match (a, b) {
            (Some(a), Some(b)) => Some(of(a, b)),
            (a, b) => a.or(b),
        };
        let turns_on = joint.attribute("type") == Some("continuous");
        let position = |limit: Option<f64>| limit.filter(|_| !turns_on);
        // Of two limits the one that is left out is 0. Where both are, there are none: so simulators' files mean it.
        let (lower, upper) = match (number("limit", "lower")?, number("limit", "upper")?) {
            (None, None) => (None, None),
            (lower, upper) => (lower.or(Some(0.0)), upper.or(Some(0.0))),
        };
        let lower = tighter(lower, number("safety_controller", "soft_lower_limit")?, f64::max);
        let upper = tighter(upper, number("safety_controller", "soft_upper_limit")?, f64::min);
        let limit = UrdfLimit {
            lower: position(lower),
            upper: position(upper),
            velocity: number("limit", "velocity")?,
            acceleration: number("limit", "acceleration")?,
            jerk: number("limit", "jerk")?,
        };
        if joints.insert(name.to_owned(), limit).is_some() {
            return Err(format!("joint {} twice", shortened(name)));
        }
    }
    Ok(joints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_by_name_and_the_soft_ones_count() {
        let text = r#"<?xml version="1.0"?><robot name="r">
            <joint name="a" type="revolute"><limit lower="-1" upper="2.5" velocity="3" effort="9"/>
              <safety_controller soft_lower_limit="-0.5" soft_upper_limit="3" k_velocity="1"/></joint>
            <joint name="b" type="continuous"><limit lower="0" upper="0" velocity="1" acceleration="7" jerk="50"/></joint>
            <joint name="c" type="fixed"/>
            <transmission><joint name="a"/></transmission></robot>"#;
        let joints = limits(text).unwrap();
        let a =
            UrdfLimit { lower: Some(-0.5), upper: Some(2.5), velocity: Some(3.0), ..UrdfLimit::default() };
        assert_eq!(joints["a"], a);
        let b = UrdfLimit {
            velocity: Some(1.0),
            acceleration: Some(7.0),
            jerk: Some(50.0),
            ..UrdfLimit::default()
        };
        assert_eq!(joints["b"], b);
        assert_eq!(joints["c"], UrdfLimit::default());
    }

    #[test]
    fn what_is_no_urdf_is_refused() {
        for (text, says) in [
            ("", "root"),
            ("<sdf/>", "<sdf>"),
            (
                "<robot><joint name='a'><limit velocity='${x}'/></joint></robot>",
                "velocity=\"${x}\" of joint a",
            ),
            ("<robot><joint name='a'><limit lower='nan'/></joint></robot>", "joint a"),
            ("<robot><joint name='a'/><joint name='a'/></robot>", "joint a twice"),
            ("<!DOCTYPE r [<!ENTITY e 'x'>]><robot>&e;</robot>", "DTD"),
        ] {
            let error = limits(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
