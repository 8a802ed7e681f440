//! Every form of a checkpoint's folder, and every way in which one can be wrong.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use bantam::checkpoint::{Checkpoint, Dtype, write_file};
use tempfile::TempDir;

use crate::{refusal, write_tensor};

const INDEX: &str = "model.safetensors.index.json";

/// A folder with two shards of one tensor each, and an index with this map.
fn sharded(weight_map: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_tensor(&folder.path().join("model-00001-of-00002.safetensors"), "a");
    write_tensor(&folder.path().join("model-00002-of-00002.safetensors"), "b");
    fs::write(folder.path().join(INDEX), format!("{{\"metadata\":{{}},\"weight_map\":{weight_map}}}")).unwrap();
    folder
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.tensors().map(|tensor| tensor.name.as_str()).collect()
}

fn file_names(paths: &[PathBuf]) -> Vec<&OsStr> {
    paths.iter().filter_map(|path| path.file_name()).collect()
}

/// A hub cache's folder of one model: `snapshots/REVISION` of links into `blobs`.
fn hub_cache() -> (TempDir, PathBuf) {
    let cache = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/0123abcd"));
    fs::create_dir(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    write_tensor(&blobs.join("aaaa"), "w");
    fs::write(blobs.join("bbbb"), "{\"model_type\":\"llama\"}").unwrap();
    fs::write(blobs.join("cccc"), "{}").unwrap();
    for (name, blob) in [("model.safetensors", "aaaa"), ("config.json", "bbbb"), ("tokenizer.json", "cccc")] {
        symlink(Path::new("../../blobs").join(blob), snapshot.join(name)).unwrap();
    }
    (cache, snapshot)
}

#[test]
fn shards_with_an_index() {
    let folder = sharded("{\"b\":\"model-00002-of-00002.safetensors\",\"a\":\"model-00001-of-00002.safetensors\"}");
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(names(&checkpoint), ["a", "b"]);
    assert_eq!(checkpoint.files().len(), 2);
    assert_eq!(checkpoint.bytes(checkpoint.tensor("b").unwrap()), [1_u8, 2]);
}

#[test]
fn shards_without_an_index() {
    let folder = tempfile::tempdir().unwrap();
    write_tensor(&folder.path().join("part-b.safetensors"), "b");
    write_tensor(&folder.path().join("part-a.safetensors"), "a");
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(names(&checkpoint), ["a", "b"]);
    write_tensor(&folder.path().join("part-c.safetensors"), "b");
    assert_variant!(refusal(folder.path(), &["`b`", "part-b.safetensors", "part-c.safetensors"]), DuplicateAcrossFiles);
}

#[test]
fn a_missing_shard_shows_without_an_index_too() {
    let folder = tempfile::tempdir().unwrap();
    for number in [1, 3] {
        let name = format!("model-0000{number}-of-00003.safetensors");
        write_tensor(&folder.path().join(name), &format!("tensor{number}"));
    }
    assert_variant!(
        refusal(folder.path(), &["2 of the 3", "`model-00002-of-00003.safetensors` is missing"]),
        ShardMissing
    );
    write_tensor(&folder.path().join("model-00002-of-00003.safetensors"), "tensor2");
    assert_eq!(Checkpoint::open(folder.path()).unwrap().files().len(), 3);

    let folder = tempfile::tempdir().unwrap();
    write_tensor(&folder.path().join("x-00000000000000001-of-99999999999999999.safetensors"), "w");
    assert_variant!(refusal(folder.path(), &["1 of the 99999999999999999"]), ShardMissing);
}

#[test]
fn one_file_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    write_tensor(&folder.path().join("some.safetensors"), "w");
    fs::write(folder.path().join("letter.txt"), "private").unwrap();
    let checkpoint = Checkpoint::open(&folder.path().join("some.safetensors")).unwrap();
    assert_eq!(names(&checkpoint), ["w"]);
    assert_eq!(checkpoint.root(), folder.path());
    assert!(checkpoint.companions().is_empty(), "a lone file's neighbours are not the model's");
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    let checkpoint = Checkpoint::open(&folder.path().join("some.safetensors")).unwrap();
    assert!(checkpoint.config().is_some());
    assert_eq!(file_names(checkpoint.companions()), ["letter.txt"]);
    // The user's own link is followed; only what a folder brings along is confined to it.
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(folder.path().join("some.safetensors"), elsewhere.path().join("link.safetensors")).unwrap();
    assert_eq!(names(&Checkpoint::open(&elsewhere.path().join("link.safetensors")).unwrap()), ["w"]);
}

