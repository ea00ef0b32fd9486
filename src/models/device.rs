//! Where a model runs, and in which numbers.
//!
//! | device | numbers | matrix products | everything else |
//! |---|---|---|---|
//! | CPU | `f32` (default) | f32 | f32 |
//! | CPU | `q8_0` | weights and activations in 8 bits, 32 to a scale, sums in 32 bits | f32; so are stems and heads |
//! | CPU | `q6_k`, `q4_k`, decoders only | weights in blocks of 256 as ggml has them, activations in 8 bits; rows that are no such blocks in `q8_0` | f32 |
//! | CPU | `f16`, decoders only | weights and activations in 16 bits | f32 |
//! | CUDA | `bf16` (default) | bf16, sums in f32 | norms in f32 |
//! | CUDA | `f32` | f32 | f32 |
//!
//! bf16 on the CPU is refused: candle widens both operands of every product anew there, weights included.

use std::collections::BTreeMap;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::{CpuStorage, Storage};
use candle_core::{DType, Device, Tensor, Var};

use super::Error;
use crate::allocator;
use crate::kernels::q8::Reach;
use crate::types::WeightDtype;

/// Tells candle how many threads there are, in the one way it remembers: without `RAYON_NUM_THREADS` it asks before every
/// product on the CPU, by reading `/proc/cpuinfo` (0.11.1). For small models that is half of the time, and it grows with the
/// machine.
///
/// And has it do everything but products where it is called, by `CANDLE_NUM_THREADS`: the threads that it shares out other operations
/// to serve one caller at a time, for whom all others wait and spin. We work on as many inputs at a time as there are cores.
///
/// And tells the C library's allocator how to behave ([`allocator::settle`]).
///
/// Values that are there already stay.
///
/// # Safety
/// The first thing that a process does: no other thread may exist, since it changes the environment.
pub unsafe fn settle_process() {
    allocator::settle();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for (name, value) in [("RAYON_NUM_THREADS", threads), ("CANDLE_NUM_THREADS", 1)] {
        if std::env::var_os(name).is_none() {
            // SAFETY: the caller's promise.
            unsafe { std::env::set_var(name, value.to_string()) };
        }
    }
}

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The processor.
    #[default]
    Cpu,
    /// The first CUDA card.
    Cuda,
}

impl DeviceKind {
    /// Opens it.
    ///
    /// # Errors
    /// [`Error::Device`] without a card, or in a program built without the feature `cuda`.
    pub(super) fn device(self) -> Result<Device, Error> {
        let refuse = |why: String| Error::Device { asked: "cuda".into(), why };
        match self {
            DeviceKind::Cpu => Ok(Device::Cpu),
            DeviceKind::Cuda if !cfg!(feature = "cuda") => {
                Err(refuse("this program was built without it; build with `--features cuda`".into()))
            }
            DeviceKind::Cuda => Device::new_cuda(0).map_err(|e| refuse(e.to_string())),
        }
    }
}

impl std::str::FromStr for DeviceKind {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        match word {
            "cpu" => Ok(DeviceKind::Cpu),
            "cuda" => Ok(DeviceKind::Cuda),
            _ => Err(Error::Device { asked: word.into(), why: "it must be cpu or cuda".into() }),
        }
    }
}

/// An open device and the numbers that a model is held in there.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The device.
    pub device: Device,
    /// What weights are held in. With [`WeightDtype::Q8_0`] everything but the layers of transformer blocks is f32.
    pub numbers: WeightDtype,
    /// How far 8-bit codes reach.
    pub reach: Reach,
    /// What is learned, by name. With any, nothing is folded into weights, and they stay in the floats that they came in.
    pub variables: Option<Arc<Variables>>,
}

/// Tensors that are learned, by the names that a checkpoint has them under.
pub type Variables = BTreeMap<String, Var>;

impl Placement {
    fn of(device: Device, numbers: WeightDtype) -> Self {
        Placement { device, numbers, reach: Reach::Full, variables: None }
    }

