//! Work that nobody waits for lets other work go first.

/// Lets other threads go before the calling one, where the system has priorities for threads. Not being allowed to is no harm.
///
/// * `steps`: 0 to 19; with 10 it gets about a tenth of what another has while there is not enough for all, with 15 a thirtieth.
pub fn step_back(steps: i32) {
    // On Linux this is the calling thread's alone.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, steps);
    #[cfg(not(target_os = "linux"))]
    let _ = steps;
}
