//! The six standard parameter services and `/parameter_events`: message types in, [`Parameters`] out.
//!
//! What is allowed and what is said when it is not stands in [`crate::config`]; here are only its ROS names.

use r2r::builtin_interfaces::msg::Time;
use r2r::rcl_interfaces::msg::{
    FloatingPointRange, IntegerRange, ListParametersResult, Parameter as ParameterMessage,
    ParameterDescriptor, ParameterEvent, ParameterValue as ValueMessage, SetParametersResult,
};
use r2r::rcl_interfaces::srv::{
    DescribeParameters, GetParameterTypes, GetParameters, ListParameters, SetParameters,
    SetParametersAtomically,
};
use r2r::{Node, ParameterValue, Publisher, QosProfile};

use super::service::{Service, answer};
use crate::clock::Stamp;
use crate::config::live::{Given, Parameters};
use crate::config::parameters::{Kind, Value};

/// Most names in one request that are answered: several times as many as there are parameters.
const NAMES_MAX: usize = 4096;

/// The services of one node.
pub struct ParameterServices {
    list: Service<ListParameters::Service>,
    get: Service<GetParameters::Service>,
    get_types: Service<GetParameterTypes::Service>,
    describe: Service<DescribeParameters::Service>,
    set: Service<SetParameters::Service>,
    set_atomically: Service<SetParametersAtomically::Service>,
    events: Publisher<ParameterEvent>,
    node: String,
}

impl ParameterServices {
    /// Offers them under the node's name.
    pub fn new(node: &mut Node) -> r2r::Result<Self> {
        Ok(Self {
            list: Service::new(node, "~/list_parameters", QosProfile::parameters())?,
            get: Service::new(node, "~/get_parameters", QosProfile::parameters())?,
            get_types: Service::new(node, "~/get_parameter_types", QosProfile::parameters())?,
            describe: Service::new(node, "~/describe_parameters", QosProfile::parameters())?,
            set: Service::new(node, "~/set_parameters", QosProfile::parameters())?,
            set_atomically: Service::new(node, "~/set_parameters_atomically", QosProfile::parameters())?,
            events: node.create_publisher("/parameter_events", QosProfile::parameter_events())?,
            node: node.fully_qualified_name()?,
        })
    }

    /// Answers what has been asked. Changes go through `set`, which says which names changed, or why none did.
    pub fn serve(
        &mut self,
        now: Stamp,
        configured: bool,
        parameters: &mut Parameters,
        mut set: impl FnMut(&mut Parameters, &[(String, Given)]) -> Result<Vec<String>, String>,
    ) {
        self.list.drain(|request| {
            let (names, prefixes) = parameters.names(&request.message.prefixes, request.message.depth);
            answer(request, ListParameters::Response { result: ListParametersResult { names, prefixes } });
        });
        self.get.drain(|request| {
            let names = bounded(&request.message.names);
            let values = names.iter().map(|name| value_message(parameters.get(name))).collect();
            answer(request, GetParameters::Response { values });
        });
        self.get_types.drain(|request| {
            let names = bounded(&request.message.names);
            let types = names.iter().map(|name| value_message(parameters.get(name)).type_).collect();
            answer(request, GetParameterTypes::Response { types });
        });
        self.describe.drain(|request| {
            let names = bounded(&request.message.names);
            let descriptors = names.iter().map(|name| descriptor(parameters, name, configured)).collect();
            answer(request, DescribeParameters::Response { descriptors });
        });
        let mut changed = Vec::new();
        let mut outcome = |parameters: &mut Parameters, changes: &[(String, Given)]| {
            let outcome = set(parameters, changes);
            let (successful, reason) = match outcome {
                Ok(names) => {
                    changed.extend(names);
                    (true, String::new())
                }
                Err(reason) => (false, reason),
            };
            SetParametersResult { successful, reason: reason.replace('\0', "") }
        };
        self.set.drain(|request| {
            let changes = bounded(&request.message.parameters).iter().map(given);
            let results = changes.map(|change| outcome(parameters, &[change])).collect();
            answer(request, SetParameters::Response { results });
        });
        self.set_atomically.drain(|request| {
            let changes: Vec<_> = bounded(&request.message.parameters).iter().map(given).collect();
            let result = outcome(parameters, &changes);
            answer(request, SetParametersAtomically::Response { result });
        });
        if !changed.is_empty() {
            self.announce(now, parameters, &changed);
        }
    }

