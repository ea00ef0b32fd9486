//! What is inside each shape.
//!
//! ```text
//!      −1  0  1 ─► u        one unit is the radius of the object;
//!   −1     ▲                 v grows downward, as rows of pixels do,
//!    0    ▲▲▲                so tips that point up point to −v
//!    1   ▲▲▲▲▲
//!    ▼ v
//! ```

use std::f32::consts::TAU;

use super::scene::Shape;

/// No shape reaches further than this from its origin.
const REACH: f32 = 1.2;

impl Shape {
    /// Whether (u, v) is inside.
    pub(super) fn contains(self, u: f32, v: f32) -> bool {
        let rho = u.hypot(v);
        if rho > REACH {
            return false;
        }
        match self {
            Shape::Circle => rho <= 0.95,
            Shape::Square => u.abs().max(v.abs()) <= 0.80,
            Shape::Triangle => {
                let slanted = |degrees: f32| {
                    let (sin, cos) = degrees.to_radians().sin_cos();
                    u * cos + v * sin <= 0.55
                };
                v <= 0.55 && slanted(210.0) && slanted(330.0)
            }
            Shape::Star => {
                // Fold the plane onto half a tip: from the tip (p = 0) to the notch beside it (p = 36°).
                let step = TAU / 5.0;
                let p = ((u.atan2(-v) + step / 2.0).rem_euclid(step) - step / 2.0).abs();
                let (x, y) = (rho * p.cos(), rho * p.sin());
                let (tip_x, notch_x, notch_y) = (1.1, 0.48 * (step / 2.0).cos(), 0.48 * (step / 2.0).sin());
                (notch_x - tip_x) * y - notch_y * (x - tip_x) >= 0.0
            }
            Shape::Cross => (u.abs() <= 0.32 && v.abs() <= 1.0) || (v.abs() <= 0.32 && u.abs() <= 1.0),
            Shape::Ring => (rho - 0.75).abs() <= 0.22,
            Shape::Heart => {
                let (x, y) = (1.2 * u, -1.2 * v + 0.1);
                let q = x * x + y * y - 1.0;
                q * q * q - x * x * y * y * y <= 0.0
            }
            Shape::Crescent => rho <= 0.95 && (u - 0.45).hypot(v) > 0.75,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use super::*;

    /// Area and centre of gravity, by counting a fine grid.
    fn measure(shape: Shape) -> (f64, f64, f64) {
        const STEPS: i32 = 1500;
        let at = |step: i32| 1.5 * (2.0 * (f64::from(step) + 0.5) / f64::from(STEPS) - 1.0);
        let (mut count, mut sum_u, mut sum_v) = (0.0, 0.0, 0.0);
        for (u, v) in (0..STEPS).flat_map(|row| (0..STEPS).map(move |column| (at(column), at(row)))) {
            if shape.contains(u as f32, v as f32) {
                (count, sum_u, sum_v) = (count + 1.0, sum_u + u, sum_v + v);
            }
        }
        (count * (3.0 / f64::from(STEPS)).powi(2), sum_u / count, sum_v / count)
    }

    /// The area two circles share, `apart` from centre to centre.
    fn lens(a: f64, b: f64, apart: f64) -> f64 {
        let part = |a: f64, b: f64| {
            let chord = (apart * apart + a * a - b * b) / (2.0 * apart);
            a * a * (chord / a).acos() - chord * (a * a - chord * chord).sqrt()
        };
        part(a, b) + part(b, a)
    }

    #[test]
    fn areas_are_those_of_geometry() {
        for shape in Shape::ALL {
            let expected = match shape {
                Shape::Circle => PI * 0.95 * 0.95,
                Shape::Square => 1.6 * 1.6,
                Shape::Triangle => 27f64.sqrt() * 0.55 * 0.55,
                Shape::Star => 5.0 * 1.1 * 0.48 * (PI / 5.0).sin(),
                Shape::Cross => 2.0 * 2.0 * 0.64 - 0.64 * 0.64,
                Shape::Ring => PI * (0.97 * 0.97 - 0.53 * 0.53),
                Shape::Heart => 3.662 / (1.2 * 1.2), // the sextic's own area, by quadrature
                Shape::Crescent => PI * 0.95 * 0.95 - lens(0.95, 0.75, 0.45),
            };
            let area = measure(shape).0;
            assert!((area / expected - 1.0).abs() < 0.005, "{shape:?}: area {area}, expected {expected}");
        }
    }

    #[test]
    fn shapes_are_the_right_way_up() {
        for (shape, u, v) in
            [(Shape::Triangle, 0.0, -1.05), (Shape::Star, 0.0, -1.05), (Shape::Heart, 0.0, 0.88)]
        {
            assert!(shape.contains(u, v) && !shape.contains(u, -v), "{shape:?}");
        }
        let (_, u, v) = measure(Shape::Crescent);
        assert!(u < -0.3 && v.abs() < 0.01, "a crescent is thick at the left, not at {u}, {v}");
    }
}
