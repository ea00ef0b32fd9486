//! What a run says at its end, and whether that adds up: every input came to one end, and what is said to be stored is there.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{bail, ensure};
use viscache::cache::{Writer, decode_row};
use viscache::models::nano;
use viscache::store::Store;
use viscache::types::ItemId;

use crate::ledger::Standing;
use crate::pipeline::Outcomes;

/// Kinds of things that are named one by one; of the others only their number is said.
const LISTED: usize = 20;

/// What a run did with its inputs.
pub struct Summary<'a> {
    /// How they stood.
    pub inputs: &'a Standing,
    /// What became of those that were pending.
    pub outcomes: &'a Outcomes,
}

impl Summary<'_> {
    /// Inputs that should have become items and did not, now or before.
    pub fn not_stored(&self) -> u64 {
        let (inputs, outcomes) = (self.inputs, self.outcomes);
        let written = outcomes.written;
        inputs.bad
            + inputs.unreadable
            + inputs.passed_over()
            + outcomes.known_bad
            + written.bad
            + written.failed
    }

    /// The first line: what was written.
    pub fn line(&self, cache: &str, items: u64) -> String {
        let written = self.outcomes.written;
        let failed = if written.failed > 0 { format!(", {} failed", written.failed) } else { String::new() };
        format!(
            "{} stored, {} replaced, {} duplicates, {} bad{failed}; {items} items in `{cache}`",
            written.stored, written.replaced, written.duplicates, written.bad
        )
    }

    /// The other lines: all inputs by what became of them, and what was passed over.
    pub fn details(&self) -> String {
        let (inputs, written) = (self.inputs, self.outcomes.written);
        let sum = |counts: &BTreeMap<String, u64>| counts.values().sum::<u64>();
        let parts = [
            (written.stored, "stored"),
            (written.replaced, "replaced"),
            (written.touched, "of another time and the same content"),
            (written.duplicates, "duplicates"),
            (written.bad, "bad"),
            (written.failed, "failed (tried again by the next run)"),
            (inputs.done + self.outcomes.known_good, "done before"),
            (inputs.bad + self.outcomes.known_bad, "bad before"),
            (inputs.unreadable, "unreadable"),
            (inputs.passed_over(), "passed over"),
            (inputs.archives, "archives"),
            (sum(&inputs.beside), "texts beside pictures"),
            (sum(&inputs.ignored), "left out by request"),
            (inputs.repeated, "named twice"),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        let mut text = format!(
            "{} inputs: {}",
            inputs.inputs,
            if parts.is_empty() { "none".into() } else { parts.join(", ") }
        );
        text += &listed("passed over", &inputs.passed);
        if !inputs.beside.is_empty() {
            let endings: Vec<String> =
                inputs.beside.iter().map(|(ending, count)| format!("{count} {ending}")).collect();
            let _ = write!(text, "\n  beside pictures: {}", endings.join(", "));
        }
        if self.outcomes.untagged > 0 {
            let _ = write!(
                text,
                "\n  {} pictures have a text beside them that no tag could be taken from",
                self.outcomes.untagged
            );
        }
        text
    }

    /// What to say when nothing is stored.
    ///
    /// * `ledger`: the command that lists why.
    pub fn nothing_stored(&self, ledger: &str) -> String {
        let inputs = self.inputs;
        let pictures = inputs.pending + inputs.bad + inputs.unreadable + inputs.done;
        if pictures > 0 {
            return format!("there is not one good item; `{ledger}` lists why");
        }
        if inputs.inputs == 0 {
            return "no picture was found: there is nothing in the inputs".into();
        }
        let mut holds = listed("they hold", &inputs.passed);
        if holds.is_empty() {
            let endings: Vec<String> =
                inputs.beside.iter().map(|(ending, count)| format!("{count} {ending}")).collect();
            holds = format!(": the inputs hold {}", endings.join(", "));
        }
        format!("no picture was found in {} inputs{holds}", inputs.inputs)
    }
}

fn listed(title: &str, counts: &BTreeMap<String, u64>) -> String {
    let mut text = String::new();
    for (kind, count) in counts.iter().take(LISTED) {
        let _ = write!(text, "\n  {title}: {count} {kind}");
    }
    if counts.len() > LISTED {
        let _ =
            write!(text, "\n  {title}: and {} more kinds; the report has them all", counts.len() - LISTED);
    }
    text
}

/// Rows that are looked at to tell whether a model knows what it was shown.
const LOOKED_AT: u64 = 64;
/// Mean score of any two rows above which the built-in model does not know them: of drawn scenes it is 0.01, of photographs,
/// small and large, 0.37 to 0.45.
const HUDDLED: f64 = 0.2;

/// What to say of a cache of the built-in model whose rows lie all together: of pictures it was not made for.
///
/// # Errors
/// When the store cannot be read.
pub fn strangers(store: &Store, writer: &Writer<'_>) -> anyhow::Result<Option<String>> {
    let record = writer.record();
    if record.origin.model != nano::NAME || record.items < LOOKED_AT {
        return Ok(None);
    }
    let step = (record.next_item.0 / LOOKED_AT).max(1);
    let ids: Vec<ItemId> = (0..record.next_item.0).step_by(step as usize).map(ItemId).collect();
    let rows = store.rows(record.id, &ids)?.into_iter().flatten().map(|row| decode_row(&row, record.rows));
    let (mut sum, mut count) = (vec![0.0; record.dim], 0.0);
    for row in rows {
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(value));
        count += 1.0;
    }
    // Of unit rows: the sum's square is theirs with themselves, which is 1 each, and with all others.
    let mean = (sum.iter().map(|s| s * s).sum::<f64>() - count) / (count * (count - 1.0)).max(1.0);
    Ok((mean > HUDDLED).then(|| {
        format!(
            "the built-in model hardly tells these pictures apart (any two score {mean:.2}; drawn scenes 0.01): it knows drawn scenes \
             only. For photographs give a checkpoint by --weights"
        )
    }))
}

/// Whether every input came to one end.
///
/// # Errors
/// Otherwise: a fault of this program.
pub fn check_inputs(inputs: &Standing, written: u64) -> anyhow::Result<()> {
    ensure!(
        inputs.adds_up() && inputs.pending == written,
        "the counts of this run do not add up ({written} of {} pending inputs came to an end: {inputs:?}); this is a fault of \
         index-builder, please report it",
        inputs.pending
    );
    Ok(())
}

/// Whether everything that is said to be stored can be found.
///
/// * `before`: items before the run. `stored`: new ones since.
///
/// # Errors
/// Otherwise, with the figures.
pub fn check_store(store: &Store, writer: &Writer<'_>, before: u64, stored: u64) -> anyhow::Result<()> {
    let record = writer.record();
    let (items, rows) = store.count_items(record.id)?;
    if (items, rows) != (record.items, record.items) || record.items != before + stored {
        bail!(
            "cache `{}` had {before} items and {stored} were stored; its record says {}, and {items} items with {rows} rows are \
             there. Nothing was indexed; run `index-builder verify`",
            record.name,
            record.items
        );
    }
    Ok(())
}
