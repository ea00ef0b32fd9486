//! The five attributes of a scene, their words, and the pairs held out.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// An attribute: its values in index order, each with the word that captions use.
macro_rules! attribute {
    ($(#[$doc:meta])* $name:ident { $($value:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $(#[doc = $word] $value),+ }

        impl $name {
            /// Every value, in index order.
            pub const ALL: [$name; [$($word),+].len()] = [$($name::$value),+];

            /// The canonical word.
            pub fn word(self) -> &'static str {
                match self { $($name::$value => $word),+ }
            }

            fn any(rng: &mut impl Rng) -> $name {
                $name::ALL[rng.random_range(0..$name::ALL.len())]
            }
        }
    };
}

attribute! {
    /// Colour of the object.
    Colour {
        Red = "red", Green = "green", Blue = "blue", Yellow = "yellow",
        Orange = "orange", Purple = "purple", Pink = "pink", Cyan = "cyan",
    }
}

attribute! {
    /// Shape of the object.
    Shape {
        Circle = "circle", Square = "square", Triangle = "triangle", Star = "star",
        Cross = "cross", Ring = "ring", Heart = "heart", Crescent = "crescent",
    }
}

attribute! {
    /// Size of the object.
    Size { Small = "small", Large = "large" }
}

attribute! {
    /// Where in the picture the object is.
    Position { Left = "left", Right = "right", Top = "top", Bottom = "bottom", Centre = "centre" }
}

attribute! {
    /// What is behind the object.
    Background { White = "white", Grey = "grey", Black = "black", Striped = "striped" }
}

impl Position {
    /// Where that is, in canonical words.
    pub fn place(self) -> &'static str {
        match self {
            Position::Left => "at the left",
            Position::Right => "at the right",
            Position::Top => "at the top",
            Position::Bottom => "at the bottom",
            Position::Centre => "in the centre",
        }
    }
}

/// One object on a background.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct Scene {
    /// Colour of the object.
    pub colour: Colour,
    /// Shape of the object.
    pub shape: Shape,
    /// Size of the object.
    pub size: Size,
    /// Where in the picture the object is.
    pub position: Position,
    /// What is behind the object.
    pub background: Background,
}

impl Scene {
    /// Five independent uniform draws, held-out pairs included.
    pub fn any(rng: &mut impl Rng) -> Scene {
        Scene {
            colour: Colour::any(rng),
            shape: Shape::any(rng),
            size: Size::any(rng),
            position: Position::any(rng),
            background: Background::any(rng),
        }
    }

    /// Whether this is one of the eight pairs of colour and shape that are kept from everything that learns:
    /// one for each colour and each shape. A model that names them right has learnt colours and shapes, not
    /// their pairs.
    pub fn is_held_out(&self) -> bool {
        Scene::pair_is_held_out(self.colour, self.shape)
    }

    /// Whether no scene with this colour and shape is learned with.
    pub fn pair_is_held_out(colour: Colour, shape: Shape) -> bool {
        shape as usize == (3 * colour as usize + 1) % Shape::ALL.len()
    }

    /// What is spoken of it: size, colour and shape.
    pub fn spoken(&self) -> String {
        format!("{} {} {}", self.size.word(), self.colour.word(), self.shape.word())
    }

    /// The canonical caption.
    pub fn caption(&self) -> String {
        format!("a {} {} on a {} background", self.spoken(), self.position.place(), self.background.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_canonical() {
        let mut scene = Scene {
            colour: Colour::Red,
            shape: Shape::Circle,
            size: Size::Small,
            position: Position::Left,
            background: Background::Grey,
        };
        assert_eq!(scene.caption(), "a small red circle at the left on a grey background");
        (scene.colour, scene.size, scene.position) = (Colour::Orange, Size::Large, Position::Centre);
        assert_eq!(scene.caption(), "a large orange circle in the centre on a grey background");
    }

    #[test]
    fn the_held_out_pairs_are_the_eight_agreed_on() {
        let mut pairs = Vec::new();
        for colour in Colour::ALL {
            for shape in Shape::ALL {
                let (size, position, background) = (Size::Small, Position::Top, Background::White);
                if (Scene { colour, shape, size, position, background }).is_held_out() {
                    pairs.push(format!("{} {}", colour.word(), shape.word()));
                }
            }
        }
        assert_eq!(
            pairs.join(", "),
            "red square, green cross, blue crescent, yellow triangle, \
             orange ring, purple circle, pink star, cyan heart"
        );
    }
}
