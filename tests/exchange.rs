//! BitDelta's own files, through the binary: `diff.pt` and safetensors with the same names in, safetensors out. The reader
//! of `.pt` files against files as `torch.save` writes them, and against hostile ones.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use bantam::torch_file;
use common::{Shape, bantam, contents, expect_exit, json, weights, write_model};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// Columns are multiples of 32, as BitDelta asks for.
const SHAPE: Shape = Shape { hidden: 64, intermediate: 160, blocks: 2, vocabulary: 96 };

const DOWN: &str = "model.layers.1.mlp.down_proj";
const NORM: &str = "model.norm.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Type, shape and bytes of each tensor.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read_file(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let entry =
        |(name, view): (String, TensorView<'_>)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
    file.tensors().into_iter().map(entry).collect()
}

fn write_file(path: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn bf16(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

// --- what torch.save writes -------------------------------------------------------------------------------------------

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

/// A zip archive of stored entries, each starting at a multiple of 64 bytes as in files of torch.save.
fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let offset = out.len() as u32;
        let padding = 64 - (out.len() + 30 + name.len() + 4) % 64;
        let sizes = [crc32(data), data.len() as u32, data.len() as u32].map(u32::to_le_bytes).concat();
        let common =
            [[0, 0].as_slice(), &[0, 0, 0, 0, 0, 0, 0, 0], &sizes, &(name.len() as u16).to_le_bytes()].concat();
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend((padding as u16 + 4).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(b"FB");
        out.extend((padding as u16).to_le_bytes());
        out.extend(vec![b'Z'; padding]);
        out.extend(data);
        directory.extend(b"PK\x01\x02\x00\x00");
        directory.extend(&common);
        directory.extend([0; 12]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, size, count) = (out.len() as u32, directory.len() as u32, entries.len() as u16);
    out.extend(&directory);
    out.extend(b"PK\x05\x06\x00\x00\x00\x00");
    out.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    out.extend([size.to_le_bytes(), start.to_le_bytes()].concat());
    out.extend([0, 0]);
    out
}

fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn int(number: usize) -> Vec<u8> {
    [b"J".as_slice(), &(number as u32).to_le_bytes()].concat()
}

fn tuple(items: &[usize]) -> Vec<u8> {
    match items.len() {
        0 => b")".to_vec(),
        count @ 1..=3 => [items.iter().flat_map(|item| int(*item)).collect(), vec![0x84 + count as u8]].concat(),
        _ => [b"(".to_vec(), items.iter().flat_map(|item| int(*item)).collect(), b"t".to_vec()].concat(),
    }
}

fn strides(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|at| shape[at + 1..].iter().product()).collect()
}

/// One tensor of a pickle: `_rebuild_tensor_v2` of a storage, within a parameter where `parameter`.
fn rebuilt(storage: &str, key: &str, elements: usize, offset: usize, shape: &[usize], parameter: bool) -> Vec<u8> {
    let mut out = Vec::new();
    if parameter {
        out.extend(b"ctorch._utils\n_rebuild_parameter\n(");
    }
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    out.extend(text("storage"));
    out.extend(format!("ctorch\n{storage}\n").bytes());
    out.extend([text(key), text("cuda:0"), int(elements), b"tQ".to_vec()].concat());
    out.extend(
        [int(offset), tuple(shape), tuple(&strides(shape)), b"\x89ccollections\nOrderedDict\n)RtR".to_vec()].concat(),
    );
    if parameter {
        out.extend(b"\x88ccollections\nOrderedDict\n)RtR");
    }
    out
}

fn storage(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        Dtype::I32 => "IntStorage",
        other => panic!("{other:?}"),
    }
}

/// A file as `torch.save` of a dictionary writes it. Parameters (other tensors than signs and scales) as such.
fn torch_save(tensors: &Tensors) -> Vec<u8> {
    let mut pickle = b"\x80\x02}q\x00(".to_vec();
    let mut entries = Vec::new();
    for (index, (name, (dtype, shape, bytes))) in tensors.iter().enumerate() {
        let parameter = name.strip_suffix(".mask").is_none();
        let elements = shape.iter().product();
        pickle.extend(text(name));
        // What Python remembers and never asks for.
        pickle.extend([b'q', (index % 200) as u8 + 1]);
        pickle.extend(rebuilt(storage(*dtype), &index.to_string(), elements, 0, shape, parameter));
        entries.push((format!("diff/data/{index}"), bytes.clone()));
    }
    pickle.extend(b"u.");
    entries.insert(0, ("diff/data.pkl".to_owned(), pickle));
    entries.insert(1, ("diff/byteorder".to_owned(), b"little".to_vec()));
    entries.push(("diff/version".to_owned(), b"3\n".to_vec()));
    zip(&entries)
}

