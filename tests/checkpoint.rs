//! Checkpoints as people have them: a dictionary inside a dictionary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

mod common;

use common::{Tensors, parts, say};
use viscache::models::weights::Weights;

#[test]
fn tensors_under_model_are_found() {
    for folder in parts("visual_cache") {
        let path = folder.join("adapter_like.pth");
        if !path.exists() {
            say("skipped: visual_cache/adapter_like.pth (not there)");
            continue;
        }
        let (nested, flat) =
            (Weights::open(&path).unwrap(), Tensors::open(&folder.join("bind_rms.safetensors")));
        let mut compared = 0;
        for (name, expected) in flat.iter() {
            assert_eq!(nested.values(name, &expected.shape).unwrap(), expected.floats(), "{name}");
            compared += 1;
        }
        assert!(nested.names().count() > compared, "there are keys of other parts beside");
        say(&format!("adapter_like.pth: {compared} tensors under `model` equal"));
    }
}
