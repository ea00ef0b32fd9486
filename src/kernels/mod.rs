//! Inner products and their kin, each in the widest instructions that the processor has.
//!
//! Searching a cache is scoring rows, and embedding is multiplying matrices: nearly all of the time of either goes by in here. A
//! *kernel* is one such loop. It is written once in plain Rust and again for every instruction set that makes it faster; one
//! program holds all of them and takes the widest *path* that it finds at start. Callers see safe methods on one small value.
//!
//! # An example
//!
//! ```
//! use viscache::kernels::Kernels;
//!
//! let kernels = Kernels::get();
//! assert_eq!(kernels.dot(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), 32.0);
//!
//! // Four rows of eight codes, one behind the other: 0..8, 8..16 and so on. Rows 3 and 0 are scored, in one call.
//! let rows: Vec<u8> = (0..32).collect();
//! let query = [1, 0, 0, 0, 0, 0, 0, -2];
//! let mut scores = Vec::new();
//! kernels.score_codes(&rows[..], &[3, 0], &query, &mut scores);
//! assert_eq!(scores, [24 - 2 * 31, 0 - 2 * 7]);
//!
//! // Whatever else this processor can do gives the same whole numbers.
//! for path in Kernels::available() {
//!     assert_eq!(path.dot_codes(&rows[24..], &query), -38, "{}", path.name());
//! }
//! ```
//!
//! Choose once and pass the value on: it is small, `Copy`, and good on every thread.
//!
//! # Which kernel is written for what
//!
//! `●` stands for code of its own; a name says whose code is taken; the last line counts what [`Kernels::get`] prefers, widest
//! to the right.
//!
//! | kernel | `scalar` | `avx2` | `avx512` | `avx512-vnni` | `neon` | `neon-dotprod` |
//! |---|---|---|---|---|---|---|
//! | `dot`, `dot_f16` | ● | ● | ● | avx512 | ● | neon |
//! | `dot_codes`, `dot_nibbles`, `product_nibbles` | ● | ● | ● | ● | ● | ● |
//! | `distance_codes` | ● | ● | ● | avx512 | ● | ● |
//! | `score_codes`, `score_nibbles` | ● | ● | ● | ● | ● | ● |
//! | `score_signs` | ● | ● | avx2 | ● with VPOPCNTDQ, else avx2 | ● | neon |
//! | `score_f32`, `score_f16` | `dot`, `dot_f16` of the path, row by row | | | | | |
//! | `bias_gelu`, `gelu_slope`, `sigmoid`, `softmax`, `hadamard`, `scale_query` | ● | ● | ● | avx512 | ● | neon |
//! | `quantize_rows` | ● | ● | avx2 | avx2 | ● | neon |
//! | `matmul_q8` | ● | ● | avx2 | ● | ● | ● |
//! | preferred | last | 3rd | 2nd | 1st | 2nd | 1st |
//!
//! Columns two to four are of x86-64, five and six of 64-bit Arm, and any other processor has `scalar`. What each path asks of
//! the processor stands at its token: AVX2 with FMA, F16C and POPCNT; AVX-512 F and BW on top; VNNI on top; NEON; `dotprod`.
//!
//! # What callers may rely on
//!
//! * **Whole numbers are exact.** Kernels of codes give the same number on every path, up to the lengths that their methods
//!   name. So do `hadamard`, `scale_query` and `matmul_q8`, bit for bit: what is stored or embedded on one machine is right on
//!   another.
//! * **Sums of floats are not reordered by chance.** Each path adds in an order of its own, always the same one. Two paths differ
//!   by a few units in the last place of the sum of magnitudes.
//! * **Lengths are checked**, in release as well; a wrong one is a fault of the caller and panics. Values are not: NaN goes
//!   through as arithmetic has it.
//! * **Rows may lie anywhere.** The `score_` methods take a [`Table`] of rows and slot numbers, and fetch rows ahead of the one they
//!   are at; the choice of path costs them one branch a call. A slice is a table of rows that lie one behind the other.
//!
//! # How a call finds its path
//!
//! ```text
//! Kernels::get() ─ once a process: the last of available() ─► Kernels::Avx512(token)
//!
//! kernels.dot(a, b)             dispatch.rs    lengths are compared, then one match
//!    └─ token.dot(a, b)         enter.rs       a method made by enter!, whose one unsafe block enters …
//!         └─ fn dot(a, b)       avx512.rs      … a function with #[target_feature(enable = …)]
//! ```
//!
//! A function with a target feature is compiled for it alone, wherever the program is built; but nothing may call it unless the
//! processor has that feature. The *token* carries the proof: `Avx512` has a private field and one maker, `new`, which asks the
//! processor and answers `None` where it says no. To hold one is to have been told yes.
//!
//! # Why this is sound
//!
//! Every `unsafe` block of this module is of one of three kinds and names its reason.
//!
//! 1. **Entering** a function compiled for other instructions: `enter!` does so with a token in hand, and in one method by hand, where
//!    the token also says whether a further instruction is there. What is to be checked is that no `new` asks for less than the
//!    functions named below it are compiled for, which is a look at one screen.
//! 2. **Loads and stores** through raw pointers, as intrinsics take them. The pointers go into chunks or arrays whose length stands
//!    beside them and has just been cut or compared; what remains behind the last whole chunk goes to `scalar`, which has no `unsafe`.
//! 3. **Single instructions** as assembly, where no stable intrinsic has them: three of Arm's, which touch nothing but the registers
//!    that they are given, and fetching ahead, which may point anywhere because it is a hint and cannot fault.
//!
//! # How it is tested
//!
//! * **Twins.** Every path is held against `scalar` on lengths around registers and cache lines, by proptest: one table in
//!   `twins.rs`, a line a kernel. What a kernel stands for is written out slowly in `tests.rs`, and all paths are held to it.
//! * **Which paths ran** is printed. `VISCACHE_MIN_ISA=avx512-vnni` makes the test fail where that path is not among them, for
//!   a path that was skipped has not passed; `.ci/run` asks for the widest that the system says the processor has.
//! * **Processors that are not at hand** are emulated: `scripts/emulated/avx512.sh` starts a Linux on Bochs' Ice Lake,
//!   `scripts/emulated/arm.sh` takes qemu's processors with `dotprod` and without. Both run the same twins, on cases from a seed.
//!   So nothing in here may need more than `half` and `bytemuck`: `scripts/emulated` compiles this folder by itself.
//!   Emulators tell whether a path is right and nothing about its speed.
//!
//! # To add a kernel
//!
//! 1. Write it in `scalar.rs`, so that a reader believes it.
//! 2. Give it a method in `dispatch.rs` that checks lengths and says what is exact.
//! 3. Name it under `enter!` in every path, by another path's function where that will do. A path that lacks it does not compile.
//! 4. Add a line to `CHECKS` in `twins.rs` and a row to the table above; a test compares the two.
//! 5. Measure before you write it for one instruction set more. The compiler does well on fixed lanes, and a hand-written loop
//!    stays where a bench in `benches/` shows what it gains.
//!
//! A new *path* is a file with a token, an arm in `Kernels`, and a line in [`Kernels::available`].
//!
//! # The files
//!
//! | file | its one idea |
//! |---|---|
//! | `dispatch.rs` | the safe methods, and the choice among paths |
//! | `enter.rs` | how a token enters its functions |
//! | `scalar.rs` | portable code, the reference of the others |
//! | `avx2.rs` | AVX2, FMA, F16C |
//! | `avx512.rs` | AVX-512 F and BW, with VNNI and without |
//! | `neon.rs` | NEON, with `dotprod` and without |
//! | `rows.rs` | many rows for one query, fetched ahead |
//! | `prefetch.rs` | the one instruction that does the fetching |
//! | `pages.rs` | memory that rows lie in, shared by its copies |
//! | `q8.rs` | how 8-bit matrices lie in memory for their product |
//! | `twins.rs`, `tests.rs` | every path held against `scalar`; `scalar` held to what it stands for |
//!
//! Left out: a portable vector type. Paths differ most in how they multiply bytes, and a type over all of them would have to hide
//! just that.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[macro_use]
mod enter;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dispatch;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pages;
mod prefetch;
pub mod q8;
mod rows;
mod scalar;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod twins;

pub use dispatch::Kernels;
pub use pages::{Pages, Word};
pub use prefetch::prefetch;
pub use rows::Table;
pub use scalar::PLANES;
