//! The three stages behind one boundary: vision, prefix, denoise. The only room with `unsafe`.