#[test]
fn a_hub_cache_snapshot() {
    let (cache, snapshot) = hub_cache();
    let checkpoint = Checkpoint::open(&snapshot).unwrap();
    assert_eq!(names(&checkpoint), ["w"]);
    assert_eq!(checkpoint.config().unwrap().value["model_type"], "llama");
    assert_eq!(file_names(checkpoint.companions()), ["tokenizer.json"]);
    // The same through a link to the snapshot.
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(&snapshot, elsewhere.path().join("model")).unwrap();
    assert_eq!(names(&Checkpoint::open(&elsewhere.path().join("model")).unwrap()), ["w"]);
    // A blob that is a link itself must stay in the cache; so must everything that is not a blob.
    fs::write(cache.path().join("secret"), "x").unwrap();
    symlink("../../secret", snapshot.join("notes.txt")).unwrap();
    assert_variant!(refusal(&snapshot, &["notes.txt", "secret"]), LinkOutside);
    fs::remove_file(snapshot.join("notes.txt")).unwrap();
    symlink("../secret", cache.path().join("blobs/dddd")).unwrap();
    symlink("../../blobs/dddd", snapshot.join("notes.txt")).unwrap();
    assert_variant!(refusal(&snapshot, &["notes.txt", "secret"]), LinkOutside);
}

#[test]
fn blobs_of_a_snapshot_that_are_elsewhere() {
    let (cache, snapshot) = hub_cache();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::rename(cache.path().join("blobs"), elsewhere.path().join("blobs")).unwrap();
    symlink(elsewhere.path().join("blobs"), cache.path().join("blobs")).unwrap();
    assert_variant!(refusal(&snapshot, &["model.safetensors"]), LinkOutside);
}

#[test]
fn links_out_of_the_folder() {
    let outside = tempfile::tempdir().unwrap();
    write_tensor(&outside.path().join("x.safetensors"), "w");
    fs::write(outside.path().join("x.json"), "{}").unwrap();
    for (name, target) in [
        ("model.safetensors", "x.safetensors"),
        ("other.safetensors", "x.safetensors"),
        (INDEX, "x.json"),
        ("config.json", "x.json"),
        ("tokenizer.json", "x.json"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        if target == "x.json" {
            write_tensor(&folder.path().join("model.safetensors"), "w");
        }
        symlink(outside.path().join(target), folder.path().join(name)).unwrap();
        let error = refusal(folder.path(), &[name, target]);
        assert!(error.hint().is_some());
        assert_variant!(error, LinkOutside);
        fs::remove_file(folder.path().join(name)).unwrap();
        symlink("nowhere", folder.path().join(name)).unwrap();
        assert_variant!(refusal(folder.path(), &[name, "nowhere"]), LinkBroken);
    }
    let folder = sharded("{\"a\":\"model-00001-of-00002.safetensors\",\"w\":\"link.safetensors\"}");
    symlink(outside.path().join("x.safetensors"), folder.path().join("link.safetensors")).unwrap();
    assert_variant!(refusal(folder.path(), &["link.safetensors", "x.safetensors"]), LinkOutside);
}

#[test]
fn links_inside_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    write_tensor(&folder.path().join("data/x"), "w");
    symlink("data/x", folder.path().join("model.safetensors")).unwrap();
    assert_eq!(names(&Checkpoint::open(folder.path()).unwrap()), ["w"]);
}

#[test]
fn an_index_that_names_files_outside() {
    for file in ["../x.safetensors", "/tmp/x.safetensors", "a/../../x.safetensors", "./x.safetensors", "", ".."] {
        let folder = sharded(&format!("{{\"a\":\"{file}\"}}"));
        assert_variant!(refusal(folder.path(), &["`a`", &format!("`{file}`"), INDEX]), IndexedFileOutside);
    }
}

