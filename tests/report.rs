//! `bantam report`: its figures are the manifest's, its pages are whole and harmless, its card is one that `verify` knows.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use common::{bantam, expect_exit, fixture, json};
use serde_json::{Value, json};

/// A folder with artifacts of the built-in example.
struct Example {
    folder: tempfile::TempDir,
}

impl Example {
    fn new(recipes: &[&str]) -> Self {
        let example = Self { folder: tempfile::tempdir().unwrap() };
        for recipe in recipes {
            let mut command = bantam();
            command.args(["run", "--quiet"]).arg(fixture("recipes").join(format!("{recipe}.toml")));
            expect_exit(command.arg("--out").arg(example.path(recipe)), 0);
        }
        example
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn manifest(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(name).join("manifest.json")).unwrap()).unwrap()
    }

    fn report(&self, artifact: &str, arguments: &[&str], code: i32) -> std::process::Output {
        let mut command = bantam();
        command.arg("report").arg(self.path(artifact)).arg("--quiet").args(arguments);
        expect_exit(command.current_dir(self.folder.path()), code)
    }

    fn json(&self, artifact: &str, arguments: &[&str]) -> Value {
        json(&self.report(artifact, &[arguments, &["--format", "json"]].concat(), 0))
    }

    fn html(&self, artifact: &str, arguments: &[&str]) -> String {
        self.report(artifact, &[arguments, &["--out", "report.html"]].concat(), 0);
        std::fs::read_to_string(self.path("report.html")).unwrap()
    }
}

fn source() -> String {
    fixture("tiny-llama").display().to_string()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12 * a.abs().max(b.abs())
}

/// What is shown of the role of a tensor, by its name alone: this is a Llama.
fn role_by_name(name: &str) -> &'static str {
    let roles = [
        ("q_proj", "attention.query"),
        ("k_proj", "attention.key"),
        ("v_proj", "attention.value"),
        ("o_proj", "attention.output"),
        ("gate_proj", "mlp.gate"),
        ("up_proj", "mlp.up"),
        ("down_proj", "mlp.down"),
        ("norm", "norm"),
        ("embed_tokens", "embedding"),
        ("lm_head", "head"),
    ];
    roles.into_iter().find(|(part, _)| name.contains(part)).unwrap().1
}