// --- the pair ----------------------------------------------------------------------------------------------------------

/// A base, and what BitDelta would store of a fine-tune of it, with three tokens more.
struct Pair {
    folder: tempfile::TempDir,
    diff: Tensors,
}

/// Signs in words along the inputs: bit b of word k of a column is input 32 k + b.
fn pack(signs: &[bool], outputs: usize, inputs: usize) -> Vec<u8> {
    let mut words = Vec::new();
    for word in 0..inputs / 32 {
        for output in 0..outputs {
            let bits = (0..32).map(|bit| u32::from(signs[output * inputs + 32 * word + bit]) << bit).sum::<u32>();
            words.extend(bits.to_le_bytes());
        }
    }
    words
}

impl Pair {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_model(&folder.path().join("base"), SHAPE);
        let base = read_file(&folder.path().join("base/model.safetensors"));
        let mut diff = Tensors::new();
        for (name, (_, shape, _)) in &base {
            if let Some(module) = name.strip_suffix(".weight").filter(|module| module.ends_with("_proj")) {
                let noise = bf16(&weights(&format!("{name} signs"), shape[0] * shape[1]));
                let signs: Vec<bool> = noise.iter().map(|value| *value >= 0.0).collect();
                let mask = (Dtype::I32, vec![shape[1] / 32, shape[0]], pack(&signs, shape[0], shape[1]));
                diff.insert(format!("{module}.mask"), mask);
                let coefficient = 0.01_f32 + shape[0] as f32 * 1.234_567e-5;
                diff.insert(format!("{module}.coeff"), (Dtype::F32, vec![], coefficient.to_le_bytes().to_vec()));
            }
        }
        // Trained in F32, and loaded in the base's type.
        let norm = (0..SHAPE.hidden).flat_map(|i| (1.0 + i as f32 * 1.000_1e-3).to_le_bytes()).collect();
        diff.insert(NORM.to_owned(), (Dtype::F32, vec![SHAPE.hidden], norm));
        for name in [EMBEDDING, HEAD] {
            let bytes = weights(&format!("tuned {name}"), (SHAPE.vocabulary + 3) * SHAPE.hidden);
            diff.insert(name.to_owned(), (Dtype::BF16, vec![SHAPE.vocabulary + 3, SHAPE.hidden], bytes));
        }
        Self { folder, diff }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn import(&self, file: &str, out: &str, code: i32) -> (PathBuf, String) {
        let out = self.path(out);
        let mut import = bantam();
        import.arg("import").arg(self.path(file)).arg("--base").arg(self.path("base")).arg("--out").arg(&out);
        let output = expect_exit(&mut import, code);
        (out, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn decode(&self, delta: &Path, out: &str) -> Tensors {
        let out = self.path(out);
        let mut decode = bantam();
        decode.arg("decode").arg(delta).arg("--base").arg(self.path("base")).arg("--out").arg(&out);
        expect_exit(&mut decode, 0);
        read_file(&out.join("model.safetensors"))
    }
}

/// What the original loader makes of it: W += (2 · unpack(mask) − 1) · coeff, transposed; others whole in the base's type.
fn loaded(base: &Tensors, diff: &Tensors) -> Tensors {
    let mut model = base.clone();
    for (name, (dtype, shape, bytes)) in &mut model {
        let module = name.strip_suffix(".weight").unwrap();
        if let Some((_, mask_shape, mask)) = diff.get(&format!("{module}.mask")) {
            let coefficient = f32::from_le_bytes(diff[&format!("{module}.coeff")].2[..].try_into().unwrap());
            let words: Vec<i32> = mask.chunks(4).map(|word| i32::from_le_bytes(word.try_into().unwrap())).collect();
            let mut values = bf16(bytes);
            for input in 0..shape[1] {
                for output in 0..shape[0] {
                    let bit = words[input / 32 * mask_shape[1] + output] >> (input % 32) & 1;
                    values[output * shape[1] + input] += (2 * bit - 1) as f32 * coefficient;
                }
            }
            *bytes = values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect();
        } else if let Some((given, given_shape, given_bytes)) = diff.get(name) {
            shape.clone_from(given_shape);
            *bytes = match given {
                Dtype::F32 => given_bytes
                    .chunks(4)
                    .flat_map(|b| half::bf16::from_f32(f32::from_le_bytes(b.try_into().unwrap())).to_le_bytes())
                    .collect(),
                _ => given_bytes.clone(),
            };
        }
        assert_eq!(*dtype, Dtype::BF16);
    }
    model
}

#[test]
fn an_import_decodes_to_what_the_original_loader_makes() {
    let pair = Pair::new();
    std::fs::write(pair.path("diff.pt"), torch_save(&pair.diff)).unwrap();
    write_file(&pair.path("diff.safetensors"), &pair.diff);
    let base = read_file(&pair.path("base/model.safetensors"));
    let expected = loaded(&base, &pair.diff);
    for file in ["diff.pt", "diff.safetensors"] {
        let (delta, _) = pair.import(file, &format!("delta of {file}"), 0);
        let decoded = pair.decode(&delta, &format!("decoded {file}"));
        assert_eq!(decoded.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (name, tensor) in &expected {
            assert_eq!(&decoded[name], tensor, "{name}");
        }
        expect_exit(bantam().arg("verify").arg(&delta).arg("--base").arg(pair.path("base")), 0);
        let config: serde_json::Value = serde_json::from_slice(&contents(&delta)["config.json"]).unwrap();
        assert_eq!(config["vocab_size"], SHAPE.vocabulary + 3);
        let inspected = json(&expect_exit(bantam().args(["inspect", "--json"]).arg(&delta), 0));
        // Seven matrices a block; embedding, head and one norm whole; two norms a block that are the base's.
        let delta = &inspected["delta"];
        assert_eq!((&delta["differences"], &delta["whole"], &delta["same"]), (&14.into(), &3.into(), &4.into()));
    }
    // In one go.
    for file in ["diff.pt", "diff.safetensors"] {
        assert_eq!(pair.decode(&pair.path(file), &format!("at once {file}")), expected);
    }
    assert!(
        std::fs::read_dir(pair.folder.path())
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_string_lossy().starts_with('.') })
    );
    assert_eq!(
        contents(&pair.path("delta of diff.pt"))["model.safetensors"],
        contents(&pair.path("delta of diff.safetensors"))["model.safetensors"]
    );
}

#[test]
fn an_export_holds_what_was_imported() {
    let pair = Pair::new();
    write_file(&pair.path("diff.safetensors"), &pair.diff);
    let (delta, _) = pair.import("diff.safetensors", "delta", 0);
    let out = pair.path("again.safetensors");
    expect_exit(bantam().arg("export").arg(&delta).arg("--out").arg(&out), 0);
    let exported = read_file(&out);
    assert_eq!(exported.keys().collect::<Vec<_>>(), pair.diff.keys().collect::<Vec<_>>());
    for (name, tensor) in &pair.diff {
        if name == NORM {
            assert_eq!(exported[name].0, Dtype::BF16, "in the base's type");
        } else {
            assert_eq!(&exported[name], tensor, "{name}");
        }
    }
    // What stands there stays.
    expect_exit(bantam().arg("export").arg(&delta).arg("--out").arg(&out), 4);
    // An artifact of a run: the whole model through the original names.
    let tuned = pair.decode(&delta, "tuned");
    let recipe = pair.path("delta.toml");
    let run = |settings: &str, out: &str| {
        let head = "schema = 1\nmodel = \"tuned\"\nbase = \"base\"\n[[pass]]\nuse = \"bitdelta\"\n";
        std::fs::write(&recipe, format!("{head}{settings}\n[artifact]\nout = \"{out}\"\nlayout = \"delta\"\n"))
            .unwrap();
        expect_exit(bantam().args(["run", "--quiet"]).arg(&recipe), 0);
        pair.path(out)
    };
    let delta = run("scale = \"matrix\"", "run");
    expect_exit(bantam().arg("export").arg(&delta).arg("--out").arg(pair.path("run.safetensors")), 0);
    let exported = read_file(&pair.path("run.safetensors"));
    let base = read_file(&pair.path("base/model.safetensors"));
    let decoded = pair.decode(&delta, "decoded");
    let expected = loaded(&base, &exported);
    assert_eq!(decoded, expected);
    assert_eq!(decoded[EMBEDDING], tuned[EMBEDDING]);
    // The scale is the mean magnitude of the differences.
    let weight = format!("{DOWN}.weight");
    let change: Vec<f64> =
        bf16(&tuned[&weight].2).iter().zip(bf16(&base[&weight].2)).map(|(a, b)| f64::from((a - b).abs())).collect();
    let coefficient = f32::from_le_bytes(exported[&format!("{DOWN}.coeff")].2[..].try_into().unwrap());
    let mean = change.iter().sum::<f64>() / change.len() as f64;
    assert!((f64::from(coefficient) - mean).abs() < 1e-7 * mean.abs() + 1e-9, "{coefficient} {mean}");
    // Forms that BitDelta does not have.
    for settings in ["planes = 2\nscale = \"matrix\"", "scale = \"row\""] {
        let delta = run(settings, &format!("other {}", settings.len()));
        let out = pair.path("other.safetensors");
        let output = expect_exit(bantam().arg("export").arg(&delta).arg("--out").arg(&out), 2);
        assert!(String::from_utf8_lossy(&output.stderr).contains("delta-1-matrix"));
        assert!(!out.exists());
    }
    expect_exit(bantam().arg("export").arg(pair.path("base")).arg("--out").arg(pair.path("x.safetensors")), 2);
}

#[test]
fn what_does_not_fit_the_base_is_named() {
    let pair = Pair::new();
    let refused = |change: &dyn Fn(&mut Tensors), expected: &str| {
        let mut diff = pair.diff.clone();
        change(&mut diff);
        std::fs::write(pair.path("wrong.pt"), torch_save(&diff)).unwrap();
        let (out, message) = pair.import("wrong.pt", "wrong", 3);
        assert!(message.contains(expected), "{expected}: {message}");
        assert!(!out.exists() && !pair.path(".wrong.bantam-decode").exists());
    };
    let mask = format!("{DOWN}.mask");
    refused(&|diff| drop(diff.remove(&format!("{DOWN}.coeff"))), "there is no `model.layers.1.mlp.down_proj.coeff`");
    refused(&|diff| drop(diff.remove(&mask)), "there is no `model.layers.1.mlp.down_proj.mask`");
    refused(&|diff| diff.get_mut(&mask).unwrap().1.reverse(), "expected I32 [5, 64]");
    refused(&|diff| diff.get_mut(&mask).unwrap().0 = Dtype::F32, "expected I32 [5, 64]");
    let nan = f32::NAN.to_le_bytes().to_vec();
    refused(&|diff| diff.get_mut(&format!("{DOWN}.coeff")).unwrap().2.clone_from(&nan), "one finite number");
    refused(
        &|diff| {
            for part in ["mask", "coeff"] {
                let tensor = diff.remove(&format!("{DOWN}.{part}")).unwrap();
                diff.insert(format!("model.layers.7.mlp.down_proj.{part}"), tensor);
            }
        },
        "the base has no `model.layers.7.mlp.down_proj.weight`",
    );
    refused(&|diff| diff.retain(|name, _| !name.contains("_proj")), "holds no signs");
    refused(&|diff| diff.get_mut(NORM).unwrap().2[..4].copy_from_slice(&f32::MAX.to_le_bytes()), "too large");
}

// --- hostile files ------------------------------------------------------------------------------------------------------

fn one() -> Tensors {
    Tensors::from([
        ("a.mask".to_owned(), (Dtype::I32, vec![2, 3], (0..24).collect())),
        ("b".to_owned(), (Dtype::F32, vec![], 2.5_f32.to_le_bytes().to_vec())),
    ])
}

/// A file with this pickle and one storage of 24 bytes.
fn with_pickle(pickle: &[u8]) -> Vec<u8> {
    zip(&[("x/data.pkl".to_owned(), pickle.to_vec()), ("x/data/0".to_owned(), (0..24).collect())])
}

fn refused(file: &[u8], expected: &str) {
    let message = torch_file::read(file).unwrap_err().to_string();
    assert!(message.contains(expected), "{expected}: {message}");
}

#[test]
fn files_of_torch_save_are_read() {
    let file = torch_save(&one());
    let read = torch_file::read(&file).unwrap();
    let found: Vec<_> = read.iter().map(|(name, tensor)| (name.as_str(), tensor.shape.clone(), tensor.bytes)).collect();
    let bytes: Vec<u8> = (0..24).collect();
    assert_eq!(found, [("a.mask", vec![2, 3], &bytes[..]), ("b", vec![], &2.5_f32.to_le_bytes()[..])]);
    // Protocol 4 has other instructions for the same.
    let mut pickle = b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01v\x94".to_vec();
    pickle.extend(b"\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_tensor_v2\x94\x93\x94((\x8c\x07storage\x94");
    pickle
        .extend(b"\x8c\x05torch\x8c\x0aIntStorage\x93\x8c\x010\x8c\x03cpuK\x06tQK\x02K\x02K\x02\x86K\x02K\x01\x86\x89");
    pickle.extend(b"\x8c\x0bcollections\x8c\x0bOrderedDict\x93)RtRs.");
    let file = with_pickle(&pickle);
    let tensor = &torch_file::read(&file).unwrap()["v"];
    assert_eq!((tensor.shape.as_slice(), tensor.bytes), ([2, 2].as_slice(), &bytes[8..24]));
}

#[test]
fn whatever_a_dictionary_of_tensors_does_not_need_is_refused_by_name() {
    refused(&with_pickle(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."), "`os.system` at byte 2 is not admitted");
    refused(&with_pickle(b"\x80\x02cbuiltins\neval\n."), "builtins.eval");
    refused(&with_pickle(b"\x80\x04\x8c\x02os\x8c\x06system\x93."), "os.system");
    refused(&with_pickle(b"\x80\x02ctorch._utils\n_rebuild_tensor\n."), "torch._utils._rebuild_tensor");
    refused(&with_pickle(b"\x80\x02ctorch\nload\n."), "torch.load");
    for (opcode, name) in [
        (0x81, "NEWOBJ"),
        (b'i', "INST"),
        (b'o', "OBJ"),
        (b']', "LIST"),
        (b'G', "FLOAT"),
        (b'P', "PERSID"),
        (0x82, "EXT"),
        (b'S', "STRING"),
        (b'2', "DUP"),
        (0xff, "0xff"),
    ] {
        refused(&with_pickle(&[0x80, 2, opcode]), &format!("instruction {name} at byte 2 is not admitted"));
    }
}

#[test]
fn malformed_pickles_are_refused() {
    let good = |elements: usize, offset: usize, shape: &[usize]| {
        [b"\x80\x02}(".to_vec(), text("v"), rebuilt("IntStorage", "0", elements, offset, shape, false), b"u.".to_vec()]
            .concat()
    };
    assert!(torch_file::read(&with_pickle(&good(6, 0, &[2, 3]))).is_ok());
    assert!(torch_file::read(&with_pickle(&good(6, 6, &[0, 3]))).is_ok());
    for (pickle, expected) in [
        (good(7, 0, &[2, 3]), "its storage of 7 I32 has 24 bytes"),
        (good(6, 1, &[2, 3]), "6 elements from 1 of a storage of 6"),
        (good(6, 0, &[7]), "7 elements"),
        (good(6, 0, &[65536, 65536, 65536, 65536]), "overflows"),
        (good(6, 0, &[1; 200]), "200 dimensions"),
        (good(0x7fff_ffff, 0, &[2, 3]), "its storage of 2147483647"),
        (b"\x80\x02K\x01.".to_vec(), "no dictionary"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.".to_vec(), "something else than tensors"),
        (b"\x80\x02}}.".to_vec(), "more than one result"),
        (b"\x80\x02}.}".to_vec(), "more after the last"),
        (b"\x80\x02h\x05.".to_vec(), "nothing is remembered"),
        (b"\x80\x02u.".to_vec(), "no mark"),
        (b"\x80\x02(R.".to_vec(), "too little on the stack"),
        (b"\x80\x02s.".to_vec(), "too little on the stack"),
        (b"\x80\x02}(K\x01u.".to_vec(), "a key without a value"),
        (b"\x80\x02K\x01K\x02b.".to_vec(), "attributes of something else"),
        (b"\x80\x02K\x01Q.".to_vec(), "a storage that is no tuple"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.".to_vec(), "other arguments"),
        (b"\x80\x02)\x85\x85\x85\x85\x85\x85.".to_vec(), "nested too deep"),
        (b"\x80\x01}.".to_vec(), "a protocol other than"),
        (b"\x80\x02X\xff\xff\xff\xffa".to_vec(), "ends too early"),
        (b"\x80\x02\x8a\x09aaaaaaaaa.".to_vec(), "more than 64 bits"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.".to_vec(), "not UTF-8"),
        (b"\x80\x02ctorch".to_vec(), "ends too early"),
    ] {
        refused(&with_pickle(&pickle), expected);
    }
    let tall = [b"\x80\x02".to_vec(), vec![b')'; 1 << 17]].concat();
    refused(&with_pickle(&tall), "more on the stack");
    let twice = [
        b"\x80\x02}(".to_vec(),
        text("v"),
        rebuilt("IntStorage", "0", 6, 0, &[6], false),
        text("v"),
        rebuilt("IntStorage", "0", 6, 0, &[6], false),
        b"u.".to_vec(),
    ];
    refused(&with_pickle(&twice.concat()), "a name twice");
    let absent = [b"\x80\x02}(".to_vec(), text("v"), rebuilt("IntStorage", "9", 6, 0, &[6], false), b"u.".to_vec()];
    refused(&with_pickle(&absent.concat()), "x/data/9");
    // Turned tensors would need to be turned back.
    let mut turned = good(6, 0, &[2, 3]);
    let at = turned.windows(10).position(|part| part == [int(3), int(1)].concat()).unwrap();
    turned[at..at + 10].copy_from_slice(&[int(1), int(2)].concat());
    refused(&with_pickle(&turned), "not those of a contiguous");
}

#[test]
fn archives_are_held_against_their_size() {
    let file = torch_save(&one());
    refused(b"\x80\x02}.", "not a file of torch.save in its zip form");
    refused(b"PK\x03\x04", "zip archive");
    refused(&zip(&[("x/nothing".to_owned(), vec![1])]), "expected one entry `data.pkl`");
    let both = zip(&[("x/data.pkl".to_owned(), vec![1]), ("y/data.pkl".to_owned(), vec![1])]);
    refused(&both, "expected one entry `data.pkl`");
    let big = zip(&[("x/data.pkl".to_owned(), b"\x80\x02}.".to_vec()), ("x/byteorder".to_owned(), b"big".to_vec())]);
    refused(&big, "little-endian");
    // Every prefix, and every file with one byte changed: an error or the same kind of content, never a panic.
    for length in 0..file.len() {
        assert!(torch_file::read(&file[..length]).is_err(), "{length}");
    }
    for at in 0..file.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut changed = file.clone();
            changed[at] ^= flip;
            if let Ok(tensors) = torch_file::read(&changed) {
                assert!(tensors.values().map(|tensor| tensor.bytes.len()).sum::<usize>() <= file.len(), "{at}");
            }
        }
    }
    // A compressed entry could be far larger than the file: it is not unpacked.
    let mut deflated = file.clone();
    for (signature, method) in [(b"PK\x03\x04", 8), (b"PK\x01\x02", 10)] {
        let at = deflated.windows(4).position(|part| part == signature).unwrap();
        deflated[at + method] = 8;
    }
    refused(&deflated, "compressed");
}

#[test]
fn a_file_of_bitdelta_loads_as_its_own_loader_has_it() {
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/interop/golden"));
    if !golden.is_dir() {
        eprintln!("SKIPPED: reference artifacts are not at {}", golden.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (delta, base) = (folder.path().join("delta"), golden.join("dense-bf16"));
    let mut import = bantam();
    import.arg("import").arg(golden.join("bitdelta/diff.pt")).arg("--base").arg(&base).arg("--out").arg(&delta);
    expect_exit(&mut import, 0);
    let dense = folder.path().join("dense");
    let mut decode = bantam();
    decode.arg("decode").arg(&delta).args(["--dtype", "f32", "--base"]).arg(&base).arg("--out").arg(&dense);
    expect_exit(&mut decode, 0);
    let decoded = read_file(&dense.join("model.safetensors"));
    let expected = read_file(&golden.join("expected/bitdelta.safetensors"));
    assert_eq!(expected.len(), 7);
    for (name, tensor) in &expected {
        assert!(decoded[name] == *tensor, "{name} has other values");
    }
}
