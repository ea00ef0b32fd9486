//! The figures as a picture: a panel for each table, a line for every pair of other settings over the one that has most values.
//!
//! ```text
//! accuracy, texts        ─ ─ ─ off
//!   │      ┬               ● on, and the interval of what it has before off, laid upon off:
//!   │  ●───●───●             a bar that crosses the line of off is not told apart from it
//!   │─ ┴ ─ ┴ ─ ┴ ─ ─
//!   └──0.5─0.95──1── weight
//! ```

use std::path::Path;

use anyhow::Context;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::grid::Setting;
use super::summary::{Measure, Summary, Table};

/// The file that it is.
pub(super) const FILE: &str = "grid.svg";
/// Pixels of a panel, and panels beside each other.
const PANEL: (u32, u32) = (380, 290);
const BESIDE: usize = 3;
/// Most panels of a measure; what is beyond is in the summary.
const MOST: usize = 6;
/// Pixels of the head, and of a line of the key in it.
const HEAD: u32 = 58;
const KEY: (u32, u32) = (190, 20);
const FONT: &str = "sans-serif";
/// Colours that the colour-blind tell apart. Source: Okabe and Ito, *Color Universal Design* (2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 110, 30),
];
const INK: RGBColor = RGBColor(60, 60, 60);
const PALE: RGBColor = RGBColor(228, 228, 228);

/// What the settings differ in.
#[derive(Clone, Copy, PartialEq)]
enum Knob {
    Weight,
    Temperature,
    TopK,
}

impl Knob {
    const ALL: [Knob; 3] = [Knob::Weight, Knob::Temperature, Knob::TopK];

    fn word(self) -> &'static str {
        match self {
            Knob::Weight => "weight",
            Knob::Temperature => "temperature",
            Knob::TopK => "top_k",
        }
    }

    fn value(self, setting: &Setting) -> f64 {
        match self {
            Knob::Weight => setting.weight.into(),
            Knob::Temperature => setting.temperature.into(),
            Knob::TopK => setting.top_k as f64,
        }
    }

    /// A value as it was given.
    fn label(self, setting: &Setting) -> String {
        match self {
            Knob::Weight => setting.weight.to_string(),
            Knob::Temperature => setting.temperature.to_string(),
            Knob::TopK => setting.top_k.to_string(),
        }
    }
}

/// Which setting stands where.
struct Layout {
    /// What the axis to the right is.
    over: Knob,
    /// Its values, ascending, as labels.
    labels: Vec<String>,
    /// Each line: its name and, for each label in order, the setting there.
    lines: Vec<(String, Vec<(usize, usize)>)>,
}

/// Draws the picture.
///
/// # Errors
/// A file that cannot be written.
pub(super) fn write(summary: &Summary, folder: &Path) -> anyhow::Result<()> {
    let path = folder.join(FILE);
    std::fs::write(&path, drawn(summary)?).with_context(|| format!("cannot write {}", path.display()))
}

fn drawn(summary: &Summary) -> anyhow::Result<String> {
    let layout = layout(&summary.settings);
    // Rows of panels: each measure begins one.
    let mut rows: Vec<&[Table]> = Vec::new();
    for of_measure in summary.tables.chunk_by(|a, b| a.measure == b.measure) {
        rows.extend(of_measure[..of_measure.len().min(MOST)].chunks(BESIDE));
    }
    let beside = rows.iter().map(|row| row.len()).max().unwrap_or(1) as u32;
    let (width, keys) = (PANEL.0 * beside.max(2), layout.lines.len() as u32 + 1);
    let in_a_line = (width / KEY.0).max(1);
    let head = HEAD + keys.div_ceil(in_a_line) * KEY.1 + 8;
    let size = (width, head + PANEL.1 * rows.len() as u32);
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    let failed = |e: DrawingAreaErrorKind<_>| anyhow::anyhow!("the picture cannot be drawn: {e}");
    root.fill(&WHITE).map_err(failed)?;
    let (top, panels) = root.split_vertically(head);
    draw_head(summary, &layout, &top, in_a_line).map_err(failed)?;
    for (row, area) in rows.iter().zip(panels.split_evenly((rows.len(), 1))) {
        for (table, panel) in row.iter().zip(area.split_evenly((1, beside as usize))) {
            draw_panel(table, &layout, &panel).map_err(failed)?;
        }
    }
    root.present().map_err(failed)?;
    drop((root, top, panels));
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn layout(settings: &[Setting]) -> Layout {
    let values = |knob: Knob| {
        let mut values: Vec<(f64, String)> =
            settings.iter().map(|setting| (knob.value(setting), knob.label(setting))).collect();
        values.sort_by(|a, b| a.0.total_cmp(&b.0));
        values.dedup_by(|a, b| a.0 == b.0);
        values
    };
    // Of equals the first.
    let longest = |best: Knob, next: Knob| if values(next).len() > values(best).len() { next } else { best };
    let over = Knob::ALL.into_iter().reduce(longest).unwrap_or(Knob::Weight);
    let axis = values(over);
    let mut lines: Vec<(String, Vec<(usize, usize)>)> = Vec::new();
    for (i, setting) in settings.iter().enumerate() {
        let others = Knob::ALL.into_iter().rev().filter(|knob| *knob != over);
        let name: Vec<String> =
            others.map(|knob| format!("{} {}", knob.word(), knob.label(setting))).collect();
        let name = name.join(", ");
        let at = axis.iter().position(|(value, _)| *value == over.value(setting)).unwrap_or_default();
        match lines.iter_mut().find(|(line, _)| *line == name) {
            Some((_, points)) => points.push((at, i)),
            None => lines.push((name, vec![(at, i)])),
        }
    }
    lines.iter_mut().for_each(|(_, points)| points.sort_unstable());
    Layout { over, labels: axis.into_iter().map(|(_, label)| label).collect(), lines }
}

fn colour(line: usize) -> RGBColor {
    COLOURS[line % COLOURS.len()]
}

fn text(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center))
}