#[test]
fn figures_are_the_manifests() {
    let example = Example::new(&["mixed-precision"]);
    let manifest = example.manifest("mixed-precision");
    let report = example.json("mixed-precision", &["--source", &source()]);
    assert_eq!(report["schema"], "bantam.report/1");
    let artifact = &report["artifact"];
    for key in ["totals", "fallbacks", "layout", "recipe", "tool"] {
        assert_eq!(artifact[key], manifest[key], "{key}");
    }
    assert_eq!((&artifact["model"], &artifact["blocks"]), (&json!("tiny-llama"), &json!(4)));
    // Independent sums, by names.
    let inputs: BTreeMap<&str, u64> = manifest["inputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|input| (input["name"].as_str().unwrap(), input["bytes"].as_u64().unwrap()))
        .collect();
    let mut sizes: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    let mut layers: BTreeMap<(u64, &str), f64> = BTreeMap::new();
    let (mut squares, mut weights) = (0.0, 0.0);
    for tensor in manifest["tensors"].as_array().unwrap() {
        let name = tensor["name"].as_str().unwrap();
        let count = tensor["shape"].as_array().unwrap().iter().map(|length| length.as_f64().unwrap()).product::<f64>();
        let bytes = tensor["parts"].as_array().unwrap().iter().map(|part| part["bytes"].as_u64().unwrap()).sum::<u64>();
        let size = sizes.entry(role_by_name(name)).or_default();
        *size = (size.0 + 1, size.1 + inputs[name], size.2 + bytes);
        if let Some(relative) = tensor["error"]["relative"].as_f64() {
            squares += relative * relative * count;
            weights += count;
            let layer = name.split('.').nth(2).unwrap().parse().unwrap();
            layers.insert((layer, role_by_name(name)), relative);
        }
    }
    let shown: BTreeMap<&str, (u64, u64, u64)> = artifact["roles"]
        .as_array()
        .unwrap()
        .iter()
        .map(|role| {
            let figure = |key: &str| role[key].as_u64().unwrap();
            (role["role"].as_str().unwrap(), (figure("tensors"), figure("source_bytes"), figure("bytes")))
        })
        .collect();
    assert_eq!(shown, sizes);
    let total = |pick: fn(&(u64, u64, u64)) -> u64| sizes.values().map(pick).sum::<u64>();
    assert_eq!(manifest["totals"]["source_bytes"], total(|size| size.1));
    assert_eq!(manifest["totals"]["artifact_bytes"], total(|size| size.2));
    assert!(close(artifact["mean_relative_error"].as_f64().unwrap(), (squares / weights).sqrt()));
    let rows = artifact["layers"].as_array().unwrap();
    assert_eq!((rows.len(), layers.len()), (28, 28));
    for row in rows {
        let expected = layers[&(row["layer"].as_u64().unwrap(), row["role"].as_str().unwrap())];
        let (relative, decibels) = (row["relative_error"].as_f64().unwrap(), row["snr_db"].as_f64().unwrap());
        assert!(close(relative, expected) && (decibels + 20.0 * expected.log10()).abs() < 1e-9, "{row}");
    }
    // Three tensors, each with all of its weights in the bins, before and after.
    let histograms = report["histograms"]["tensors"].as_array().unwrap();
    assert_eq!(histograms.len(), 3);
    let worst = artifact["tensors"].as_array().unwrap().iter().max_by(|a, b| {
        let error = |row: &Value| row["relative_error"].as_f64().unwrap_or(0.0);
        error(a).total_cmp(&error(b))
    });
    assert_eq!(histograms[0]["name"], worst.unwrap()["name"]);
    for histogram in histograms {
        let row = artifact["tensors"].as_array().unwrap().iter().find(|row| row["name"] == histogram["name"]).unwrap();
        for side in ["before", "after"] {
            let counts = histogram[side].as_array().unwrap();
            assert_eq!(counts.len(), 64);
            assert_eq!(
                counts.iter().map(|count| count.as_u64().unwrap()).sum::<u64>(),
                row["weights"].as_u64().unwrap()
            );
        }
        assert_ne!(histogram["before"], histogram["after"]);
    }
}

/// The bins of before, counted once more from the file by another reader.
#[test]
fn a_histogram_is_of_the_sources_weights() {
    let example = Example::new(&["int4"]);
    let name = "model.layers.0.self_attn.k_proj.weight";
    let report = example.json("int4", &["--source", &source(), "--tensor", name]);
    let [histogram] = &report["histograms"]["tensors"].as_array().unwrap()[..] else { panic!("{report}") };
    let bytes = std::fs::read(fixture("tiny-llama/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor(name).unwrap().data().to_vec();
    let weights = data.chunks(2).map(|pair| f64::from(half::bf16::from_le_bytes([pair[0], pair[1]]).to_f32()));
    let (low, high) = (histogram["low"].as_f64().unwrap(), histogram["high"].as_f64().unwrap());
    let mut counts = vec![0_u64; 64];
    for weight in weights {
        let bin = (64.0 * (weight - low) / (high - low)).floor().clamp(0.0, 63.0);
        counts[bin as usize] += 1;
    }
    let shown: Vec<u64> = histogram["before"].as_array().unwrap().iter().map(|count| count.as_u64().unwrap()).collect();
    // At an edge the order of multiplication and division may decide.
    let moved: u64 = counts.iter().zip(&shown).map(|(a, b)| a.abs_diff(*b)).sum();
    assert!(moved <= 4, "{moved}");
}

/// Elements in order, and every attribute; fails where tags do not close.
fn parse_html(text: &str) -> Vec<(String, Vec<(String, String)>)> {
    const EMPTY: [&str; 3] = ["meta", "link", "!doctype"];
    let (mut open, mut elements, mut rest) = (Vec::new(), Vec::new(), text);
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').expect("every tag ends");
        let (tag, after) = (&rest[start + 1..end], &rest[end + 1..]);
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "…{}", &rest[..rest.len().min(80)]);
            continue;
        }
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        let closed = attributes.ends_with('/') || EMPTY.contains(&name);
        let mut pairs = Vec::new();
        let mut pieces = attributes.trim_end_matches('/').split('"');
        while let (Some(key), Some(value)) = (pieces.next(), pieces.next()) {
            pairs.push((key.trim().trim_end_matches('=').to_owned(), value.to_owned()));
        }
        elements.push((name.to_owned(), pairs));
        if !closed {
            open.push(name.to_owned());
        }
        if name == "style" {
            rest = &rest[rest.find("</style>").unwrap()..];
        }
    }
    assert!(open.is_empty(), "{open:?}");
    elements
}

