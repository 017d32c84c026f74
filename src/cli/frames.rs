//! Real frames for commands that measure on them: a bag's observations, or a recorded case. Frames that tell nothing are
//! refused.

use std::path::{Path, PathBuf};

use super::Failure;
use super::replay::load_config;
use crate::model::sampler::noise;
use crate::model::{ModelInput, Pixels};
use crate::pipeline::Model;
use crate::pipeline::setup::Setup;
use crate::replay::bag::Bag;
use crate::replay::observations::observations;
use crate::replay::topics::Topics;
use crate::verify::Case;

/// Where frames come from.
#[derive(clap::Args)]
pub struct FrameArgs {
    #[command(flatten)]
    inputs: FrameInputs,
    /// Checkpoint folder, synth:tiny or synth:full [default: parameter `checkpoint`]
    #[arg(long, value_name = "D")]
    pub checkpoint: Option<String>,
    /// ROS 2 parameter file [default: the built-in config/aloha.yaml]
    #[arg(long, value_name = "F")]
    config: Option<PathBuf>,
    /// Observations taken from a bag, evenly spread
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    samples: u32,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct FrameInputs {
    /// rosbag2 folder, .mcap or .db3 file
    #[arg(long, value_name = "B")]
    bag: Option<PathBuf>,
    /// Recorded case
    #[arg(long, value_name = "CASE.safetensors")]
    case: Option<PathBuf>,
}

/// Frames of a checkpoint's cameras, at least one.
pub struct Frames {
    pub model: Model,
    pub inputs: Vec<ModelInput>,
    /// Of the first one's chunk: as recorded, or some.
    pub noise: Vec<f32>,
    /// The bag or the case.
    pub source: String,
}

impl FrameArgs {
    /// Reads them; every one has something to see.
    pub fn read(&self) -> Result<Frames, Failure> {
        let frames = match (&self.inputs.case, &self.inputs.bag) {
            (Some(path), _) => {
                let name = self.checkpoint.as_deref().ok_or("--case: needs --checkpoint too")?;
                let model = Model::open_network(name)?;
                let start = Case::read(path, &model)?.start()?;
                Frames {
                    model,
                    inputs: vec![start.input],
                    noise: start.noise,
                    source: path.display().to_string(),
                }
            }
            (None, Some(path)) => self.of_bag(path)?,
            (None, None) => return Err("expected --bag or --case".into()),
        };
        for (i, input) in frames.inputs.iter().enumerate() {
            check(input).map_err(|why| format!("{}: frame {}: {why}", frames.source, i + 1))?;
        }
        Ok(frames)
    }

    fn of_bag(&self, path: &Path) -> Result<Frames, Failure> {
        let config = load_config(self.config.as_deref(), self.checkpoint.clone())?;
        let (bag, setup) = (Bag::open(path)?, Setup::open(&config)?);
        let topics = Topics::resolve(&bag, &config, &setup.cameras)?;
        let found = observations(&bag, &config, &setup.cameras.names, &topics, self.samples as usize)?;
        let source = path.display().to_string();
        if found.is_empty() {
            return Err(
                format!("{source}: no complete observation: `pi05 replay` says what is missing").into()
            );
        }
        let encode =
            |(observation, prompt): &(_, String)| Ok(setup.policy.encode(observation, prompt)?.input);
        let inputs = found.iter().map(encode).collect::<Result<_, Failure>>()?;
        let dims = setup.model.dims()?;
        Ok(Frames { model: setup.model, inputs, noise: noise(0, 0, dims.horizon * dims.action_dim), source })
    }
}

/// Whether a frame can tell ranges: images that show something.
fn check(input: &ModelInput) -> Result<(), &'static str> {
    fn is_flat<T: PartialEq>(pixels: &[T]) -> bool {
        pixels.windows(2).all(|pair| pair[0] == pair[1])
    }
    let mut present = input.images.iter().flatten().peekable();
    if present.peek().is_none() {
        return Err("no camera image; calibrate on frames of all cameras");
    }
    for image in present {
        match image {
            Pixels::F32(data) if data.iter().any(|x| !x.is_finite()) => {
                return Err("a camera image has values that are no numbers; calibrate on real frames");
            }
            Pixels::U8(data) if is_flat(data) => {
                return Err("a camera image is all one colour; calibrate on real frames");
            }
            Pixels::F32(data) if is_flat(data) => {
                return Err("a camera image is all one colour; calibrate on real frames");
            }
            _ => {}
        }
    }
    Ok(())
}