    /// Tells `/parameter_events` that these have changed.
    pub fn announce(&self, now: Stamp, parameters: &Parameters, names: &[String]) {
        let (sec, nanosec) = now.to_ros();
        let event = ParameterEvent {
            stamp: Time { sec, nanosec },
            node: self.node.clone(),
            changed_parameters: names
                .iter()
                .map(|name| ParameterMessage {
                    name: name.clone(),
                    value: value_message(parameters.get(name)),
                })
                .collect(),
            ..ParameterEvent::default()
        };
        if let Err(error) = self.events.publish(&event) {
            tracing::warn!("/parameter_events: {error}");
        }
    }
}

fn bounded<T>(items: &[T]) -> &[T] {
    &items[..items.len().min(NAMES_MAX)]
}

/// What ROS gave the node at start: parameter files and `-p`.
pub fn overrides(node: &Node) -> Vec<(String, Given)> {
    let Ok(parameters) = node.params.lock() else { return Vec::new() };
    parameters.iter().map(|(name, parameter)| (name.clone(), given_value(parameter.value.clone()))).collect()
}

fn given_value(value: ParameterValue) -> Given {
    match value {
        ParameterValue::NotSet => Given::NotSet,
        ParameterValue::Bool(v) => Given::Value(Value::Bool(v)),
        ParameterValue::Integer(v) => Given::Value(Value::Integer(v)),
        ParameterValue::Double(v) => Given::Value(Value::Double(v)),
        ParameterValue::String(v) => Given::Value(Value::String(v)),
        ParameterValue::BoolArray(v) => Given::Value(Value::BoolArray(v)),
        ParameterValue::DoubleArray(v) => Given::Value(Value::DoubleArray(v)),
        ParameterValue::StringArray(v) => Given::Value(Value::StringArray(v)),
        ParameterValue::IntegerArray(v) => Given::IntegerArray(v),
        ParameterValue::ByteArray(v) => Given::ByteArray(v),
    }
}

fn given(parameter: &ParameterMessage) -> (String, Given) {
    let value = &parameter.value;
    let value = match value.type_ {
        1 => ParameterValue::Bool(value.bool_value),
        2 => ParameterValue::Integer(value.integer_value),
        3 => ParameterValue::Double(value.double_value),
        4 => ParameterValue::String(value.string_value.clone()),
        5 => ParameterValue::ByteArray(value.byte_array_value.clone()),
        6 => ParameterValue::BoolArray(value.bool_array_value.clone()),
        7 => ParameterValue::IntegerArray(value.integer_array_value.clone()),
        8 => ParameterValue::DoubleArray(value.double_array_value.clone()),
        9 => ParameterValue::StringArray(value.string_array_value.clone()),
        _ => ParameterValue::NotSet,
    };
    (parameter.name.clone(), given_value(value))
}

fn type_of(kind: Kind) -> u8 {
    match kind {
        Kind::Bool => 1,
        Kind::Integer => 2,
        Kind::Double => 3,
        Kind::String => 4,
        Kind::BoolArray => 6,
        Kind::DoubleArray => 8,
        Kind::StringArray => 9,
    }
}

fn value_message(value: Option<&Value>) -> ValueMessage {
    let mut message = ValueMessage::default();
    let Some(value) = value else { return message };
    message.type_ = match value {
        Value::Bool(_) => 1,
        Value::Integer(_) => 2,
        Value::Double(_) => 3,
        Value::String(_) => 4,
        Value::BoolArray(_) => 6,
        Value::DoubleArray(_) => 8,
        Value::StringArray(_) => 9,
    };
    match value.clone() {
        Value::Bool(v) => message.bool_value = v,
        Value::Integer(v) => message.integer_value = v,
        Value::Double(v) => message.double_value = v,
        Value::String(v) => message.string_value = v,
        Value::BoolArray(v) => message.bool_array_value = v,
        Value::DoubleArray(v) => message.double_array_value = v,
        Value::StringArray(v) => message.string_array_value = v,
    }
    message
}

fn descriptor(parameters: &Parameters, name: &str, configured: bool) -> ParameterDescriptor {
    let Some(described) = parameters.describe(name, configured) else {
        return ParameterDescriptor { name: name.to_owned(), ..ParameterDescriptor::default() };
    };
    ParameterDescriptor {
        name: name.to_owned(),
        type_: type_of(described.kind),
        description: described.description,
        additional_constraints: described.additional_constraints,
        read_only: described.read_only,
        dynamic_typing: false,
        floating_point_range: described
            .floating_point_range
            .map(|(from_value, to_value)| FloatingPointRange { from_value, to_value, step: 0.0 })
            .into_iter()
            .collect(),
        integer_range: described
            .integer_range
            .map(|(from_value, to_value)| IntegerRange { from_value, to_value, step: 0 })
            .into_iter()
            .collect(),
    }
}