/// No element that runs or loads something.
fn assert_harmless(text: &str) {
    let elements = parse_html(text);
    for (name, attributes) in &elements {
        assert!(!["script", "iframe", "object", "embed", "img", "base", "form"].contains(&name.as_str()), "{name}");
        for (key, value) in attributes {
            assert!(!key.starts_with("on") && key != "src" && key != "xlink:href", "{key}");
            assert!(key != "href" || value == "data:,", "{key}={value}");
        }
    }
    assert!(
        !text.contains("http://") && !text.contains("https://") && !text.contains("url(") && !text.contains("@import")
    );
    let figures = elements.iter().filter(|(name, _)| name == "svg");
    for (_, attributes) in figures {
        let keys: BTreeSet<&str> = attributes.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, BTreeSet::from(["aria-label", "role", "viewBox"]));
    }
}

#[test]
fn a_page_is_whole_alone_and_the_same_twice() {
    let example = Example::new(&["int4", "mixed-precision"]);
    let page = example.html("int4", &["--source", &source()]);
    assert_harmless(&page);
    assert_eq!(page.matches("<svg ").count(), 6);
    // A cell of the heat map for each layer and role, a point of a line and of the scatter for each as well.
    assert_eq!(page.matches("<rect ").count(), 28);
    assert_eq!(page.matches("<circle ").count(), 56);
    assert!(page.matches("<polyline ").count() >= 7);
    assert!(!page.contains("#0102"), "a colour that only drawing uses");
    assert_eq!(page, example.html("int4", &["--source", &source(), "--threads", "1"]));
    let beside = example.html("int4", &["--source", &source(), "--against", "mixed-precision"]);
    assert_harmless(&beside);
    assert_eq!((beside.matches("<svg ").count(), beside.matches("<rect ").count()), (7, 56));
    assert!(beside.contains("stroke-dasharray"));
    let leftovers: Vec<_> = std::fs::read_dir(example.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().starts_with('.'))
        .collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
}

#[test]
fn two_artifacts_are_compared_tensor_by_tensor() {
    let example = Example::new(&["int4", "w8a16"]);
    let report = example.json("int4", &["--against", "w8a16"]);
    let comparison = &report["comparison"];
    assert_eq!((&comparison["same_source"], &comparison["common"]), (&json!(true), &json!(39)));
    assert_eq!((&comparison["changed"], &comparison["only_here"]), (&json!(28), &json!(0)));
    let relative = |name: &str| -> BTreeMap<String, f64> {
        let manifest = example.manifest(name);
        let error = |tensor: &Value| {
            (tensor["name"].as_str().unwrap().to_owned(), tensor["error"]["relative"].as_f64().unwrap_or(0.0))
        };
        manifest["tensors"].as_array().unwrap().iter().map(error).collect()
    };
    let (here, there) = (relative("int4"), relative("w8a16"));
    let mut moved: Vec<(f64, &String)> = here.iter().map(|(name, error)| ((error - there[name]).abs(), name)).collect();
    moved.sort_by(|a, b| b.0.total_cmp(&a.0));
    let largest = comparison["largest"].as_array().unwrap();
    assert_eq!(largest.len(), 20);
    for (change, (_, name)) in largest.iter().zip(moved) {
        assert_eq!(change["name"], json!(name));
        assert_eq!(
            (&change["relative_error"], &change["relative_error_against"]),
            (&json!(here[name]), &json!(there[name]))
        );
    }
    let same = example.json("int4", &["--against", "int4"]);
    assert_eq!(same["comparison"]["changed"], 0);
}

#[test]
fn hostile_names_stay_text() {
    let example = Example::new(&["int4"]);
    let hostile = "x\"><script>alert(1)</script>|`*</svg>&{{ 7 * 7 }}\n# y";
    let mut manifest = example.manifest("int4");
    let worst = manifest["tensors"].as_array_mut().unwrap().iter_mut().find(|t| !t["error"].is_null()).unwrap();
    worst["name"] = json!(hostile);
    worst["error"]["relative"] = json!(3.5);
    worst["error"]["snr_db"] = json!(-10.88);
    worst["codec"] = json!("<b>bold</b>");
    manifest["fallbacks"] = json!([{"kind": "<i>", "tensor": hostile, "count": 1, "message": hostile}]);
    manifest["recipe"]["model"] = json!("../</pre><script>");
    let folder = example.path("<img src=x>");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    std::fs::copy(example.path("int4/config.json"), folder.join("config.json")).unwrap();
    let page = example.html("<img src=x>", &[]);
    assert_harmless(&page);
    assert!(
        page.contains("&lt;script&gt;alert(1)")
            && !page.contains("<script")
            && !page.contains("<img")
            && !page.contains("<b>")
    );
    assert!(page.contains("{{ 7 * 7 }}"), "a name is no template");
    let markdown = String::from_utf8(example.report("<img src=x>", &[], 0).stdout).unwrap();
    let outside: String = markdown.split("```").step_by(2).collect();
    assert!(!outside.contains("<script") && !outside.contains("<img") && !outside.contains("\n# y"), "{outside}");
    assert_tables(&markdown);
    let report = example.json("<img src=x>", &[]);
    assert_eq!(report["artifact"]["fallbacks"][0]["tensor"], hostile);
}

