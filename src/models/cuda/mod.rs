//! What the models do on a card beyond the tensor library: passes in place, and uploads from pinned memory.
//!
//! `passes.cu` is compiled to PTX by `build.rs` when the feature `cuda` is on; the driver finishes it when it is first used.

use std::cell::RefCell;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda::cudarc::driver::sys::CU_MEMHOSTALLOC_PORTABLE;
use candle_core::cuda::cudarc::driver::{DeviceRepr, LaunchConfig, PinnedHostSlice, PushKernelArg};
use candle_core::cuda::{CudaDType, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/passes.ptx"));
const MODULE: &str = "viscache-passes";
/// Numbers that a thread works on.
const LANES: usize = 8;
const THREADS: u32 = 256;
/// Blocks of a launch at most: enough to fill any card, each going on where it is not.
const MAX_BLOCKS: u64 = 4096;
/// Numbers that a core narrows at a time.
const CHUNK: usize = 1 << 16;

/// A pass of `passes.cu`: its name without the type.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pass {
    /// `x ← x + term`
    Add,
    /// `x ← gelu(x + term)`
    BiasGelu,
}

/// Whether a pass takes rows of this length: of whole packs.
pub(super) fn takes(width: usize) -> bool {
    width > 0 && width.is_multiple_of(LANES)
}

/// Runs a pass over contiguous `x`, with `term` of the same shape or of one row.
pub(super) fn run(
    pass: Pass,
    x: &mut CudaStorage,
    layout: &Layout,
    term: &CudaStorage,
    term_layout: &Layout,
) -> Result<()> {
    match (x.dtype(), term.dtype()) {
        (DType::F32, DType::F32) => launch::<f32>(pass, "f32", x, layout, term, term_layout),
        (DType::BF16, DType::BF16) => launch::<bf16>(pass, "bf16", x, layout, term, term_layout),
        (x, term) => bail!("a pass in place takes f32 or bf16 on both sides, not {x:?} and {term:?}"),
    }
}

fn launch<T: CudaDType + DeviceRepr>(
    pass: Pass,
    suffix: &str,
    x: &mut CudaStorage,
    layout: &Layout,
    term: &CudaStorage,
    term_layout: &Layout,
) -> Result<()> {
    let (Some((start, end)), Some((from, to))) =
        (layout.contiguous_offsets(), term_layout.contiguous_offsets())
    else {
        bail!("a pass in place needs contiguous tensors");
    };
    let (count, period) = (end - start, to - from);
    let whole = |n: usize| n.is_multiple_of(LANES);
    if !(takes(period) && count.is_multiple_of(period) && whole(start) && whole(from)) {
        bail!("a pass in place takes whole rows of a multiple of {LANES} numbers, not {count} with {period}");
    }
    let (packs, period) = ((count / LANES) as u64, (period / LANES) as u64);
    if packs == 0 {
        return Ok(());
    }
    let name = match pass {
        Pass::Add => format!("add_{suffix}"),
        Pass::BiasGelu => format!("bias_gelu_{suffix}"),
    };
    let device = x.device.clone();
    let function = device.get_or_load_custom_func(&name, MODULE, PTX)?;
    let mut into = x.as_cuda_slice_mut::<T>()?.slice_mut(start..end);
    let term = term.as_cuda_slice::<T>()?.slice(from..to);
    let mut launch = function.builder();
    launch.arg(&mut into).arg(&term).arg(&packs).arg(&period);
    let blocks = packs.div_ceil(u64::from(THREADS)).min(MAX_BLOCKS) as u32;
    let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the kernel has these four parameters; it reads and writes `packs` packs of `into` and reads `period` packs of
    // `term`, both of which lie inside their slices by the checks above and are aligned to a pack.
    unsafe { launch.launch(config) }.w()?;
    Ok(())
}

thread_local! {
    /// Where inputs wait for their copy. One for each thread that feeds a card, as large as its largest batch.
    static PINNED: RefCell<Option<PinnedHostSlice<bf16>>> = const { RefCell::new(None) };
}

/// Brings f32 numbers onto a card as bf16: narrowed by all cores into pinned memory, which the card reads by itself.
pub(super) fn upload(values: &[f32], shape: &Shape, device: &CudaDevice) -> Result<Tensor> {
    let count = values.len();
    // SAFETY: what is copied to below is written in full before anything reads it.
    let mut target = unsafe { device.alloc::<bf16>(count)? };
    PINNED.with_borrow_mut(|pinned| {
        if pinned.as_ref().is_none_or(|pinned| pinned.len() < count) {
            *pinned = None; // gives the old one back first
            let context = device.cuda_stream().context().clone();
            // SAFETY: only what was written is read: the first `count` numbers, below.
            *pinned = Some(
                unsafe { context.alloc_pinned_with_flags::<bf16>(count, CU_MEMHOSTALLOC_PORTABLE) }.w()?,
            );
        }
        let Some(pinned) = pinned else { bail!("there is no pinned memory") };
        let waiting = &mut pinned.as_mut_slice().w()?[..count];
        let chunks = waiting.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK));
        chunks.for_each(|(narrow, wide)| {
            narrow.iter_mut().zip(wide).for_each(|(narrow, &wide)| *narrow = bf16::from_f32(wide));
        });
        device.memcpy_htod(&*waiting, &mut target)?;
        // The next batch is written to the same place.
        device.synchronize()
    })?;
    let storage = CudaStorage::wrap_cuda_slice(target, device.clone());
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape.clone(), BackpropOp::none(), false))
}
