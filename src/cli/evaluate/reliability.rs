//! The reliability diagram: accuracy by confidence, as an SVG.
//!
//! ```text
//! accuracy
//!  1 ┤            ╱     █   how often it was right, of the pictures in a bin of confidence
//!    │       ▒ ╱█       ▒   from there to their mean confidence: what it is too sure by, or not sure enough
//!    │    ▒╱█ █ █
//!  0 ┼──█─█─█─█─█── confidence
//! ```

use plotters::prelude::*;
use viscache::train::measure::Calibration;

/// Width and height, pixels.
const SIZE: (u32, u32) = (520, 520);
const BAR: RGBColor = RGBColor(58, 110, 165);
/// From the accuracy up to the mean confidence.
const OVER: RGBColor = RGBColor(235, 160, 150);
/// From the accuracy down to it.
const UNDER: RGBColor = RGBColor(240, 190, 90);

/// Draws what was measured.
///
/// # Errors
/// Of the drawing.
pub(super) fn plot(title: &str, calibration: &Calibration) -> anyhow::Result<String> {
    let mut svg = String::new();
    let error = calibration.error().map_or_else(String::new, |error| format!(", ECE {error:.4}"));
    let bins = calibration.bins();
    let edge = |bin: usize| bin as f64 / bins.len() as f64;
    let means: Vec<(usize, f64, f64)> = bins
        .iter()
        .enumerate()
        .filter_map(|(at, bin)| bin.means().map(|(confidence, accuracy)| (at, confidence, accuracy)))
        .collect();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(format!("{title}{error}"), ("sans-serif", 15))
            .margin(14)
            .x_label_area_size(40)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("confidence")
            .y_desc("accuracy")
            .label_style(("sans-serif", 13))
            .draw()?;
        let bars = means.iter().map(|&(at, _, accuracy)| {
            Rectangle::new([(edge(at), 0.0), (edge(at + 1), accuracy)], BAR.filled())
        });
        chart.draw_series(bars)?.label("accuracy").legend(|(x, y)| key(x, y, BAR.filled()));
        for (name, colour, over) in [("too sure", OVER, true), ("not sure enough", UNDER, false)] {
            let gaps = means.iter().filter(|(_, confidence, accuracy)| (confidence > accuracy) == over).map(
                |&(at, confidence, accuracy)| {
                    Rectangle::new([(edge(at), accuracy), (edge(at + 1), confidence)], colour.filled())
                },
            );
            chart.draw_series(gaps)?.label(name).legend(move |(x, y)| key(x, y, colour.filled()));
        }
        let borders = (0..=bins.len())
            .map(|at| PathElement::new(vec![(edge(at), 0.0), (edge(at), 1.0)], BLACK.mix(0.08)));
        chart.draw_series(borders)?;
        chart.draw_series([PathElement::new(vec![(0.0, 0.0), (1.0, 1.0)], BLACK.stroke_width(1))])?;
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .label_font(("sans-serif", 13))
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}

/// A patch of colour in the legend.
fn key(x: i32, y: i32, style: ShapeStyle) -> Rectangle<(i32, i32)> {
    Rectangle::new([(x, y - 5), (x + 14, y + 5)], style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bin_with_pictures_has_a_bar_and_a_gap() {
        let count = |pictures: &[(f64, bool)]| {
            let mut calibration = Calibration::default();
            pictures.iter().for_each(|&(confidence, is_right)| calibration.add(confidence, is_right));
            let svg = plot("a model", &calibration).unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains("a model"));
            svg.matches("<rect").count()
        };
        let none = count(&[]);
        assert_eq!(count(&[(0.9, true), (0.91, false), (0.1, false)]), none + 4);
        assert_eq!(count(&[(0.9, true)]), none + 2);
    }
}
