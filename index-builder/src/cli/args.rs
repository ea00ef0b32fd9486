//! What the command line may say.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use viscache::cache::RECALL_SAMPLE;
use viscache::index::{BuildParams, CodeKind};
use viscache::media::Limits;
use viscache::models::DeviceKind;
use viscache::store::RowType;
use viscache::types::{CacheName, WeightDtype};

use crate::discover::TagRule;
use crate::model::ModelArgs;
use crate::{index, scenes};

/// Builds visual caches: pictures or ready embeddings in, an indexed cache out.
///
/// A command that was interrupted or killed goes on where it stopped when it is run again.
///
/// Exit codes: 0 done, 1 failed, 2 the command line is wrong, 3 some inputs were not stored, 130 interrupted.
#[derive(Parser)]
#[command(name = "index-builder", version)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Embed pictures, store them, index the cache.
    Build(BuildArgs),
    /// Store embeddings that exist already, index the cache.
    Import(ImportArgs),
    /// Build the graph of what is stored anew.
    Index(IndexArgs),
    /// Check checksums, alignment, reachability and recall.
    Verify(VerifyArgs),
    /// Merge the store's files and give back what was replaced.
    Compact {
        /// Folder of the store.
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
    },
    /// List the inputs that were not stored, and why.
    Ledger {
        #[command(flatten)]
        place: Place,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// List, rename or delete the caches of a store.
    Caches {
        #[command(subcommand)]
        what: Caches,
    },
    /// Draw scenes of the nano model's world, with captions.
    Scenes(scenes::Args),
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand)]
pub(super) enum Caches {
    /// Name, items, dimension and model of every cache.
    List {
        /// Folder of the store.
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Give a cache another name.
    Rename {
        #[command(flatten)]
        place: Place,
        /// The new name.
        #[arg(long, value_name = "NAME")]
        to: CacheName,
    },
    /// Delete a cache with everything in it. There is no way back.
    Delete {
        #[command(flatten)]
        place: Place,
        /// Do it although the cache has items.
        #[arg(long)]
        yes: bool,
        /// Do it although aliases stand for the cache, and delete them too.
        #[arg(long)]
        force: bool,
    },
}

/// Which cache of which store.
#[derive(Args)]
#[command(next_help_heading = "Cache")]
pub(super) struct Place {
    /// Folder of the store.
    #[arg(long, value_name = "DIR")]
    pub(super) store: PathBuf,
    /// Name of the cache.
    #[arg(long, value_name = "NAME")]
    pub(super) cache: CacheName,
}

/// How a run goes.
#[derive(Args)]
#[command(next_help_heading = "Run")]
pub(super) struct Run {
    /// Threads; 0 means one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) threads: usize,
    /// Store content that is already stored once more.
    #[arg(long)]
    pub(super) keep_duplicates: bool,
    /// How new caches store rows.
    #[arg(long, value_enum, default_value_t = RowTypeArg::F32)]
    pub(super) row_type: RowTypeArg,
    /// Print the plan (memory, disk, time) and stop.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Go on although the plan does not fit.
    #[arg(long)]
    pub(super) force: bool,
    /// Only store; index later with `index-builder index`.
    #[arg(long)]
    pub(super) no_index: bool,
    /// Where the report goes; without it, `report.json` in the store.
    #[arg(long, value_name = "FILE")]
    pub(super) report: Option<PathBuf>,
    /// Progress and result as JSON, an object a line.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) graph: Graph,
}

/// `--codes`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Codes {
    Auto,
    Given(CodeKind),
}

impl FromStr for Codes {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Codes::Auto),
            word => word.parse().map(Codes::Given).map_err(|_| "it must be auto, f32, f16, u8 or u4".into()),
        }
    }
}

