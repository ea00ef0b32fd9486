//! Checkpoints as people have them: a dictionary inside a dictionary.

use viscache::models::weights::Weights;

use crate::common::{Tensors, parts, say};

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

#[test]
fn a_scripted_archive_is_read_by_its_modules_names() {
    for folder in parts("checkpoint") {
        let file = Weights::open(&folder.join("scripted.pt")).unwrap();
        let counted = |n: u16| (0..n).map(f32::from).collect::<Vec<_>>();
        assert_eq!(file.values("visual.proj", &[2, 3]).unwrap(), counted(6));
        assert_eq!(file.values("visual.attn.in_proj_weight", &[6, 2]).unwrap(), counted(12));
        assert_eq!(file.values("visual.blocks.1.weight", &[2]).unwrap(), [1.0, 1.0]);
        assert_eq!(file.values("logit_scale", &[]).unwrap(), [1.5]);
        assert!(file.shape("visual.attn.out_proj.bias").is_some() && file.shape("training").is_none());
    }
}

#[test]
fn a_part_of_a_storage_is_read_where_it_begins() {
    for folder in parts("checkpoint") {
        let file = Weights::open(&folder.join("views.pth")).unwrap();
        assert_eq!(file.values("part", &[3]).unwrap(), [4.0, 5.0, 6.0]);
        assert_eq!(file.values("other", &[2]).unwrap(), [2.0, 3.0]);
        assert_eq!(file.values("whole", &[10]).unwrap()[9], 9.0);
    }
}
