//! iLLaMA's steps: rates over a run, which tensors decay, and mixed batches, against the published program.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use viscache::models::learning::adamw::Settings;
use viscache::train::mixup::{self, Choice};
use viscache::train::schedule::{ByEpoch, Cosine, Counted, Span};
use viscache::train::staged::{Course, Mode, Staged, StagedValues, drop_path_rates};

use crate::common::{Limit, Tally, Tensors, json, parts, say, short};

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn whole(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(number).collect()
}

/// The rows of a part of a file.
fn rows<'a>(file: &'a Value, part: &str) -> &'a [Value] {
    let rows = file[part].as_array().unwrap();
    assert!(!rows.is_empty(), "{part}");
    rows
}

/// What a row says of a rate that ends or begins at an epoch.
fn staged(row: &Value, rate: f64) -> Staged {
    let mode: Mode = serde_json::from_value(row["mode"].clone()).unwrap();
    let schedule: Course = serde_json::from_value(row["schedule"].clone()).unwrap();
    Staged { rate, mode, schedule, cutoff_epoch: whole(&row["cutoff_epoch"]) }
}

fn span(row: &Value, iterations: &str) -> Span {
    Span::new(whole(&row["epochs"]), whole(&row[iterations])).unwrap()
}

/// The last bits of a cosine are the mathematical library's, and the last one of a number in a file is its reader's: read exactly,
/// all rates without a cosine are equal.
fn near(received: f64, expected: f64) -> bool {
    (received - expected).abs() <= 1e-12 * expected.abs()
}

#[test]
fn masks_and_drop_rates_end_or_begin_where_they_do_in_the_program() {
    for root in parts("illama/schedules.json") {
        let file = json(&root);
        let mut tally = Tally::new(short(&root));
        let mut compare = |name: String, values: StagedValues, row: &Value| {
            let expected = numbers(&row["values"]);
            for (i, &expected) in expected.iter().enumerate() {
                let received = values.at(i);
                let otherwise = || format!("iteration {i}: expected {expected}, received {received}");
                tally.check(&name, near(received, expected), otherwise);
            }
        };
        for (i, row) in rows(&file, "small").iter().enumerate() {
            let recipe = staged(row, number(&row["soft_mask_rate"]));
            compare(format!("mask {i}"), recipe.mask_rates(span(row, "niter_per_ep")).unwrap(), row);
        }
        for (i, row) in rows(&file, "drop").iter().enumerate() {
            let recipe = staged(row, number(&row["drop_rate"]));
            compare(format!("drop {i}"), recipe.drop_rates(span(row, "niter_per_ep")).unwrap(), row);
        }
        for row in rows(&file, "drop_path_per_block") {
            let received = drop_path_rates(number(&row["rate"]), whole(&row["depth"])).unwrap();
            let expected: Vec<f32> = numbers(&row["values"]).iter().map(|&rate| rate as f32).collect();
            tally.equal(&format!("blocks of {}", row["rate"]), &received, &expected);
        }
        tally.finish();
    }
}

/// Of every epoch the file gives the first, the last and the mean value.
#[test]
fn masks_of_the_published_recipes() {
    for root in parts("illama/schedules.json") {
        let mut compared = 0;
        for row in rows(&json(&root), "published_recipes") {
            let schedule = serde_json::from_value(row["schedule"].clone()).unwrap();
            let cutoff_epoch = whole(&row["cutoff_epoch"]);
            let recipe = Staged { rate: 1.0, mode: Mode::Early, schedule, cutoff_epoch };
            let span = span(row, "iters_per_epoch");
            let (values, n) = (recipe.mask_rates(span).unwrap(), span.iterations());
            let of = |name: &str| numbers(&row[name]);
            let told = of("first_value_of_epoch")
                .into_iter()
                .zip(of("last_value_of_epoch"))
                .zip(of("mean_of_epoch"));
            for (epoch, ((first, last), mean)) in told.enumerate() {
                let own: Vec<f64> = (epoch * n..(epoch + 1) * n).map(|i| values.at(i)).collect();
                for (own, told) in [(own[0], first), (own[n - 1], last)] {
                    assert!(near(own, told), "{}, epoch {epoch}: {own}, not {told}", row["recipe"]);
                }
                let own = own.iter().sum::<f64>() / n as f64;
                assert!(near(own, mean), "{}, epoch {epoch}: {own}, not {mean}", row["recipe"]);
                compared += 1;
            }
            assert_eq!(values.at(span.total() - 1), 0.0);
        }
        say(&format!("{}: masks of {compared} epochs", short(&root)));
    }
}

