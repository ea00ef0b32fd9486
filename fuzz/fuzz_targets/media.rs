#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    viscache_fuzz::media_body::any(data);
});