#[test]
fn an_index_that_disagrees_with_the_files() {
    let missing = sharded("{\"a\":\"model-00001-of-00002.safetensors\",\"b\":\"gone.safetensors\"}");
    assert_variant!(refusal(missing.path(), &["`b`", "`gone.safetensors`", INDEX]), IndexedFileMissing);
    let swapped = sharded("{\"a\":\"model-00002-of-00002.safetensors\",\"b\":\"model-00001-of-00002.safetensors\"}");
    assert_variant!(refusal(swapped.path(), &["`a`", "model-00002", INDEX]), IndexedTensorMissing);
    let more = sharded(
        "{\"a\":\"model-00001-of-00002.safetensors\",\"b\":\"model-00002-of-00002.safetensors\",\
         \"c\":\"model-00002-of-00002.safetensors\"}",
    );
    assert_variant!(refusal(more.path(), &["`c`", "model-00002", INDEX]), IndexedTensorMissing);
    let less = sharded("{\"a\":\"model-00001-of-00002.safetensors\"}");
    assert_eq!(names(&Checkpoint::open(less.path()).unwrap()), ["a"], "a file that the index never names is not read");
    write_file(
        &less.path().join("model-00001-of-00002.safetensors"),
        &[("a", Dtype::U8, vec![1], vec![1]), ("z", Dtype::U8, vec![1], vec![1])],
    )
    .unwrap();
    assert_variant!(refusal(less.path(), &["`z`", "model-00001", INDEX]), NotIndexed);
    let nested = sharded("{\"a\":\"model-00001-of-00002.safetensors\",\"w\":\"sub/x.safetensors\"}");
    fs::create_dir(nested.path().join("sub")).unwrap();
    write_tensor(&nested.path().join("sub/x.safetensors"), "w");
    assert_eq!(names(&Checkpoint::open(nested.path()).unwrap()), ["a", "w"]);
}

#[test]
fn an_index_of_the_wrong_form() {
    let refuse = |text: &str, parts: &[&str]| {
        let folder = sharded("{}");
        fs::write(folder.path().join(INDEX), text).unwrap();
        refusal(folder.path(), &[parts, &[INDEX]].concat())
    };
    assert_variant!(refuse("", &["EOF"]), Json);
    assert_variant!(refuse("[]", &["sequence", "weight_map"]), Json);
    assert_variant!(refuse("{}", &["missing field `weight_map`"]), Json);
    assert_variant!(refuse("{\"weight_map\":{}}", &["no tensor"]), Json);
    assert_variant!(refuse("{\"weight_map\":{\"a\":7}}", &["7", "string"]), Json);
    assert_variant!(refuse("{\"weight_map\":{\"a\":\"x.safetensors\"}} x", &["trailing"]), Json);
    assert_variant!(refuse("{\"weight_map\":{\"a\":\"x\",\"a\":\"y\"}}", &["`a`", "twice"]), JsonKeyTwice);
    assert_variant!(refuse("{\"weight_map\":{},\"weight_map\":{}}", &["`weight_map`", "twice"]), JsonKeyTwice);
    assert_variant!(refuse("{\"metadata\":{},\"metadata\":{}}", &["`metadata`", "twice"]), JsonKeyTwice);
    let pickled = refuse("{\"weight_map\":{\"a\":\"pytorch_model-00001-of-00002.bin\"}}", &["`a`", ".bin"]);
    assert!(pickled.hint().is_some_and(|hint| hint.contains("save_pretrained")));
    assert_variant!(pickled, IndexedFileFormat);
}

#[test]
fn one_file_and_an_index_in_one_folder() {
    // As transformers does, one file goes first; an index that agrees or is merely left over does no harm.
    let folder = sharded("{\"w\":\"model.safetensors\"}");
    write_tensor(&folder.path().join("model.safetensors"), "w");
    assert_eq!(names(&Checkpoint::open(folder.path()).unwrap()), ["w"]);
    fs::write(folder.path().join(INDEX), "{\"weight_map\":{\"a\":\"gone.safetensors\"}}").unwrap();
    assert_eq!(names(&Checkpoint::open(folder.path()).unwrap()), ["w"]);
    fs::write(folder.path().join(INDEX), "{\"weight_map\":{\"a\":\"model-00001-of-00002.safetensors\"}}").unwrap();
    assert_variant!(refusal(folder.path(), &["model.safetensors", "model-00001-of-00002.safetensors"]), Ambiguous);
}

