//! How RocksDB is set up, and what memory it takes: one limit for what all families have read and what none of them has flushed.

use rocksdb::{BlockBasedOptions, Cache as BlockCache, Options, WriteBufferManager};

use super::{BLOBS, VECTORS};

/// Bytes of blocks that were read and of changes that are not yet in table files, together; and of the latter alone. The two buffers
/// of rows that are written fit in.
pub(super) const MEMORY: usize = 192 << 20;
pub(super) const BUFFERS: usize = 128 << 20;

/// The memory of one open store.
pub(super) struct Memory {
    pub(super) blocks: BlockCache,
    pub(super) buffers: WriteBufferManager,
}

impl Memory {
    pub(super) fn new() -> Self {
        let blocks = BlockCache::new_lru_cache(MEMORY);
        // Writers are not stalled at the limit: what is over it is flushed.
        let buffers = WriteBufferManager::new_write_buffer_manager_with_cache(BUFFERS, false, blocks.clone());
        Memory { blocks, buffers }
    }
}

/// Of the whole store.
pub(super) fn db_options(memory: &Memory) -> Options {
    let mut options = Options::default();
    options.set_write_buffer_manager(&memory.buffers);
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // A follower keeps files open that the writer may already have deleted.
    options.set_max_open_files(-1);
    options.set_keep_log_file_num(4);
    options.set_max_total_wal_size(256 << 20);
    options.set_bytes_per_sync(4 << 20);
    options.increase_parallelism(2);
    options
}

/// Of one column family.
pub(super) fn family_options(name: &str, memory: &Memory) -> Options {
    let mut table = BlockBasedOptions::default();
    let mut options = Options::default();
    match name {
        // Rows and blobs do not compress, and are read in long runs or one whole row at a time.
        VECTORS | BLOBS => {
            options.set_compression_type(rocksdb::DBCompressionType::None);
            options.set_write_buffer_size(64 << 20);
            options.set_target_file_size_base(256 << 20);
            options.set_max_bytes_for_level_base(1 << 30);
            table.set_block_size(32 << 10);
        }
        _ => {
            options.set_compression_type(rocksdb::DBCompressionType::Lz4);
            options.set_write_buffer_size(16 << 20);
            table.set_block_size(16 << 10);
        }
    }
    table.set_bloom_filter(10.0, false);
    table.set_block_cache(&memory.blocks);
    options.set_block_based_table_factory(&table);
    options
}
