//! The parts that all targets share.

use std::alloc::System;

use cap::Cap;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Runs a function that may use so many bytes of memory more than before. One byte more aborts the
/// process, which libFuzzer reports as a crash.
pub fn within<T>(bytes: usize, run: impl FnOnce() -> T) -> T {
    let limit = ALLOCATOR.allocated() + bytes;
    ALLOCATOR
        .set_limit(limit)
        .expect("the limit is above the use");
    let result = run();
    ALLOCATOR.set_limit(usize::MAX).expect("no limit");
    result
}