    /// f32 where the variables are, with these in the place of the tensors of the same names. On a card products are in bf16.
    pub fn learning(variables: Variables) -> Self {
        let device = variables.values().next().map_or(Device::Cpu, |variable| variable.device().clone());
        Placement { variables: Some(Arc::new(variables)), ..Placement::of(device, WeightDtype::F32) }
    }

    /// A variable, where this is one.
    pub(super) fn variable(&self, name: &str) -> Option<Tensor> {
        Some(self.variables.as_ref()?.get(name)?.as_tensor().clone())
    }

    /// Brings numbers to where the model is.
    pub(super) fn tensor(&self, values: Vec<f32>, shape: &[usize]) -> candle_core::Result<Tensor> {
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(self.dtype())?.to_device(&self.device)
    }

    /// f32 on the CPU.
    pub fn cpu() -> Self {
        Placement::of(Device::Cpu, WeightDtype::F32)
    }

    /// Opens a device.
    ///
    /// * `numbers`: `None` for the device's own, f32 on the CPU and bf16 on a card.
    ///
    /// # Errors
    /// [`Error::Device`]: numbers that are of no use there, or a program built without the feature `cuda`.
    pub fn open(kind: DeviceKind, numbers: Option<WeightDtype>) -> Result<Self, Error> {
        let refuse = |asked: &str, why: &str| Err(Error::Device { asked: asked.into(), why: why.into() });
        match (kind, numbers) {
            (DeviceKind::Cpu, Some(WeightDtype::Bf16)) => {
                refuse("cpu", "bf16 is slower than f32 there; use f32 or q8_0")
            }
            (DeviceKind::Cpu, numbers) => Ok(Placement::of(Device::Cpu, numbers.unwrap_or(WeightDtype::F32))),
            (
                DeviceKind::Cuda,
                Some(numbers @ (WeightDtype::Q8_0 | WeightDtype::F16 | WeightDtype::Q4K | WeightDtype::Q6K)),
            ) => refuse("cuda", &format!("{numbers} is for the processor; use bf16 or f32 there")),
            (DeviceKind::Cuda, numbers) => {
                Ok(Placement::of(kind.device()?, numbers.unwrap_or(WeightDtype::Bf16)))
            }
        }
    }

    /// Whether the layers of blocks are rounded to fewer bits than 16.
    pub fn coarse(&self) -> bool {
        matches!(self.numbers, WeightDtype::Q8_0 | WeightDtype::Q4K | WeightDtype::Q6K)
    }

    /// The type of tensors.
    pub fn dtype(&self) -> DType {
        match self.numbers {
            WeightDtype::F32 | WeightDtype::Q8_0 | WeightDtype::F16 | WeightDtype::Q4K | WeightDtype::Q6K => {
                DType::F32
            }
            WeightDtype::Bf16 => DType::BF16,
        }
    }
}

impl Placement {
    /// Brings an input from the CPU to where the model is.
    pub(super) fn place(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let (Device::Cuda(device), DType::BF16) = (&self.device, self.dtype())
            && x.device().is_cpu()
            && x.dtype() == DType::F32
        {
            let (storage, layout) = x.storage_and_layout();
            if let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) =
                (&*storage, layout.contiguous_offsets())
            {
                return super::cuda::upload(&values[start..end], x.shape(), device);
            }
        }
        x.to_dtype(self.dtype())?.to_device(&self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_no_use_on_a_device_are_refused_by_name() {
        let refused = |kind, numbers| Placement::open(kind, Some(numbers)).unwrap_err().to_string();
        assert!(refused(DeviceKind::Cpu, WeightDtype::Bf16).contains("q8_0"));
        assert!(refused(DeviceKind::Cuda, WeightDtype::Q8_0).contains("bf16"));
        if cfg!(not(feature = "cuda")) {
            assert!(DeviceKind::Cuda.device().unwrap_err().to_string().contains("--features cuda"));
        }
        assert_eq!(Placement::open(DeviceKind::Cpu, None).unwrap().numbers, WeightDtype::F32);
    }
}