/// How the graph is built.
#[derive(Args)]
#[command(next_help_heading = "Index")]
pub(super) struct Graph {
    /// Links per node and upper level; level 0 has twice as many.
    #[arg(long, value_name = "M", default_value_t = BuildParams::DEFAULT_M)]
    pub(super) m: usize,
    /// Candidates kept while inserting.
    #[arg(long, value_name = "EF", default_value_t = BuildParams::DEFAULT_EF_CONSTRUCTION)]
    pub(super) ef_construction: usize,
    /// Rounds in which every item looks for better links once all are in: for quick builds with a small ef-construction.
    #[arg(long, value_name = "N", default_value_t = BuildParams::DEFAULT_REFINE)]
    pub(super) refine: usize,
    /// What the search runs on: f32, f16, u8 or u4; auto measures what their errors do to the ranking and takes the cheapest that
    /// is good enough.
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(super) codes: Codes,
    /// A sample of queries of another modality (numpy file, a row each): nine in ten repair the graph, the others
    /// measure its recall. Once for every kind of query, each with its name: `--queries text=t.npy --queries audio=a.npy`.
    #[arg(long, value_name = "[KIND=]FILE")]
    pub(super) queries: Vec<index::Sample>,
    /// Insert in order on one thread: the same items give the same index.
    #[arg(long)]
    pub(super) deterministic: bool,
    /// Recall@10 below which a new generation is not published.
    #[arg(long, value_name = "R", default_value_t = 0.9)]
    pub(super) min_recall: f64,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum RowTypeArg {
    /// Four bytes a component.
    F32,
    /// Two bytes a component.
    F16,
}

#[derive(Args)]
pub(super) struct BuildArgs {
    #[command(flatten)]
    pub(super) place: Place,
    /// Folder, picture or WebDataset archive (`.tar`, `.tar.gz`); several may be named. Archives inside a folder are read too.
    #[arg(long, value_name = "PATH", required_unless_present = "lists", num_args = 1.., help_heading = "Inputs")]
    pub(super) images: Vec<PathBuf>,
    /// File with a path a line, or `-`; repeat for several. A path is looked for in the list's own folder, then in the
    /// current one. Lines that begin with `#` are comments, unless a file of that name is there (`./#1.jpg` always is one).
    #[arg(long = "list", value_name = "FILE", help_heading = "Inputs")]
    pub(super) lists: Vec<PathBuf>,
    /// Take a tag from the text beside a picture, in a folder or a WebDataset archive: `caption=txt`, `label=cls`,
    /// `licence=json.license`, or `json` for every plain field of it. Repeat for several.
    #[arg(long = "tag", value_name = "NAME=ENDING", help_heading = "Inputs")]
    pub(super) tags: Vec<TagRule>,
    /// Leave out files of these endings, and do not count them as passed over: `--ignore mp4,zip`.
    #[arg(long, value_name = "ENDING", value_delimiter = ',', help_heading = "Inputs")]
    pub(super) ignore: Vec<String>,
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Where the model runs: cpu or cuda.
    #[arg(long, default_value = "cpu", help_heading = "Model")]
    pub(super) device: DeviceKind,
    /// Numbers of the encoder: f32, bf16 (on a card) or q8_0 (8 bits, on the CPU). Without it, the device's own. What
    /// coarser ones cost is measured on pictures of the build and kept with the cache.
    #[arg(long, value_name = "TYPE", help_heading = "Model")]
    pub(super) encoder_dtype: Option<WeightDtype>,
    /// Pictures embedded together.
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Model")]
    pub(super) batch: usize,
    /// Try inputs again that were refused before and have not changed. What only could not be read is tried again anyway.
    #[arg(long, help_heading = "Inputs")]
    pub(super) retry_bad: bool,
    /// Largest picture file, MiB.
    #[arg(long, value_name = "MIB", default_value_t = Limits::DEFAULT_MAX_BYTES >> 20, help_heading = "Inputs")]
    pub(super) max_image_mib: usize,
    /// Largest picture, pixels.
    #[arg(long, value_name = "N", default_value_t = Limits::DEFAULT_MAX_PIXELS, help_heading = "Inputs")]
    pub(super) max_image_pixels: u64,
    #[command(flatten)]
    pub(super) run: Run,
}

#[derive(Args)]
pub(super) struct ImportArgs {
    #[command(flatten)]
    pub(super) place: Place,
    #[command(flatten)]
    pub(super) vectors: Vectors,
    /// The embeddings were made by the built-in nano model.
    #[arg(long, conflicts_with = "weights", help_heading = "Model")]
    pub(super) nano: bool,
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    pub(super) run: Run,
}

/// Which files an import reads, and how.
#[derive(Args)]
#[command(next_help_heading = "Inputs")]
pub(super) struct Vectors {
    /// `.npy`, `.parquet` or faiss file, or a folder of them (in the order of the numbers in their names); several may be
    /// named.
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    pub(super) vectors: Vec<PathBuf>,
    /// Ids, uris and tags, a row each: .jsonl, .tsv or .parquet. Without it, a file of the same name beside the vectors.
    #[arg(long, value_name = "FILE")]
    pub(super) metadata: Option<PathBuf>,
    /// Components of a row; without it, what the usable rows have.
    #[arg(long, value_name = "N")]
    pub(super) dim: Option<usize>,
    /// Column of a parquet file that holds the embeddings.
    #[arg(long, value_name = "NAME")]
    pub(super) embedding_column: Option<String>,
    /// Column that holds ids: integers, or whole numbers of another type.
    #[arg(long, value_name = "NAME")]
    pub(super) id_column: Option<String>,
    /// Take no ids from the files: every row gets the next free one.
    #[arg(long, conflicts_with = "id_column")]
    pub(super) no_ids: bool,
    /// Column that holds uris.
    #[arg(long, value_name = "NAME")]
    pub(super) uri_column: Option<String>,
    /// Columns that become tags; without it, all that can. A tag of many different values takes memory in a server.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(super) tag_columns: Option<Vec<String>>,
    /// Make no column a tag.
    #[arg(long, conflicts_with = "tag_columns")]
    pub(super) no_tags: bool,
}

#[derive(Args)]
pub(super) struct IndexArgs {
    #[command(flatten)]
    pub(super) place: Place,
    /// Threads; 0 means one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) threads: usize,
    /// Progress and result as JSON.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) graph: Graph,
}

#[derive(Args)]
pub(super) struct VerifyArgs {
    /// Folder of the store.
    #[arg(long, value_name = "DIR")]
    pub(super) store: PathBuf,
    /// Name of the cache; without it, every cache.
    #[arg(long, value_name = "NAME")]
    pub(super) cache: Option<CacheName>,
    /// Stored rows that recall is measured by, each moved a little.
    #[arg(long, value_name = "N", default_value_t = RECALL_SAMPLE)]
    pub(super) sample: usize,
    /// Print recall@10 against exact search as a table: a line for every width of the beam, a column for every kind of query.
    #[arg(long)]
    pub(super) recall: bool,
    /// Measure recall by these queries as well (numpy file, a row each), once for every kind. Give others than the index was
    /// repaired by: those are found more easily.
    #[arg(long, value_name = "[KIND=]FILE", requires_all = ["recall", "cache"])]
    pub(super) queries: Vec<index::Sample>,
    /// Print one JSON object per cache.
    #[arg(long)]
    pub(super) json: bool,
}

impl RowTypeArg {
    pub(super) fn row_type(self) -> RowType {
        match self {
            RowTypeArg::F32 => RowType::F32,
            RowTypeArg::F16 => RowType::F16,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    /// clap asserts this itself, but not as we compile it.
    #[test]
    fn no_two_flags_of_a_command_are_the_same() {
        fn check(command: &clap::Command) {
            let ids = command.get_arguments().map(|arg| arg.get_id().to_string());
            let longs = command.get_arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?)));
            for mut names in [ids.collect::<Vec<_>>(), longs.collect()] {
                names.sort();
                let twice = names.windows(2).find(|two| two[0] == two[1]);
                assert_eq!(twice, None, "{}", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        let mut command = super::Cli::command();
        command.build();
        check(&command);
    }
}
