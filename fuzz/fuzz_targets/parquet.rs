#![no_main]

// The importer catches the parquet reader's panics, so that one is no finding until it gets out.
libfuzzer_sys::fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |data: &[u8]| {
    viscache_fuzz::import_body::parquet(data)
});
