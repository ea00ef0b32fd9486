//! All figures: a table for each measure and kind of row.

use serde::Serialize;

use super::choose::{Choice, Values, choose, halves};
use super::grid::Setting;
use super::list::{Bad, Row};
use super::measure::{Measured, Reading};
use super::resample::{Difference, FEWEST, RESAMPLINGS, mean};

/// What is told of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Measure {
    /// Whether the answer is right.
    Accuracy,
    /// How likely the right answers are, nats a token.
    Likelihood,
}

impl Measure {
    /// A word for it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Measure::Accuracy => "accuracy",
            Measure::Likelihood => "log-likelihood",
        }
    }

    fn of(self, reading: &Reading) -> Option<f64> {
        match self {
            Measure::Accuracy => reading.right.map(f64::from),
            Measure::Likelihood => reading.likelihood,
        }
    }
}

/// What was compared.
#[derive(Debug, Clone, Serialize)]
pub(super) struct About {
    /// The list.
    pub(super) list: String,
    /// Name of the cache.
    pub(super) cache: String,
    /// Its generation.
    pub(super) generation: u64,
    /// Items in it.
    pub(super) items: usize,
    /// What embeds.
    pub(super) model: String,
    /// What answers.
    pub(super) decoder: String,
    /// What rows are asked that ask nothing.
    pub(super) question: String,
    /// Tokens of an answer at most.
    pub(super) max_tokens: usize,
    /// Of resamplings and halves.
    pub(super) seed: u64,
    /// Whether one half chooses, where it was said.
    pub(super) choose_on_half: Option<bool>,
}

/// Everything.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    /// What was compared.
    #[serde(flatten)]
    pub(super) about: About,
    /// Rows of the list; `measured` and `bad` add up to it.
    pub(super) rows: usize,
    /// Rows that figures are of.
    pub(super) measured: usize,
    /// The others, by line.
    pub(super) bad: Vec<Bad>,
    /// Resamplings of an interval.
    pub(super) resamplings: usize,
    /// What was compared with no cache.
    pub(super) settings: Vec<Setting>,
    /// The figures.
    pub(super) tables: Vec<Table>,
}

/// The figures of one measure, of all rows or those of one kind.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    /// Of what.
    pub(super) measure: Measure,
    /// Which rows; nothing for all.
    pub(super) kind: Option<String>,
    /// How many.
    pub(super) rows: usize,
    /// Inputs they are about.
    pub(super) inputs: usize,
    /// Rows of them in which right answers stood against wrong ones.
    pub(super) choices: usize,
    /// The mean without the cache.
    pub(super) off: f64,
    /// Under each setting.
    pub(super) on: Vec<On>,
    /// The best setting, where there are several.
    pub(super) best: Option<Choice>,
}

/// The figures of one setting.
#[derive(Debug, Serialize)]
pub(super) struct On {
    /// Which.
    #[serde(flatten)]
    pub(super) setting: Setting,
    /// The mean.
    pub(super) on: f64,
    /// The mean less that without the cache.
    pub(super) difference: Difference,
    /// Whether the interval leaves out 0.
    pub(super) told_apart: bool,
}

impl Table {
    /// Which rows.
    pub(super) fn name(&self) -> &str {
        self.kind.as_deref().unwrap_or("all rows")
    }

    /// Whether there are too few inputs for any interval to be believed.
    pub(super) fn is_short(&self) -> bool {
        self.inputs < FEWEST
    }
}

/// Puts the figures together.
///
/// * `measured`: at least one. `bad`: all others, in any order. `measures`: what was measured.
pub(super) fn summarise(
    about: About,
    settings: &[Setting],
    rows: &[Row],
    measured: &[Measured],
    mut bad: Vec<Bad>,
    measures: &[Measure],
) -> Summary {
    bad.sort_by_key(|bad| bad.line);
    let kind_of = |measured: &Measured| rows.get(measured.row).map_or("", |row| row.kind.as_str());
    let kinds: Vec<&str> = measured.iter().map(kind_of).collect();
    let inputs: Vec<usize> = measured.iter().map(|measured| measured.input).collect();
    let chooses = halves(&kinds, &inputs, about.seed);
    let mut names: Vec<&str> = Vec::new();
    kinds.iter().for_each(|kind| {
        if !names.contains(kind) {
            names.push(kind);
        }
    });
    // Of one kind alone, all rows are those of the kind.
    let groups = std::iter::once(None).chain(names.iter().copied().filter(|_| names.len() > 1).map(Some));
    let groups: Vec<Option<&str>> = groups.collect();
    let mut tables = Vec::new();
    for &measure in measures {
        for &kind in &groups {
            let of_kind = |i: &usize| kind.is_none_or(|kind| kinds[*i] == kind);
            let at: Vec<usize> = (0..measured.len()).filter(of_kind).collect();
            let values = |side: usize| -> Vec<f64> {
                at.iter().filter_map(|&i| measure.of(measured[i].readings.get(side)?)).collect()
            };
            let values = Values {
                inputs: at.iter().map(|&i| inputs[i]).collect(),
                off: values(0),
                on: (1..=settings.len()).map(values).collect(),
                chooses: at.iter().map(|&i| chooses[i]).collect(),
            };
            let choice = |i: &&usize| rows.get(measured[**i].row).is_some_and(|row| !row.wrong.is_empty());
            let choices = at.iter().filter(choice).count();
            tables.push(table(&about, measure, kind, choices, settings, &values));
        }
    }
    Summary {
        about,
        rows: measured.len() + bad.len(),
        measured: measured.len(),
        bad,
        resamplings: RESAMPLINGS,
        settings: settings.to_vec(),
        tables,
    }
}