/// Every table has as many cells in each row as in its heading.
fn assert_tables(markdown: &str) -> usize {
    let cells = |line: &str| line.replace("\\\\", "").replace("\\|", "").matches('|').count();
    let (mut tables, mut width) = (0, None);
    for line in markdown.lines() {
        if !line.starts_with('|') {
            width = None;
            continue;
        }
        if width.is_none() {
            tables += 1;
        }
        assert_eq!(cells(line), *width.get_or_insert(cells(line)), "{line}");
        assert!(line.starts_with("| ") && line.ends_with(" |"), "{line}");
    }
    tables
}

#[test]
fn markdown_has_tables_of_one_width() {
    let example = Example::new(&["int4", "mixed-precision"]);
    let text = String::from_utf8(example.report("int4", &[], 0).stdout).unwrap();
    assert!(text.starts_with("# int4\n"));
    assert_eq!(assert_tables(&text), 4);
    assert!(text.contains("\n| `mlp.down` | int4-g128 | 4 | 1.57 MB | 406 kB | 4.126 |\n"), "{text}");
    let recipe = text.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let read: toml::Table = recipe.parse().unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), example.manifest("int4")["recipe"]);
    let beside = String::from_utf8(example.report("int4", &["--against", "mixed-precision"], 0).stdout).unwrap();
    assert_eq!(assert_tables(&beside), 7);
}

#[test]
fn evaluations_are_rows() {
    let example = Example::new(&["int4"]);
    let text = fixture("text/forward.txt").display().to_string();
    let mut eval = bantam();
    eval.arg("eval").arg(example.path("int4")).args(["--text", &text, "--context", "64", "--json", "--quiet"]);
    let measured = expect_exit(eval.args(["--reference", &source()]), 0);
    std::fs::write(example.path("int4 on a page.json"), &measured.stdout).unwrap();
    let arguments = ["--evaluation", "int4 on a page.json", "--text", &text, "--context", "64", "--source", &source()];
    let report = example.json("int4", &arguments);
    let rows = report["evaluations"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["int4 on a page", "tiny-llama", "int4"]);
    let measured = json(&measured);
    for key in ["perplexity", "mean_kl_divergence", "top1_agreement", "tokens", "text"] {
        assert_eq!(rows[0][key], measured[key], "{key}");
        assert_eq!(rows[2][key], measured[key], "{key}");
    }
    assert!(rows[1]["perplexity"].as_f64() < rows[2]["perplexity"].as_f64() && rows[1]["mean_kl_divergence"].is_null());
    let page = example.html("int4", &arguments);
    assert!(page.contains(&format!("{:.4} ± ", measured["perplexity"].as_f64().unwrap())));
    // Something else than an evaluation.
    std::fs::write(example.path("other.json"), "{\"schema\": \"bantam.check/1\"}").unwrap();
    let output = example.report("int4", &["--evaluation", "other.json"], 2);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("`bantam.check/1`, expected `bantam.eval/1`") && message.contains("hint:"), "{message}");
}

/// The front matter's keys with their values as written, and lists.
fn front_matter(card: &str) -> BTreeMap<String, String> {
    let (head, _) = card.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap();
    let mut keys: BTreeMap<String, String> = BTreeMap::new();
    let mut last = String::new();
    for line in head.lines() {
        if let Some(item) = line.strip_prefix("- ") {
            let list = keys.get_mut(&last).unwrap();
            *list = format!("{list}{} ", item.trim_matches('"'));
        } else {
            let (key, value) = line.split_once(':').unwrap();
            let path = if key.starts_with("  ") { format!("quantization.{}", key.trim()) } else { key.to_owned() };
            assert!(keys.insert(path.clone(), value.trim().trim_matches('"').to_owned()).is_none(), "{path} twice");
            last = path;
        }
    }
    keys
}