#[test]
fn learning_rates_and_decays_of_every_iteration() {
    for root in parts("illama/schedules.json") {
        let mut compared = 0;
        for (i, row) in rows(&json(&root), "cosine").iter().enumerate() {
            let warmup_epochs = row.get("warmup_epochs").map_or(0.0, number);
            let (from, to) = (number(&row["base_value"]), Some(number(&row["final_value"])));
            let span = span(row, "niter_per_ep");
            let values = Cosine { from, to, warmup_epochs, counted: Counted::Iterations }.over(span).unwrap();
            let mut compare = |at: String, received: f64, expected: f64| {
                assert!(near(received, expected), "cosine {i}, {at}: {received}, not {expected}");
                compared += 1;
            };
            for (i, &expected) in row.get("values").map(numbers).unwrap_or_default().iter().enumerate() {
                compare(format!("iteration {i}"), values.at(i), expected);
            }
            let n = span.iterations();
            let of = |name: &str| row.get(name).and_then(Value::as_object).into_iter().flatten();
            for (epoch, first) in of("first_of_epoch") {
                compare(
                    format!("epoch {epoch}"),
                    values.at(epoch.parse::<usize>().unwrap() * n),
                    number(first),
                );
            }
            for (epoch, mean) in of("mean_of_epoch") {
                let start = epoch.parse::<usize>().unwrap() * n;
                let own = (start..start + n).map(|i| values.at(i)).sum::<f64>() / n as f64;
                compare(format!("mean of epoch {epoch}"), own, number(mean));
            }
        }
        say(&format!("{}: {compared} values of cosines", short(&root)));
        assert!(compared > 0);
    }
}

/// The adapters' programs ask for the rate at a fraction of an epoch.
#[test]
fn rates_at_fractions_of_an_epoch() {
    for root in parts("imagebind_llm_decoder/lr_schedule.json") {
        let mut compared = 0;
        for run in json(&root).as_array().unwrap() {
            let of = |name: &str| number(&run[name]);
            let form = ByEpoch::new(of("lr"), of("min_lr"), of("warmup_epochs"), of("epochs")).unwrap();
            // A thousand iterations of an epoch begin at every fraction that the file has.
            let (warmup_epochs, counted) = (of("warmup_epochs"), Counted::Epochs);
            let recipe = Cosine { from: of("lr"), to: Some(of("min_lr")), warmup_epochs, counted };
            let values = recipe.over(Span::new(whole(&run["epochs"]), 1000).unwrap()).unwrap();
            for pair in run["values"].as_array().unwrap() {
                let (epoch, expected) = (number(&pair[0]), number(&pair[1]));
                let close = |rate: f64| (rate - expected).abs() <= 1e-9 * of("lr");
                assert!(close(form.at(epoch)), "{}: {} at {epoch}", run["name"], form.at(epoch));
                if epoch < of("epochs") {
                    let rate = values.at((epoch * 1000.0).round() as usize);
                    assert!(close(rate), "{}: {rate} at {epoch}", run["name"]);
                }
                compared += 1;
            }
        }
        assert!(compared > 0);
    }
}

/// Files of the tiny models.
fn tiny(file: &str) -> Vec<std::path::PathBuf> {
    let all = ["illama/tiny_a", "illama/tiny_b"].into_iter().flat_map(parts);
    all.map(|folder| folder.join(file)).filter(|path| path.exists()).collect()
}

