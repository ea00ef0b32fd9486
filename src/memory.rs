//! How much memory a server may take, and who gets how much of it.
//!
//! ```text
//! memory_budget_mib ─┬─► requests    limits.max_request_memory_mib, else a quarter
//!    auto: what the  └─► caches      the rest
//!    system leaves
//! ```
//! Beside it are the models' weights, keys and values of answers (`limits.max_answer_memory_mib`), and what the store's engine keeps.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use viscache::cache::{LoadOptions, RowsMode};

/// Share of what the system leaves that a server takes, in percent.
const SHARE: u64 = 75;
/// Where nothing is known of the system, bytes that are taken for left.
const UNKNOWN: u64 = 8 << 30;
/// Requests get at least and at most so much, where nothing is said.
const REQUESTS: [u64; 2] = [64 << 20, 2 << 30];

/// The setting `memory_budget_mib`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBudget {
    /// Most of what the system leaves when the server starts.
    Auto,
    /// So many MiB.
    Mib(u64),
}

impl Serialize for MemoryBudget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            MemoryBudget::Auto => serializer.serialize_str("auto"),
            MemoryBudget::Mib(mib) => serializer.serialize_u64(*mib),
        }
    }
}

impl<'de> Deserialize<'de> for MemoryBudget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Word(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(mib) => Ok(MemoryBudget::Mib(mib)),
            Written::Word(word) => word.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl std::str::FromStr for MemoryBudget {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(MemoryBudget::Auto),
            mib => mib
                .parse()
                .map(MemoryBudget::Mib)
                .map_err(|_| format!("memory_budget_mib is `{mib}`; it must be a number of MiB, or `auto`")),
        }
    }
}

/// Who gets how many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All caches together.
    pub caches: u64,
    /// All requests together.
    pub requests: u64,
    rows: RowsMode,
}

impl Memory {
    /// Divides a budget.
    ///
    /// * `requests`: what they get, where it is said.
    pub fn of(budget: MemoryBudget, requests: Option<u64>, rows: RowsMode) -> Self {
        let total = match budget {
            MemoryBudget::Mib(mib) => mib << 20,
            MemoryBudget::Auto => left().unwrap_or(UNKNOWN) / 100 * SHARE,
        };
        let [least, most] = REQUESTS;
        let requests = requests.unwrap_or((total / 4).clamp(least, most));
        Memory { caches: total.saturating_sub(requests.min(total / 4)), requests, rows }
    }

    /// How caches are opened.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions { rows: self.rows, memory_budget: self.caches }
    }
}

/// Bytes that the system leaves to this process: free memory, and no more than its control group may still take.
fn left() -> Option<u64> {
    let free = free(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(group(&groups, Path::new("/sys/fs/cgroup")).map_or(free, |group| group.min(free)))
}

/// The bytes that `/proc/meminfo` calls available.
fn free(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// Bytes that a process's control groups may still take, those above its own included; nothing without a limit.
///
/// * `groups`: `/proc/self/cgroup`. `root`: where the system shows groups.
fn group(groups: &str, root: &Path) -> Option<u64> {
    let of = |prefix: &str, root: PathBuf, [limit, used]: [&str; 2]| {
        let path = groups.lines().find_map(|line| line.split_once(prefix).map(|(_, path)| path))?;
        let mut folder = Some(root.join(path.trim_start_matches('/')));
        let mut least: Option<u64> = None;
        while let Some(here) = folder.filter(|folder| folder.starts_with(&root)) {
            let number = |name: &str| fs::read_to_string(here.join(name)).ok()?.trim().parse::<u64>().ok();
            if let Some(limit) = number(limit).filter(|limit| *limit < 1 << 60) {
                // Files that the system keeps for quickness give way.
                let files = fs::read_to_string(here.join("memory.stat")).unwrap_or_default();
                let files =
                    files.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok());
                let used = number(used).unwrap_or(0).saturating_sub(files.unwrap_or(0));
                let left = limit.saturating_sub(used);
                least = Some(least.map_or(left, |least| least.min(left)));
            }
            folder = here.parent().map(Path::to_owned);
        }
        least
    };
    let second = of("0::", root.to_owned(), ["memory.max", "memory.current"]);
    let first = of(":memory:", root.join("memory"), ["memory.limit_in_bytes", "memory.usage_in_bytes"]);
    second.into_iter().chain(first).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_get_a_share_and_caches_the_rest() {
        let of = |mib, requests| {
            let memory = Memory::of(MemoryBudget::Mib(mib), requests, RowsMode::Auto);
            (memory.caches >> 20, memory.requests >> 20)
        };
        assert_eq!(of(2048, None), (1536, 512));
        assert_eq!(of(100_000, None), (97_952, 2048));
        assert_eq!(of(2048, Some(100 << 20)), (1948, 100));
        assert_eq!(of(16, None), (12, 64), "requests have to have something");
        assert_eq!(of(0, None), (0, 64));
    }

    #[test]
    fn what_the_system_leaves_is_read_in_every_version() {
        assert_eq!(free("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(free("MemTotal: 9 kB\n"), None);
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(group("0::/a/b\n", root.path()), None);
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "1000\n");
        write("a/memory.current", "700\n");
        write("a/memory.stat", "anon 5\ninactive_file 200\n");
        assert_eq!(group("0::/a/b\n", root.path()), Some(500), "the group above has a limit");
        write("a/b/memory.max", "450\n");
        write("a/b/memory.current", "100\n");
        assert_eq!(group("0::/a/b\n", root.path()), Some(350));
        write("memory/c/memory.limit_in_bytes", "300\n");
        write("memory/c/memory.usage_in_bytes", "100\n");
        assert_eq!(group("4:memory:/c\n3:cpu:/c\n", root.path()), Some(200));
        write("memory/c/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(group("4:memory:/c\n", root.path()), None);
    }

    #[test]
    fn the_setting_is_a_number_or_a_word() {
        let read = |text: &str| serde_json::from_str::<MemoryBudget>(text);
        assert_eq!(read("\"auto\"").unwrap(), MemoryBudget::Auto);
        assert_eq!(read("512").unwrap(), MemoryBudget::Mib(512));
        assert_eq!(read("\"512\"").unwrap(), MemoryBudget::Mib(512));
        assert!(read("\"much\"").unwrap_err().to_string().contains("`auto`"));
        assert_eq!(serde_json::to_string(&MemoryBudget::Auto).unwrap(), "\"auto\"");
    }
}
