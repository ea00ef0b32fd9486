//! Pictures for a classifier: prepared in the same way each time to test it, and in another way each time to train it.
//!
//! ```text
//! test    picture ─► shorter side to S/0.875, centre S×S; or straight to S×S ─────────────────────────► normalise ─► [3, S, S]
//! train   picture ─► part of it, resized to S×S ─► mirrored? ─► two of fifteen operations ─► 8-bit RGB ─► normalise ─► noise in a box?
//!                    └───────────────────────── all of it chosen before: `Training::choose` ────────────────────────────────┘
//! ```
//!
//! | file | what |
//! |---|---|
//! | `evaluation.rs` | how pictures are prepared for a test |
//! | `training.rs` | how they are for training: choosing and applying |
//! | `crop.rs` | which part of a picture is shown |
//! | `operations.rs` | which operations are drawn (RandAugment), and how strong |
//! | `operation.rs` | one operation |
//! | `point.rs`, `enhance.rs`, `affine.rs` | what operations do: to values, to contrasts, to places |
//! | `erase.rs` | the box of noise |
//! | `labelled.rs` | the same for pictures whose pixels have labels |
//!
//! Choosing draws from a generator that the caller seeds; applying is a function of the picture and the choice. So a choice can be
//! kept, printed and repeated, and operations are tested to the byte against Pillow.
//!
//! Left out: colour jitter, which is off where RandAugment is on; several boxes of noise; a box of one colour.
//!
//! Source: timm 0.5.4, `transforms_factory.py`, with what `auto_augment.py`, `random_erasing.py` and `transforms.py` do; Pillow.

mod affine;
mod crop;
mod enhance;
mod erase;
mod evaluation;
mod labelled;
mod operation;
mod operations;
mod point;
mod training;

pub use affine::Interpolation;
pub use crop::Crop;
pub use erase::{Erase, Erased};
pub use evaluation::{Evaluation, Fit};
pub use labelled::{Cut, CutWindow, Labelled, windows};
pub use operation::Operation;
pub use operations::Operations;
pub use training::{Choice, Training};

/// Mean of each channel over ImageNet's pictures.
pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Standard deviation of each channel.
pub const STD: [f32; 3] = [0.229, 0.224, 0.225];
