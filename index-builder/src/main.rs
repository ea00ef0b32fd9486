//! Builds visual caches.

mod import;
mod scenes;

fn main() {}
