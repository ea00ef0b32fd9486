//! The two allocators of a program: mimalloc, which Rust allocates with, and the C library's, which RocksDB does.
//!
//! Both keep what they are given back for whoever asks next, and neither looks again later. [`settle`] and [`give_back`] have a server's
//! memory shrink when it rests; [`hold`] has a trainer's stay.

/// Has the C library's allocator map blocks from 256 KiB each for itself, give back what is free at its end from there on, and share two
/// arenas between all threads. Left alone, a cache that changes has it keep up to a fifth of the process for RocksDB's next table
/// (`docs/decisions/0029-allocators-at-rest.md`).
///
/// Does nothing where the environment tells that allocator something, or with another C library.
pub fn settle() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGE: libc::c_int = 256 << 10;
        let told = |(name, _): (std::ffi::OsString, _)| {
            name.to_str().is_some_and(|name| name.starts_with("MALLOC_") || name == "GLIBC_TUNABLES")
        };
        if std::env::vars_os().any(told) {
            return;
        }
        for (option, value) in
            [(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE), (libc::M_ARENA_MAX, 2)]
        {
            // SAFETY: a number that the allocator stores. It takes its own lock.
            unsafe { libc::mallopt(option, value) };
        }
    }
}

/// Has mimalloc hold what is given back for ten seconds before the system gets it. A step of training asks for the same memory again
/// and again, and what the system had in between it clears anew: a tenth of a step.
///
/// For programs that allocate with mimalloc; for others it does nothing. To be called when what is held for good is loaded: what loading
/// leaves in between would be held as well.
pub fn hold() {
    /// `mi_option_purge_delay`, milliseconds, which the crate has no name for. The place is the same in mimalloc 2 and 3.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: it stores a number in a table of the allocator's, at a place that the table has; whoever reads it meanwhile finds the old
    // number or the new.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 10_000) };
}

/// Gives the system what nobody uses. Takes some milliseconds for a gigabyte: for moments of rest.
pub fn give_back() {
    // SAFETY: it may be called by any thread at any time, and touches what is free only.
    unsafe { libmimalloc_sys::mi_collect(true) };
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: likewise.
    unsafe {
        libc::malloc_trim(0)
    };
}
