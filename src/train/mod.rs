//! Training, as far as it is files and plain numbers. What computes with tensors is in `models`.

pub mod data;