fn table(
    about: &About,
    measure: Measure,
    kind: Option<&str>,
    choices: usize,
    settings: &[Setting],
    values: &Values,
) -> Table {
    let on = settings.iter().zip(&values.on).map(|(&setting, on)| {
        let difference = Difference::of(&values.off, on, &values.inputs, about.seed);
        On { setting, on: mean(on), difference, told_apart: difference.is_told_apart() }
    });
    let on: Vec<On> = on.collect();
    Table {
        measure,
        kind: kind.map(str::to_owned),
        rows: values.off.len(),
        inputs: on.first().map_or(0, |on| on.difference.inputs),
        choices,
        off: mean(&values.off),
        on,
        best: choose(values, about.choose_on_half, about.seed),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::list::Input;
    use super::*;

    /// Twelve pictures that stay as they are, and twelve texts, of which one setting makes eleven right and another none.
    pub(in super::super) fn summary() -> Summary {
        let rows: Vec<Row> = (0..24u64).map(row).collect();
        let measured: Vec<Measured> = (0..24)
            .map(|i| {
                let picture = i < 12;
                let sides = [picture, picture || i > 12, picture].into_iter();
                let readings = sides.map(|right| Reading {
                    answer: Some("x".into()),
                    right: Some(right),
                    likelihood: Some(if right { -0.5 } else { -1.5 }),
                });
                Measured { row: i, input: i, readings: readings.collect() }
            })
            .collect();
        let settings = [0.5, 1.0].map(|weight| Setting { top_k: 10, temperature: 20.0, weight });
        let about = About {
            list: "l.csv".into(),
            cache: "photos".into(),
            generation: 1,
            items: 1000,
            model: "nano".into(),
            decoder: "nano".into(),
            question: "What?".into(),
            max_tokens: 60,
            seed: 1,
            choose_on_half: None,
        };
        let bad = [(30, "gone"), (9, "odd")].map(|(line, why)| Bad { line, why: why.into() });
        let measures = [Measure::Accuracy, Measure::Likelihood];
        summarise(about, &settings, &rows, &measured, bad.to_vec(), &measures)
    }

    fn row(i: u64) -> Row {
        Row {
            line: i + 2,
            input: Input::Text(i.to_string()),
            name: i.to_string(),
            question: None,
            right: vec!["x".into()],
            wrong: if i == 0 { vec!["y".into()] } else { Vec::new() },
            kind: if i < 12 { "picture" } else { "text" }.into(),
        }
    }

    #[test]
    fn figures_are_those_of_the_rows() {
        let summary = summary();
        assert_eq!((summary.rows, summary.measured), (26, 24));
        assert_eq!(summary.bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [9, 30]);
        let names: Vec<_> = summary.tables.iter().map(|t| (t.measure.word(), t.name(), t.rows)).collect();
        let expected = [("all rows", 24), ("picture", 12), ("text", 12)];
        let both = ["accuracy", "log-likelihood"];
        let expected: Vec<_> =
            both.into_iter().flat_map(|word| expected.map(|(name, rows)| (word, name, rows))).collect();
        assert_eq!(names, expected);
        let [all, picture, text, ..] = &summary.tables[..] else { panic!() };
        assert_eq!((all.off, picture.off, text.off), (0.5, 1.0, 0.0));
        assert_eq!((all.choices, picture.choices, text.choices), (1, 1, 0));
        assert_eq!((text.on[0].on, text.on[0].difference.mean), (11.0 / 12.0, 11.0 / 12.0));
        assert!(text.on[0].told_apart && !text.on[1].told_apart && !picture.on[0].told_apart);
        let best = all.best.as_ref().unwrap();
        assert_eq!((best.setting, best.held_out, best.chosen_on, best.told_on), (0, false, 24, 24));
        let likelihood = &summary.tables[5];
        assert!((likelihood.on[0].difference.mean - 11.0 / 12.0).abs() < 1e-12);
    }

    #[test]
    fn a_summary_is_an_object() {
        let value: serde_json::Value =
            serde_json::from_str(&serde_json::to_string(&summary()).unwrap()).unwrap();
        assert_eq!((&value["cache"], &value["rows"]), (&"photos".into(), &26.into()));
        let table = &value["tables"][2];
        assert_eq!((&table["measure"], &table["kind"]), (&"accuracy".into(), &"text".into()));
        assert_eq!(table["on"][1]["weight"], 1.0);
        assert_eq!(value["tables"][0]["kind"], serde_json::Value::Null);
    }
}
