//! The one reader of bytes in the library's module of this name.

#[path = "../../src/media/npy.rs"]
pub mod npy;