/// Title, how it is read, and which line is what.
fn draw_head<'a>(summary: &Summary, layout: &Layout, area: &Area<'a>, in_a_line: u32) -> Drawn<'a> {
    let about = &summary.about;
    let title = format!("Cache {}, off and on: {} rows", about.cache, summary.measured);
    area.draw(&Text::new(title, (16, 20), text(18)))?;
    let how = "bars: off plus the 95 % interval of the difference; a bar that crosses the line of off is not told apart from it";
    area.draw(&Text::new(how, (16, 42), text(12)))?;
    let keys = std::iter::once(("off", INK))
        .chain(layout.lines.iter().enumerate().map(|(i, (name, _))| (name.as_str(), colour(i))));
    for (i, (name, colour)) in keys.enumerate() {
        let (column, row) = (i as u32 % in_a_line, i as u32 / in_a_line);
        let (x, y) = ((16 + column * KEY.0) as i32, (HEAD + row * KEY.1 + KEY.1 / 2) as i32);
        if i == 0 {
            dashes((x, x + 22), |from, to| {
                area.draw(&PathElement::new(vec![(from, y), (to, y)], colour.stroke_width(2)))
            })?;
        } else {
            area.draw(&PathElement::new(vec![(x, y), (x + 22, y)], colour.stroke_width(2)))?;
            area.draw(&Circle::new((x + 11, y), 3, colour.filled()))?;
        }
        area.draw(&Text::new(name.to_owned(), (x + 28, y), text(12)))?;
    }
    Ok(())
}

/// Pieces of a broken line.
fn dashes<E>(between: (i32, i32), mut draw: impl FnMut(i32, i32) -> Result<(), E>) -> Result<(), E> {
    for from in (between.0..between.1).step_by(8) {
        draw(from, (from + 5).min(between.1))?;
    }
    Ok(())
}

fn draw_panel<'a>(table: &Table, layout: &Layout, area: &Area<'a>) -> Drawn<'a> {
    let count = layout.labels.len() as f64;
    let [low, high] = range(table);
    let title = match &table.kind {
        None => format!("all {} rows", table.rows),
        Some(kind) => format!("{kind}, {} rows", table.rows),
    };
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 15).into_font().color(&INK))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(58)
        .build_cartesian_2d(-0.5..count - 0.5, low..high)?;
    let label = |x: &f64| {
        let whole = (x - x.round()).abs() < 1e-6 && *x > -0.25;
        whole.then(|| layout.labels.get(x.round() as usize).cloned()).flatten().unwrap_or_default()
    };
    let places = places(high - low);
    let value = |y: &f64| rounded(*y, places);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(PALE)
        .axis_style(INK)
        // Steps of a half or of one: every whole place has a label, and halves have empty ones.
        .x_labels(2 * layout.labels.len() + 1)
        .x_label_formatter(&label)
        .y_labels(6)
        .y_label_formatter(&value)
        .set_tick_mark_size(LabelAreaPosition::Bottom, 0)
        .label_style((FONT, 12).into_font().color(&INK))
        .axis_desc_style((FONT, 13).into_font().color(&INK))
        .x_desc(layout.over.word())
        .y_desc(match table.measure {
            Measure::Accuracy => "share of right answers",
            Measure::Likelihood => "log-likelihood, nats a token",
        })
        .draw()?;
    // Off, in pieces of a twentieth of a place.
    let mut from = -0.5;
    while from < count - 0.5 {
        let to = (from + 0.03 * count).min(count - 0.5);
        chart.draw_series(LineSeries::new([(from, table.off), (to, table.off)], INK.stroke_width(2)))?;
        from += 0.05 * count;
    }
    // Lines stand a little beside each other, so that bars do not hide bars.
    let step = (0.6 / layout.lines.len().max(1) as f64).min(0.12);
    for (i, (_, points)) in layout.lines.iter().enumerate() {
        let aside = (i as f64 - (layout.lines.len() as f64 - 1.0) / 2.0) * step;
        let points =
            points.iter().filter_map(|&(at, setting)| Some((at as f64 + aside, table.on.get(setting)?)));
        let points: Vec<_> = points.collect();
        let bars = points.iter().map(|(x, on)| {
            let ends = on.difference.interval.map(|end| (*x, (table.off + end).clamp(low, high)));
            PathElement::new(ends.to_vec(), colour(i).mix(0.55).stroke_width(2))
        });
        chart.draw_series(bars)?;
        chart.draw_series(LineSeries::new(
            points.iter().map(|(x, on)| (*x, on.on)),
            colour(i).stroke_width(2),
        ))?;
        chart.draw_series(points.iter().map(|(x, on)| Circle::new((*x, on.on), 3, colour(i).filled())))?;
    }
    Ok(())
}

