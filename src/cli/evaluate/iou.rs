//! How well each class is named, as an SVG: a bar for each, the best first.
//!
//! ```text
//!               │ mIoU
//! sky   ████████│██████████     0.92
//! wall  ████████│████           0.71
//! rug   ████    │               0.20
//!       0───────┴─────────── 1
//! ```

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use viscache::train::measure::Confusion;

/// Width of all, of a name, and of a figure at the right, pixels.
const WIDTH: u32 = 640;
const NAME: i32 = 170;
const FIGURE: i32 = 60;
/// Height of a bar with its gap, of the head, and of the foot.
const ROW: i32 = 18;
const HEAD: i32 = 52;
const FOOT: i32 = 34;
/// Letters of a name, at most.
const LETTERS: usize = 24;
const BAR: RGBColor = RGBColor(58, 110, 165);
const INK: RGBColor = RGBColor(60, 60, 60);
const PALE: RGBColor = RGBColor(228, 228, 228);
const MEAN: RGBColor = RGBColor(213, 94, 0);
const FONT: &str = "sans-serif";

/// Draws the classes that are there or were named.
///
/// # Errors
/// Of the drawing.
pub(super) fn plot(title: &str, confusion: &Confusion, names: &[String]) -> anyhow::Result<String> {
    let mut bars: Vec<(&str, f64)> = (names.iter().enumerate())
        .filter_map(|(class, name)| Some((name.as_str(), confusion.iou(class)?)))
        .collect();
    bars.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mean = confusion.mean_iou().unwrap_or_default();
    let bottom = HEAD + ROW * bars.len() as i32;
    let size = (WIDTH, (bottom + FOOT) as u32);
    let at = |value: f64| NAME + (value * f64::from(WIDTH as i32 - NAME - FIGURE)).round() as i32;
    let text = |size: i32, h: HPos, v: VPos| {
        TextStyle::from((FONT, size).into_font()).color(&INK).pos(Pos::new(h, v))
    };
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let caption = format!("IoU of each class, {title}, mIoU {mean:.4}");
        root.draw_text(&caption, &text(15, HPos::Left, VPos::Center), (14, 16))?;
        for tenth in (0..=10).step_by(2) {
            let value = f64::from(tenth) / 10.0;
            let line = PathElement::new(vec![(at(value), HEAD), (at(value), bottom)], PALE);
            root.draw(&line)?;
            let style = text(12, HPos::Center, VPos::Top);
            root.draw_text(&format!("{value:.1}"), &style, (at(value), bottom + 6))?;
        }
        for (&(name, iou), row) in bars.iter().zip(0..) {
            let (top, middle) = (HEAD + ROW * row, HEAD + ROW * row + ROW / 2);
            let bar = Rectangle::new([(at(0.0), top + 3), (at(iou), top + ROW - 3)], BAR.filled());
            root.draw(&bar)?;
            let short = match name.chars().count() > LETTERS {
                true => name.chars().take(LETTERS - 1).chain(['…']).collect(),
                false => name.to_owned(),
            };
            root.draw_text(&short, &text(12, HPos::Right, VPos::Center), (NAME - 8, middle))?;
            // All at one place, where the line of the mean does not cross them.
            let style = text(12, HPos::Right, VPos::Center);
            root.draw_text(&format!("{iou:.3}"), &style, (WIDTH as i32 - 14, middle))?;
        }
        let line = PathElement::new(vec![(at(mean), HEAD), (at(mean), bottom)], MEAN.stroke_width(2));
        root.draw(&line)?;
        root.draw_text("mIoU", &text(12, HPos::Center, VPos::Bottom), (at(mean), HEAD - 2))?;
        root.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_that_has_an_iou_has_a_bar() {
        let names = ["wall", "a name that is too long for its place", "sky"].map(str::to_owned);
        let mut confusion = Confusion::new(3);
        confusion.add(&[1, 1, 2, 2], &[1, 1, 2, 1]);
        let svg = plot("2 pictures", &confusion, &names).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("wall") && !svg.contains("sky"), "{svg}");
        assert!(svg.contains("a name that is too long…") && svg.contains("mIoU 0.5833"), "{svg}");
        // The ground, and a bar each.
        assert_eq!(svg.matches("<rect").count(), 3);
    }
}
