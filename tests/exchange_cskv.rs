//! CSKV's pair of files through the binary: out of an artifact, back into one, and what does not have their form.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::{Path, PathBuf};

use bantam::torch_file;
use common::{bantam, expect_exit, fixture};
use safetensors::SafeTensors;

fn model() -> PathBuf {
    fixture("tiny-llama")
}

fn artifact(folder: &Path, name: &str, settings: &str) -> PathBuf {
    std::fs::copy(fixture("text").join("recipe.txt"), folder.join("text.txt")).unwrap();
    let (recipe, out) = (folder.join(format!("{name}.toml")), folder.join(name));
    let text = format!(
        "schema = 1\n[calibration]\ntext = [\"text.txt\"]\nsequences = 4\nsequence_length = 64\n[[pass]]\n\
         use = \"lowrank_kv\"\n{settings}\n[artifact]\nlayout = \"bantam\"\n"
    );
    std::fs::write(&recipe, text).unwrap();
    let mut command = bantam();
    command.args(["run", "--quiet"]).arg(&recipe).arg("--model").arg(model()).arg("--out").arg(&out);
    expect_exit(&mut command, 0);
    out
}

fn export(artifact: &Path, out: &Path) -> std::process::Command {
    let mut command = bantam();
    command.arg("export").arg(artifact).arg("--out").arg(out);
    command
}

#[test]
fn a_pair_comes_back_as_it_went() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let first = artifact(folder.path(), "first", "window = 32");
    expect_exit(&mut export(&first, &path("pair")), 0);
    let stored = std::fs::read(first.join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&stored).unwrap();
    for (file, letter) in [("pair_k.ckpt", "k"), ("pair_v.ckpt", "v")] {
        let bytes = std::fs::read(path(file)).unwrap();
        let layers = torch_file::read_pairs(&bytes).unwrap();
        for (layer, pair) in layers.iter().enumerate() {
            for (dictionary, part) in pair.iter().zip(["a", "b"]) {
                let name = format!("model.layers.{layer}.self_attn.{letter}_proj_{part}.weight");
                let tensor = stored.tensor(&name).unwrap();
                assert_eq!(dictionary.keys().collect::<Vec<_>>(), ["weight"]);
                assert_eq!(dictionary["weight"].shape, tensor.shape(), "{name}");
                assert!(dictionary["weight"].bytes == tensor.data(), "{name}");
            }
        }
    }
    // A second time nothing is overwritten.
    assert!(!export(&first, &path("pair")).output().unwrap().status.success());
    for layout in ["bantam", "remote-code"] {
        let mut command = bantam();
        command.args(["import", "--layout", layout]).arg(path("pair_v.ckpt")).arg("--base").arg(model());
        expect_exit(command.arg("--out").arg(path(layout)), 0);
        expect_exit(bantam().arg("verify").arg(path(layout)), 0);
        let again = std::fs::read(path(layout).join("model.safetensors")).unwrap();
        let again = SafeTensors::deserialize(&again).unwrap();
        assert_eq!(again.names().len(), stored.names().len());
        for (name, tensor) in again.tensors() {
            assert_eq!(tensor.data(), stored.tensor(&name).unwrap().data(), "{name}");
        }
        let name = format!("from-{layout}");
        expect_exit(&mut export(&path(layout), &path(&name)), 0);
        for side in ["k", "v"] {
            let [before, after] =
                ["pair", &name].map(|stem| std::fs::read(path(&format!("{stem}_{side}.ckpt"))).unwrap());
            assert!(before == after, "{layout} {side}");
        }
    }
}

#[test]
fn what_cskv_cannot_hold_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (name, settings, problem) in [
        ("grouped", "group_heads = 1", "groups of heads"),
        (
            "some",
            "select = [\"model.layers.1.self_attn.k_proj\", \"model.layers.1.self_attn.v_proj\"]",
            "is not stored in factors",
        ),
    ] {
        let artifact = artifact(folder.path(), name, settings);
        let output = export(&artifact, &folder.path().join(format!("{name}-pair"))).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(problem), "{error}");
        assert!(!folder.path().join(format!("{name}-pair_k.ckpt")).exists());
    }
    // A pair of another model.
    let (bytes, shape) = ([0_u8; 32], vec![2, 4]);
    let tensor = torch_file::TorchTensor { dtype: bantam::checkpoint::Dtype::F32, shape, bytes: &bytes };
    let one = || torch_file::Dictionary::from([("weight".to_owned(), tensor.clone())]);
    for (layers, problem) in [(1, "holds 1 layers"), (4, "has factors [2, 4] and [2, 4]")] {
        let pairs: Vec<_> = (0..layers).map(|_| [one(), one()]).collect();
        for side in ["k", "v"] {
            let path = folder.path().join(format!("wrong_{side}.ckpt"));
            std::fs::write(path, torch_file::write_pairs(Vec::new(), &pairs).unwrap()).unwrap();
        }
        let mut command = bantam();
        command.arg("import").arg(folder.path().join("wrong_k.ckpt")).arg("--base").arg(model());
        let output = command.arg("--out").arg(folder.path().join("wrong")).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(problem), "{error}");
        assert!(!folder.path().join("wrong").exists());
    }
}
