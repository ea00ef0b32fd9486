#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| _ = viscache_fuzz::media_body::any(data));
