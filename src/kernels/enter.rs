//! How a token enters code that is compiled for its instructions.

/// The methods of a token: each enters a function compiled for instructions that the token proves.
macro_rules! enter {
    ($($method:ident = $($function:ident)::+($($argument:ident: $kind:ty),*) $(-> $result:ty)?;)+) => {$(
        #[allow(unused_unsafe, reason = "nothing is to be proved where every processor of the target can")]
        pub(super) fn $method(self, $($argument: $kind),*) $(-> $result)? {
            // SAFETY: `self` proves the instructions: no function named here is compiled for others than `new` asks for.
            unsafe { $($function)::+($($argument),*) }
        }
    )+};
}