#[test]
fn pickles_and_nothing() {
    let folder = tempfile::tempdir().unwrap();
    assert_variant!(refusal(folder.path(), &["no weights", "model.safetensors"]), NoWeights);
    fs::write(folder.path().join("model.onnx"), "ONNX").unwrap();
    assert_variant!(refusal(folder.path(), &["no weights"]), NoWeights);
    let truncated = tempfile::tempdir().unwrap();
    fs::write(truncated.path().join("model.gguf"), "GGUF").unwrap();
    assert_variant!(refusal(truncated.path(), &["model.gguf", "truncated"]), Gguf);
    for name in ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(name), "PK").unwrap();
        let error = refusal(folder.path(), &[name, "pickle"]);
        assert!(error.hint().is_some_and(|hint| hint.contains("save_pretrained")), "says how to convert");
        assert_variant!(error, Pickle);
    }
    fs::write(folder.path().join("pytorch_model.bin"), "PK").unwrap();
    assert_variant!(refusal(&folder.path().join("pytorch_model.bin"), &["pytorch_model.bin"]), Pickle);
    assert_variant!(refusal(&folder.path().join("model.onnx"), &["model.onnx", ".safetensors"]), NotSafetensors);
    assert_variant!(refusal(&folder.path().join("gone"), &["gone"]), Missing);
    write_file(&folder.path().join("model.safetensors"), &[]).unwrap();
    assert_variant!(refusal(folder.path(), &["no tensor"]), NoTensors);
}

#[test]
fn things_that_are_not_files() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    assert_variant!(refusal(folder.path(), &["model.safetensors", "not a regular file"]), NotAFile);
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("model.safetensors");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert_variant!(refusal(folder.path(), &["model.safetensors", "not a regular file"]), NotAFile);
    fs::remove_file(&pipe).unwrap();
    write_tensor(&pipe, "w");
    assert!(std::process::Command::new("mkfifo").arg(folder.path().join("tokenizer.json")).status().unwrap().success());
    assert!(Checkpoint::open(folder.path()).unwrap().companions().is_empty(), "a pipe is passed over, not read");
}

#[test]
fn configurations() {
    let folder = tempfile::tempdir().unwrap();
    write_tensor(&folder.path().join("model.safetensors"), "w");
    assert!(Checkpoint::open(folder.path()).unwrap().config().is_none());
    let path = folder.path().join("config.json");
    let text = "{ \"b\": 1,\n\t\"a\": [1.0] }\n";
    fs::write(&path, text).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.config().unwrap().text, text);
    assert_eq!(checkpoint.config().unwrap().value, serde_json::json!({"a": [1.0], "b": 1}));
    let refuse = |text: &[u8], parts: &[&str]| {
        fs::write(&path, text).unwrap();
        refusal(folder.path(), &[parts, &["config.json"]].concat())
    };
    assert_variant!(refuse(b"", &["EOF"]), Json);
    assert_variant!(refuse(b"[1]", &["sequence", "object"]), Json);
    assert_variant!(refuse(b"{\"a\":\"\xff\"}", &["not UTF-8 at byte 6"]), Json);
    assert_variant!(refuse(b"{\"a\":1,\"b\":2,\"a\":3}", &["`a`", "twice"]), JsonKeyTwice);
    let file = fs::File::create(&path).unwrap();
    file.set_len((64 << 20) + 1).unwrap();
    assert_variant!(refusal(folder.path(), &["config.json", "67108865", "67108864"]), TooLarge);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_variant!(refusal(folder.path(), &["config.json", "not a regular file"]), NotAFile);
}

#[test]
fn companions_are_the_small_files() {
    let folder = tempfile::tempdir().unwrap();
    write_tensor(&folder.path().join("model.safetensors"), "w");
    let carried = [
        "LICENSE",
        "README.md",
        "added_tokens.json",
        "chat_template.jinja",
        "generation_config.json",
        "modeling_custom.py",
        "tokenizer.json",
        "tokenizer.model",
        "vocab.txt",
    ];
    let left = [
        ".gitattributes",
        "adapter.safetensors",
        "config.json",
        "hf_quant_config.json",
        "manifest.json",
        "model.BIN",
        "model.gguf",
        "model.h5",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "quantize_config.json",
        "run.json",
        "training_args.bin",
    ];
    for name in carried.iter().chain(&left) {
        fs::write(folder.path().join(name), "{}").unwrap();
    }
    fs::create_dir(folder.path().join("onnx")).unwrap();
    fs::write(folder.path().join("onnx/tokenizer.json"), "{}").unwrap();
    fs::File::create(folder.path().join("large.txt")).unwrap().set_len((256 << 20) + 1).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(file_names(checkpoint.companions()), carried);
    assert!(checkpoint.companions().iter().all(|path| path.is_file()));
}
