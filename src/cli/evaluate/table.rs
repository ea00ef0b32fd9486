//! The figures for people.

use std::io::{self, Write};

use super::resample::FEWEST;
use super::summary::{Measure, Summary, Table};

/// Bad rows that are named one by one.
const NAMED: usize = 20;

/// Says which rows were bad.
///
/// # Errors
/// Those of `out`.
pub(super) fn write_bad(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    for bad in summary.bad.iter().take(NAMED) {
        writeln!(out, "line {}: {}", bad.line, bad.why)?;
    }
    match summary.bad.len().saturating_sub(NAMED) {
        0 => Ok(()),
        more => writeln!(out, "and {more} more bad rows"),
    }
}

/// Writes the tables, and what they say.
///
/// # Errors
/// Those of `out`.
pub(super) fn write(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    let about = &summary.about;
    writeln!(
        out,
        "{} rows in {}: {} measured, {} bad",
        summary.rows,
        about.list,
        summary.measured,
        summary.bad.len()
    )?;
    writeln!(
        out,
        "cache {} generation {}, {} items; model {}, decoder {}",
        about.cache, about.generation, about.items, about.model, about.decoder
    )?;
    for of_measure in summary.tables.chunk_by(|a, b| a.measure == b.measure) {
        writeln!(out)?;
        for table in of_measure {
            write_table(table, out)?;
        }
        verdicts(summary, of_measure, out)?;
    }
    Ok(())
}

/// A mean: a share has two digits, a log-likelihood three.
fn mean(measure: Measure, value: f64) -> String {
    match measure {
        Measure::Accuracy => format!("{value:.2}"),
        Measure::Likelihood => format!("{value:.3}"),
    }
}

/// A difference with its sign and its interval.
fn difference(measure: Measure, difference: &super::resample::Difference) -> String {
    let [low, high] = difference.interval;
    let signed = |value: f64| match measure {
        Measure::Accuracy => format!("{value:+.2}"),
        Measure::Likelihood => format!("{value:+.3}"),
    };
    format!("{} [{}, {}]", signed(difference.mean), signed(low), signed(high))
}

fn write_table(table: &Table, out: &mut impl Write) -> io::Result<()> {
    let measure = table.measure;
    if table.kind.is_none() {
        writeln!(
            out,
            "{:<20} {:>6} {:>8} {:>7} {:>6} {:>7} {:>8}  on less off, 95 % interval",
            measure.word(),
            "rows",
            "off",
            "top_k",
            "temp.",
            "weight",
            "on"
        )?;
    }
    for (i, on) in table.on.iter().enumerate() {
        let (name, rows, off) = match i {
            0 => (table.name(), table.rows.to_string(), mean(measure, table.off)),
            _ => ("", String::new(), String::new()),
        };
        let told = match on.told_apart {
            true if on.difference.mean > 0.0 => "  better",
            true => "  worse",
            false => "",
        };
        let setting = on.setting;
        writeln!(
            out,
            "{name:<20} {rows:>6} {off:>8} {:>7} {:>6} {:>7} {:>8}  {}{told}",
            setting.top_k,
            setting.temperature,
            setting.weight,
            mean(measure, on.on),
            difference(measure, &on.difference)
        )?;
    }
    Ok(())
}

/// What the tables of one measure say.
fn verdicts(summary: &Summary, tables: &[Table], out: &mut impl Write) -> io::Result<()> {
    for table in tables {
        let (name, measure) = (table.name(), table.measure);
        let told = |better: bool| {
            table.on.iter().filter(|on| on.told_apart && (on.difference.mean > 0.0) == better).count()
        };
        let of = table.on.len();
        let says = match (told(true), told(false)) {
            _ if table.is_short() => format!(
                "{} are too few inputs to tell a setting from off, which takes {FEWEST}",
                table.inputs
            ),
            (0, 0) => "no setting is told apart from off".to_owned(),
            (better, 0) => format!("{better} of {of} settings are better than off"),
            (0, worse) => format!("{worse} of {of} settings are worse than off"),
            (better, worse) => format!("of {of} settings {better} are better than off and {worse} are worse"),
        };
        writeln!(out, "{name}: {says}")?;
        let Some(best) = &table.best else { continue };
        let Some(setting) = summary.settings.get(best.setting) else { continue };
        let figures = format!(
            "off {}, on {}, {}",
            mean(measure, best.off),
            mean(measure, best.on),
            difference(measure, &best.difference)
        );
        let (chosen, told) = (best.chosen_on, best.told_on);
        let apart = if best.difference.is_told_apart() { "" } else { ", not told apart from off" };
        let setting = match best.beats_off {
            true => setting.to_string(),
            false => format!("off; next is {setting}"),
        };
        match best.held_out {
            true => writeln!(
                out,
                "{name}: best is {setting}, chosen on {chosen} rows; on the other {told}: {figures}{apart}"
            )?,
            false => writeln!(
                out,
                "{name}: best is {setting}: {figures}{apart}; chosen on these very {told} rows, which flatters it"
            )?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::summary::tests::summary;
    use super::*;

    #[test]
    fn a_table_says_what_is_to_be_read_from_it() {
        let summary = summary();
        let mut out = Vec::new();
        write(&summary, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let has = |part: &str| assert!(text.contains(part), "{part} is not in\n{text}");
        has("26 rows in l.csv: 24 measured, 2 bad");
        has("cache photos generation 1, 1000 items; model nano, decoder nano");
        has(
            "accuracy               rows      off   top_k  temp.  weight       on  on less off, 95 % interval",
        );
        has(
            "all rows                 24     0.50      10     20     0.5     0.96  +0.46 [+0.25, +0.67]  better",
        );
        has("text                     12     0.00      10     20     0.5     0.92  +0.92 [");
        has("text: 1 of 2 settings are better than off");
        has("picture: no setting is told apart from off");
        has("all rows: best is top_k 10, temperature 20, weight 0.5: off 0.50, on 0.96, +0.46");
        has("chosen on these very 24 rows, which flatters it");
        has("picture: best is off; next is top_k 10, temperature 20, weight 0.5: off 1.00, on 1.00, +0.00");
        has("log-likelihood");
        let mut bad = Vec::new();
        write_bad(&summary, &mut bad).unwrap();
        assert_eq!(String::from_utf8(bad).unwrap(), "line 9: odd\nline 30: gone\n");
    }
}
