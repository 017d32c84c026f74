//! What surrounds the network: checkpoint folders, statistics, tokenizer, prompt, image resize, robot adapters.

pub mod checkpoint;
pub mod resize;
pub mod statistics;
