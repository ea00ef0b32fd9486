#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| viscache_fuzz::import_body::faiss(data));