#[test]
fn the_steps_of_a_run_have_the_rates_that_were_recorded() {
    for path in tiny("train.json") {
        let run = &json(&path)["run"];
        let span = span(run, "iters_per_epoch");
        let (to, warmup_epochs) = (Some(number(&run["min_lr"])), number(&run["warmup_epochs"]));
        let rate =
            Cosine { to, warmup_epochs, ..Cosine::constant(number(&run["base_lr"])) }.over(span).unwrap();
        let decay = Cosine::constant(number(&run["weight_decay"])).over(span).unwrap();
        let schedule = serde_json::from_value(run["mask_schedule"].clone()).unwrap();
        let cutoff_epoch = whole(&run["cutoff_soft"]);
        let mask = Staged { rate: 1.0, mode: Mode::Early, schedule, cutoff_epoch }.mask_rates(span).unwrap();
        for step in rows(run, "steps") {
            let i = whole(&step["it"]);
            assert!(near(rate.at(i), number(&step["lr"])), "{}: {step}", short(&path));
            assert!(near(decay.at(i), number(&step["weight_decay"])), "{}: {step}", short(&path));
            assert!(near(mask.at(i), number(&step["soft_mask_rate"])), "{}: {step}", short(&path));
        }
    }
}

#[test]
fn the_same_tensors_decay() {
    for path in tiny("train.json") {
        let run = &json(&path)["run"];
        let weights = Tensors::open(&path.with_file_name("weights.safetensors"));
        let mut expected: BTreeMap<&str, bool> = BTreeMap::new();
        for group in rows(run, "param_groups") {
            let decays = number(&group["weight_decay"]) > 0.0;
            expected.extend(rows(group, "params").iter().map(|name| (name.as_str().unwrap(), decays)));
        }
        let settings = Settings::illama();
        let received: BTreeMap<&str, bool> =
            weights.iter().map(|(name, tensor)| (name, settings.decays(name, tensor.shape.len()))).collect();
        assert_eq!(received, expected, "{}", short(&path));
        assert_eq!(settings.betas.to_vec(), numbers(&run["betas"]));
        assert_eq!(settings.eps, number(&run["adam_eps"]));
    }
}

/// The choice of a recorded case.
///
/// A box is also made again from the share that was drawn, around some centre: which one was not recorded.
fn recorded(path: &Path, row: &Value, side: usize) -> Choice {
    let lambda = number(&row["lam"]);
    if !row["cutmix"].as_bool().unwrap() {
        return Choice::Mixup { lambda };
    }
    let of: Vec<usize> = row["bbox_yl_yh_xl_xh"].as_array().unwrap().iter().map(whole).collect();
    let (rows, columns) = (of[0]..of[1], of[2]..of[3]);
    let choice = Choice::Cutmix { lambda: number(&row["lam_after_area_correction"]), rows, columns };
    let mut centres = (0..side).flat_map(|row| (0..side).map(move |column| [row, column]));
    let found = centres.any(|centre| Choice::cutmix(lambda, centre, side) == choice);
    assert!(found, "{}: no box of this program is {choice:?}, for λ = {lambda}", short(path));
    choice
}

#[test]
fn batches_are_mixed_as_in_the_program() {
    for path in parts("illama/mixup.json") {
        let file = Tensors::open(&path.with_extension("safetensors"));
        let mut tally = Tally::new(short(&path));
        let limit = Limit { absolute: 1e-6, turn: 1e-9 };
        for row in json(&path).as_array().unwrap() {
            let case = format!("case{}", row["case"]);
            let get = |name: &str| file.get(&format!("{case}.{name}"));
            let shape: [usize; 4] = get("images").shape.as_slice().try_into().unwrap();
            let choice = recorded(&path, row, shape[3]);
            let labels: Vec<u32> = get("labels").wholes().iter().map(|&label| label as u32).collect();
            let (classes, smoothing) = (whole(&row["num_classes"]), number(&row["smoothing"]));
            let mut images = get("images").floats().to_vec();
            let targets = mixup::apply(&choice, &mut images, shape, &labels, classes, smoothing).unwrap();
            let mixed = get("mixed_images").floats();
            tally.floats(&format!("{case}, pictures"), &images, mixed, shape[3], limit);
            tally.floats(&format!("{case}, targets"), &targets, get("targets").floats(), classes, limit);
        }
        tally.finish();
    }
}
