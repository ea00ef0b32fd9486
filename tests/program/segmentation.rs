//! Segmenters by the command line: trained on drawn pictures in ADE20K's layout, measured, and asked for maps.

use std::path::PathBuf;
use std::process::Output;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Value, json};
use tempfile::TempDir;
use viscache::media::{LabelMap, Limits};

use crate::world::{expect, lines, viscache};

const RECIPE: &str = r#"
[run]
seed = 3
epochs = 6
batch = 8

[rate]
from = 4e-3
to = 1e-4

[segmentation]
model = { size = "tiny", side = 32, patch = 4, width = 64, depth = 2 }
data = "set"
classes = 3
names = "names.txt"
"#;

struct Desk {
    folder: TempDir,
}

impl Desk {
    /// Left and right halves of two colours, and a bar of a third; labels 1, 2 and 3.
    fn new() -> Self {
        let desk = Desk { folder: TempDir::new().unwrap() };
        let mut random = Pcg64::seed_from_u64(8);
        for (split, count) in [("training", 24), ("validation", 6)] {
            for i in 0..count {
                desk.pair(split, &format!("{i:02}"), &mut random);
            }
        }
        desk.put("names.txt", b"left\nright\nbar\n");
        desk.put("recipe.toml", RECIPE.as_bytes());
        desk
    }

    fn pair(&self, split: &str, name: &str, random: &mut Pcg64) {
        let (width, height) = (random.random_range(40..60usize), random.random_range(32..44usize));
        let (edge, top) = (random.random_range(12..28), random.random_range(4..20));
        let label = |at: usize| match (at % width < edge, (top..top + 8).contains(&(at / width))) {
            (_, true) => 3,
            (true, false) => 1,
            (false, false) => 2u8,
        };
        let labels: Vec<u8> = (0..width * height).map(label).collect();
        let mut bytes = format!("P6\n{width} {height}\n255\n").into_bytes();
        for &label in &labels {
            let mut colour = [0; 3].map(|_: u8| random.random_range(40..110u8));
            colour[usize::from(label) - 1] += 120;
            bytes.extend(colour);
        }
        self.put(&format!("set/images/{split}/{name}.ppm"), &bytes);
        let map = LabelMap { width, height, labels };
        self.put(&format!("set/annotations/{split}/{name}.png"), &map.png().unwrap());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn run(&self, code: i32, line: &str) -> Output {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        expect(code, &arguments, viscache(self.folder.path()).args(&arguments).output().unwrap())
    }

    fn json(&self, code: i32, line: &str) -> Value {
        lines(&self.run(code, &format!("{line} --json"))).remove(0)
    }

    fn said(&self, code: i32, line: &str) -> String {
        String::from_utf8(self.run(code, line).stderr).unwrap()
    }

    fn map(&self, name: &str) -> LabelMap {
        LabelMap::decode(&std::fs::read(self.path(name)).unwrap(), &Limits::default()).unwrap()
    }
}

const WEIGHTS: &str = "--weights runs/best/weights.safetensors";

#[test]
fn a_segmenter_is_trained_measured_and_asked() {
    let desk = Desk::new();
    desk.put("set/images/training/alone.jpg", b"x");
    let said = desk.said(0, "train recipe.toml --out runs --threads 2");
    assert!(
        said.contains("24 annotated pictures to learn from, with pixels of 3 classes out of 3"),
        "{said}"
    );
    assert!(said.contains("without an annotation: 1") && said.contains("alone.jpg"), "{said}");
    assert!(said.contains("miou"), "{said}");
    let measures: Value =
        serde_json::from_slice(&std::fs::read(desk.path("runs/best/measures.json")).unwrap()).unwrap();
    let miou = &measures["measures"][0];
    assert!(miou["name"] == "miou" && miou["value"].as_f64().unwrap() > 0.6, "{measures}");

    // The same by the command, in figures, as a table and as a plot.
    let line = format!("evaluate segmentation set {WEIGHTS} --out figures");
    let figures = desk.json(0, &line);
    let near = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-9;
    assert!(near(&figures["mean_iou"], &miou["value"]), "{figures} {measures}");
    assert_eq!((&figures["pictures"], &figures["bad"]), (&json!(6), &json!(0)));
    assert_eq!(figures["classes"][2]["name"], "bar");
    let stored = std::fs::read(desk.path("figures/segmentation.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&stored).unwrap(), figures);
    let svg = std::fs::read_to_string(desk.path("figures/iou.svg")).unwrap();
    assert!(svg.contains("right") && svg.contains("6 pictures, mIoU"), "{svg}");
    let table = String::from_utf8(desk.run(0, &line).stdout).unwrap();
    assert!(table.starts_with("6 pictures of 3 classes\nmIoU 0.") && table.contains("bar"), "{table}");
    let eight = desk.json(0, &format!("evaluate segmentation set {WEIGHTS} --encoder-dtype q8_0"));
    let off = eight["mean_iou"].as_f64().unwrap() - figures["mean_iou"].as_f64().unwrap();
    assert!(off.abs() < 0.05, "8 bits are near: {off}");

    // Maps, whose pixels are those that were counted.
    let shown = desk.json(0, &format!("segment set/images/validation/00.ppm --out maps {WEIGHTS}"));
    assert_eq!(shown["map"], "maps/00.png");
    let (map, truth) = (desk.map("maps/00.png"), desk.map("set/annotations/validation/00.png"));
    assert_eq!((map.width, map.height), (truth.width, truth.height));
    let right = map.labels.iter().zip(&truth.labels).filter(|(a, b)| a == b).count();
    assert!(right * 10 > map.labels.len() * 6, "{right} of {}", map.labels.len());
    let shares: f64 = shown["classes"].as_array().unwrap().iter().map(|c| c["share"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shown}");

    // What is bad is named, and the rest is done.
    desk.put("broken.png", b"no picture");
    let line = format!("segment broken.png set/images/validation/01.ppm missing.jpg --out maps {WEIGHTS}");
    let output = desk.run(3, &line);
    let (out, errors) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(
        out.contains("01.ppm → maps/01.png") && errors.contains("broken.png: not a readable"),
        "{errors}"
    );
    assert!(errors.contains("missing.jpg"), "{errors}");
    let cut = std::fs::read(desk.path("set/images/validation/03.ppm")).unwrap();
    desk.put("set/images/validation/03.ppm", &cut[..cut.len() / 2]);
    let output = desk.run(3, &format!("evaluate segmentation set {WEIGHTS} --json"));
    assert_eq!((&lines(&output)[0]["pictures"], &lines(&output)[0]["bad"]), (&json!(5), &json!(1)));
    assert!(String::from_utf8(output.stderr).unwrap().contains("03.ppm"));

    // What cannot be followed says why.
    desk.put("two.txt", b"left\nright\n");
    for (line, says) in [
        ("segment broken.png --out maps".to_owned(), "name a segmenter"),
        (format!("segment a.jpg b/a.png --out maps {WEIGHTS}"), "would both become"),
        (format!("segment maps/00.png --out maps {WEIGHTS}"), "take its place"),
        (format!("evaluate segmentation nowhere {WEIGHTS}"), "images/validation"),
        (format!("evaluate segmentation set {WEIGHTS} --sizes names.txt"), "names.txt"),
        (
            format!("evaluate segmentation set {WEIGHTS} --labels two.txt"),
            "names 2 classes, and the model has 3",
        ),
        ("evaluate segmentation set --weights broken.png".to_owned(), "config.json"),
    ] {
        let errors = desk.said(1, &line);
        assert!(errors.contains(says), "{line}: {errors}");
    }
}