/// Digits behind the point that tell the labels of an axis apart.
fn places(reach: f64) -> usize {
    // Some six labels, so that a step is a tenth of it at the least.
    (1..=6).find(|&places| 10f64.powi(-places) <= reach / 10.0).unwrap_or(6).max(2) as usize
}

/// A number of so many digits behind the point, and no zero below zero.
fn rounded(value: f64, places: usize) -> String {
    let text = format!("{value:.places$}");
    let zero = text.trim_start_matches('-').chars().all(|c| matches!(c, '0' | '.'));
    if zero { text.trim_start_matches('-').to_owned() } else { text }
}

/// What the axis upwards reaches, with a little room: shares from 0 to 1, log-likelihoods as they are.
fn range(table: &Table) -> [f64; 2] {
    if table.measure == Measure::Accuracy {
        return [-0.03, 1.03];
    }
    let ends = table.on.iter().flat_map(|on| {
        let [low, high] = on.difference.interval;
        [on.on, table.off + low, table.off + high]
    });
    let (low, high) = ends.fold((table.off, table.off), |(low, high), end| (low.min(end), high.max(end)));
    let room = (high - low).max(0.02) * 0.1;
    [low - room, high + room]
}

#[cfg(test)]
mod tests {
    use super::super::summary::tests::summary;
    use super::*;

    #[test]
    fn the_knob_with_most_values_is_the_axis() {
        let setting = |top_k, temperature, weight| Setting { top_k, temperature, weight };
        let grid = [
            setting(10, 20.0, 1.0),
            setting(10, 20.0, 0.95),
            setting(50, 20.0, 0.95),
            setting(50, 20.0, 1.0),
        ];
        let Layout { over, labels, lines } = layout(&grid);
        assert!(over == Knob::Weight && labels == ["0.95", "1"]);
        let names: Vec<_> = lines.iter().map(|(name, points)| (name.as_str(), points.clone())).collect();
        assert_eq!(
            names,
            [
                ("top_k 10, temperature 20", vec![(0, 1), (1, 0)]),
                ("top_k 50, temperature 20", vec![(0, 2), (1, 3)])
            ]
        );
        let by_k = layout(&[setting(5, 1.0, 1.0), setting(50, 1.0, 1.0), setting(10, 1.0, 1.0)]);
        assert!(by_k.over == Knob::TopK && by_k.labels == ["5", "10", "50"] && by_k.lines.len() == 1);
    }

    #[test]
    fn labels_of_an_axis_differ() {
        assert_eq!([1.06, 0.4, 0.2, 0.03, 0.004].map(places), [2, 2, 2, 3, 4]);
        assert_eq!(rounded(-0.0001, 2), "0.00");
        assert_eq!([rounded(-0.055, 3), rounded(0.5, 2)], ["-0.055", "0.50"]);
    }

    #[test]
    fn a_picture_has_a_panel_for_each_table() {
        let mut summary = summary();
        summary.about.cache = "a<b>&c".into();
        let svg = drawn(&summary).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert_eq!(svg.matches("share of right answers").count(), 3);
        assert_eq!(svg.matches("nats a token").count(), 3);
        assert!(!svg.contains("a<b>"), "names are escaped");
    }
}