#[test]
fn a_card_is_written_listed_and_kept_when_it_is_not_ours() {
    let example = Example::new(&["int4"]);
    let readme = example.path("int4/README.md");
    let verify = |code| expect_exit(bantam().arg("verify").arg(example.path("int4")), code);
    let original = example.path("original");
    std::fs::create_dir(&original).unwrap();
    for file in std::fs::read_dir(fixture("tiny-llama")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), original.join(file.file_name())).unwrap();
    }
    std::fs::write(original.join("README.md"), "---\nlicense: apache-2.0\ntags: [x]\n---\n# Original\n").unwrap();
    let arguments = ["--card", "--base-model", "some/tiny-llama", "--source", "original"];
    example.report("int4", &arguments, 0);
    let card = std::fs::read_to_string(&readme).unwrap();
    let keys = front_matter(&card);
    assert_eq!(keys["base_model"], "some/tiny-llama");
    assert_eq!(keys["library_name"], "transformers");
    assert_eq!((keys["license"].as_str(), keys["tags"].as_str()), ("apache-2.0", "bantam compressed-tensors rtn "));
    assert_eq!(
        (keys["quantization.layout"].as_str(), keys["quantization.bits_per_weight"].as_str()),
        ("compressed-tensors", "4.1261")
    );
    assert_eq!(assert_tables(&card), 2);
    verify(0);
    // Ours is replaced with the same bytes; licence and all come from it where the source is gone.
    example.report("int4", &["--card", "--base-model", "some/tiny-llama"], 0);
    assert_eq!(std::fs::read_to_string(&readme).unwrap(), card);
    verify(0);
    // One that was changed is kept, unless it is to be replaced.
    std::fs::write(&readme, format!("{card}mine")).unwrap();
    let output = example.report("int4", &arguments, 4);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--force"));
    assert!(std::fs::read_to_string(&readme).unwrap().ends_with("mine"));
    verify(1);
    example.report("int4", &[&arguments[..], &["--force"]].concat(), 0);
    assert_eq!(std::fs::read_to_string(&readme).unwrap(), card);
    verify(0);
    // A foreign one, listed or not.
    std::fs::write(&readme, "# Mine\n").unwrap();
    example.report("int4", &arguments, 4);
}

#[test]
fn mistakes_are_told() {
    let example = Example::new(&["int4"]);
    let told = |output: std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let message = told(expect_exit(bantam().arg("report").arg(fixture("tiny-llama")), 3));
    assert!(message.contains("has no manifest.json") && message.contains("bantam inspect"), "{message}");
    let message = told(example.report("int4", &["--out", "report.pdf"], 2));
    assert!(message.contains(".html, .md or .json"), "{message}");
    assert!(!Path::new(&example.path("report.pdf")).exists());
    let message = told(example.report("int4", &["--tensor", "model.layers.0.mlp.upp", "--source", &source()], 2));
    assert!(message.contains("matches no tensor"), "{message}");
    let message = told(example.report("int4", &["--out", "no/such/folder/report.html"], 4));
    assert!(message.contains("cannot write"), "{message}");
    // Without the source the report says so.
    std::fs::remove_file(example.path("int4/run.json")).unwrap();
    let report = example.json("int4", &[]);
    let notes = &report["histograms"]["notes"];
    assert!(notes[0].as_str().unwrap().contains("--source DIR"), "{notes}");
    // Of another source no tensor is shown.
    let other = example.path("other");
    common::write_model(&other, common::SMALL);
    let report = example.json("int4", &["--source", "other"]);
    assert_eq!(
        (
            report["histograms"]["tensors"].as_array().unwrap().len(),
            report["histograms"]["notes"].as_array().unwrap().len()
        ),
        (0, 3)
    );
    // Into the artifact: with a warning, for `verify` would complain.
    let mut command = bantam();
    command.arg("report").arg(example.path("int4")).arg("--out").arg(example.path("int4/report.html"));
    assert!(told(expect_exit(&mut command, 0)).contains("not in its manifest"));
}

/// The card says how its runtime opens the artifact, or that none does.
#[test]
fn a_card_says_how_to_load_the_artifact() {
    let example = Example::new(&["gguf-q8_0", "bantam-3bit"]);
    for (artifact, line) in [("gguf-q8_0", "gguf_file=\"model.gguf\""), ("bantam-3bit", "bantam decode ARTIFACT")] {
        example.report(artifact, &["--card"], 0);
        let card = std::fs::read_to_string(example.path(artifact).join("README.md")).unwrap();
        assert!(card.contains(line), "{card}");
    }
}
