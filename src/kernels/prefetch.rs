//! Data that will be wanted soon.

/// Asks the processor to bring `data` near. Never faults, never changes a result.
#[inline]
pub fn prefetch<T>(data: &[T]) {
    let (start, end) = (data.as_ptr().cast::<u8>(), size_of_val(data));
    let mut line = 0;
    while line < end {
        fetch(start.wrapping_add(line));
        line += 64;
    }
}

/// Fetches the cache line at an address.
#[inline]
pub(super) fn fetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch of any address is a hint that cannot fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a prefetch of any address is a hint that cannot fault.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}
