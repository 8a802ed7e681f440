use std::path::{Path, PathBuf};

use super::{TokenError, read, windows};
use crate::{
    Error, ExitCode,
    checkpoint::{Dtype, write_file},
    recipe::Calibration,
};

const VOCABULARY: usize = 2048;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama")
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn ids(&self, name: &str, shape: [usize; 2], ids: &[i64]) -> PathBuf {
        let path = self.0.path().join(name);
        let bytes = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        write_file(&path, &[("ids", Dtype::I64, shape.to_vec(), bytes)]).unwrap();
        path
    }
}

fn chosen(files: &[&PathBuf], sequences: u64, length: u64) -> Result<super::Tokens, TokenError> {
    let files = files.iter().map(|file| (*file).clone()).collect();
    read(&model(), VOCABULARY, Some(512), &Calibration::new(files, sequences, length))
}

fn tokens_of(file: &Path) -> Vec<u32> {
    windows(&model(), VOCABULARY, None, &[file], 1).unwrap().sequences.concat()
}

const TEXT: &str = "Every tensor is read once, and every tensor is written once. Größe is a word, 123 a number.\n";

#[test]
fn text_is_tokenised_as_the_tokenizer_does_by_itself() {
    let folder = Folder::new();
    let file = folder.write("a.txt", TEXT.repeat(3));
    let tokenizer = tokenizers::Tokenizer::from_file(model().join("tokenizer.json")).unwrap();
    let expected = tokenizer.encode(TEXT.repeat(3), false).unwrap();
    assert_eq!(tokens_of(&file), expected.get_ids());
    assert_eq!(tokenizer.decode(&tokens_of(&file), false).unwrap(), TEXT.repeat(3));
}

#[test]
fn the_first_windows_of_the_joined_texts_are_taken() {
    let folder = Folder::new();
    let (first, second) = (folder.write("a.txt", TEXT), folder.write("b.TXT", TEXT.to_uppercase()));
    let stream = [tokens_of(&first), tokens_of(&second)].concat();
    let length = tokens_of(&first).len() * 2 / 3;
    let tokens = chosen(&[&first, &second], 2, length as u64).unwrap();
    assert_eq!(tokens.sequences, [&stream[..length], &stream[length..2 * length]]);
    let lines = [&first, &second]
        .map(|file| format!("{}: {} tokens", file.file_name().unwrap().to_string_lossy(), tokens_of(file).len()));
    assert_eq!(tokens.description, lines);
    let again = chosen(&[&first, &second], 2, length as u64).unwrap();
    assert_eq!(again.hash, tokens.hash);
    assert_ne!(chosen(&[&second, &first], 2, length as u64).unwrap().hash, tokens.hash);
    // What one file is enough for does not open the next.
    let absent = folder.0.path().join("absent.txt");
    assert_eq!(chosen(&[&first, &absent], 1, 4).unwrap().sequences, [&stream[..4]]);
    assert!(matches!(chosen(&[&first, &absent], 500, 4), Err(TokenError::Io { .. })));
}

#[test]
fn json_lines_are_documents_one_after_the_other() {
    let folder = Folder::new();
    folder.write("tokenizer.json", std::fs::read(model().join("tokenizer.json")).unwrap());
    folder.write("chat_template.jinja", "{% for message in messages %}{{ message.content }}{% endfor %}");
    let file = folder.write(
        "c.jsonl",
        "{\"text\": \"one two\", \"source\": 5}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"three\"}]}\nbroken",
    );
    let texts = ["one two", "three"].map(|text| tokens_of(&folder.write("x.txt", text)));
    let count = texts.concat().len() as u64;
    let calibration = Calibration::new(vec![file.clone()], count, 1);
    let tokens = read(folder.0.path(), VOCABULARY, None, &calibration).unwrap();
    assert_eq!(tokens.sequences.concat(), texts.concat());
    assert_eq!(tokens.description, [format!("c.jsonl: 2 documents, {count} tokens")]);
    // The broken line is met when more is wanted.
    let error = read(folder.0.path(), VOCABULARY, None, &Calibration::new(vec![file.clone()], 999, 1)).unwrap_err();
    let expected = format!("`{}`, line 4: not as expected: expected value (column 1)", file.display());
    assert_eq!(error.to_string(), expected);
    let error = chosen(&[&file], 999, 1).unwrap_err();
    assert!(matches!(error, TokenError::NoTemplate { line: 3, .. }), "{error}");
}

#[test]
fn lines_of_another_form_are_named() {
    let folder = Folder::new();
    for (line, expected) in [
        ("{}", "expected an object with `text` or `messages`"),
        ("{\"text\": \"a\", \"messages\": []}", "expected either `text` or `messages`, found both"),
        ("{\"messages\": \"a\"}", "`messages`: expected a list of {role, content}"),
        ("{\"text\": 5}", "not as expected: invalid type: integer `5`, expected a string (column 10)"),
    ] {
        let file = folder.write("c.jsonl", format!("{{\"text\": \"\"}}\n{line}\n"));
        let error = chosen(&[&file], 1, 8).unwrap_err();
        assert_eq!(error.to_string(), format!("`{}`, line 2: {expected}", file.display()));
        assert_eq!(Error::from(error).exit_code(), ExitCode::Input);
    }
    let file = folder.write("c.jsonl", b"{\"text\": \"\"}\n{\"text\": \"\xff\"}");
    let error = chosen(&[&file], 1, 8).unwrap_err();
    assert!(matches!(error, TokenError::NotUtf8 { line: 2, offset: 23, .. }), "{error}");
    let file = folder.write("c.txt", b"a\nb\n\xe4");
    let error = chosen(&[&file], 1, 8).unwrap_err();
    assert!(matches!(error, TokenError::NotUtf8 { line: 3, offset: 4, .. }), "{error}");
}

#[test]
fn rows_of_token_ids_are_sequences() {
    let folder = Folder::new();
    let file = folder.ids("a.safetensors", [3, 4], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!(chosen(&[&file], 2, 3).unwrap().sequences, [[1, 2, 3], [5, 6, 7]]);
    assert_eq!(chosen(&[&file], 2, 3).unwrap().description, ["a.safetensors: 2 rows of token ids"]);
    let cut = windows(&model(), VOCABULARY, None, &[&file], 2).unwrap();
    assert_eq!(cut.sequences, [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12]]);
    let path = folder.0.path().join("b.safetensors");
    let bytes = [7_i32, 8].iter().flat_map(|id| id.to_le_bytes()).collect();
    write_file(&path, &[("ids", Dtype::I32, vec![1, 2], bytes)]).unwrap();
    assert_eq!(chosen(&[&file, &path], 4, 2).unwrap().sequences[3], [7, 8]);
    // A window of text does not reach across rows of ids.
    let text = folder.write("a.txt", TEXT);
    let stream = tokens_of(&text);
    let one_window = stream.len() as u64 - 1;
    assert!(matches!(chosen(&[&text, &path, &text], 3, one_window), Err(TokenError::ShortIds { found: 2, .. })));
    let sequences = chosen(&[&text, &path, &text], stream.len() as u64 / 2 * 2 + 1, 2).unwrap().sequences;
    assert_eq!(sequences[stream.len() / 2], [7, 8]);
    assert_eq!(sequences[stream.len() / 2 + 1], stream[..2]);
}

#[test]
fn files_of_other_tensors_and_wrong_ids() {
    let folder = Folder::new();
    let path = folder.0.path().join("a.safetensors");
    write_file(&path, &[("w", Dtype::F32, vec![1, 1], vec![0; 4])]).unwrap();
    assert!(chosen(&[&path], 1, 1).unwrap_err().to_string().ends_with("found `w`, F32 [1, 1]"));
    let one = || (Dtype::I32, vec![1, 1], vec![0; 4]);
    let two = [("a", one()), ("b", one())].map(|(name, (dtype, shape, bytes))| (name, dtype, shape, bytes));
    write_file(&path, &two).unwrap();
    assert!(chosen(&[&path], 1, 1).unwrap_err().to_string().ends_with("found 2 tensors"));
    let error = chosen(&[&folder.ids("n.safetensors", [2, 2], &[1, 2, 3, -4])], 2, 2).unwrap_err();
    assert!(matches!(error, TokenError::NegativeId { row: 1, column: 1, id: -4, .. }), "{error}");
    for id in [2048, i64::from(u32::MAX) + 1] {
        let error = chosen(&[&folder.ids("v.safetensors", [1, 2], &[2047, id])], 1, 2).unwrap_err();
        let expected = format!("has the token id {id}, but the model's vocabulary has 2048 rows");
        assert!(error.to_string().ends_with(&expected), "{error}");
    }
    let error = chosen(&[&folder.write("d.safetensors", "damaged")], 1, 2).unwrap_err();
    assert!(matches!(error, TokenError::Ids(_)), "{error}");
}

#[test]
fn what_cannot_be_had_says_what_to_do() {
    let folder = Folder::new();
    let text = folder.write("a.txt", TEXT);
    let count = tokens_of(&text).len();
    let usage = |error: TokenError, message: &str, hint: &str| {
        assert_eq!((error.to_string().as_str(), error.hint().as_deref()), (message, Some(hint)));
        assert_eq!(error.exit_code(), ExitCode::Usage);
    };
    usage(
        chosen(&[&text], 99, 5).unwrap_err(),
        &format!(
            "the calibration data gives {} sequences of 5 tokens ({count} tokens in all), 99 are asked for",
            count / 5
        ),
        &format!("name more text, or set `sequences = {}` or a smaller `sequence_length`", count / 5),
    );
    usage(
        chosen(&[&text], 1, 513).unwrap_err(),
        "sequences of 513 tokens are asked for, but the model takes at most 512 (max_position_embeddings)",
        "ask for 512 tokens or fewer",
    );
    usage(
        windows(&model(), VOCABULARY, None, &[&text], 500).unwrap_err(),
        &format!("`{}` has {count} tokens, fewer than one window of 500", text.display()),
        "give more text, or a smaller context",
    );
    assert!(matches!(chosen(&[&text], 0, 4), Err(TokenError::Nothing)));
    assert!(matches!(windows(&model(), VOCABULARY, None, &[&text], 0), Err(TokenError::Nothing)));
    let error = chosen(&[&folder.write("a.md", TEXT)], 1, 4).unwrap_err();
    assert!(matches!(error, TokenError::UnknownExtension { .. }), "{error}");

    let error = windows(folder.0.path(), VOCABULARY, None, &[&text], 4).unwrap_err();
    assert!(error.to_string().contains("has no tokenizer.json"), "{error}");
    assert_eq!(error.exit_code(), ExitCode::Input);
    folder.write("tokenizer.json", "{}");
    let error = windows(folder.0.path(), VOCABULARY, None, &[&text], 4).unwrap_err();
    assert!(matches!(error, TokenError::BadTokenizer { .. }), "{error}");

    let first = tokens_of(&text)[0];
    let error = windows(&model(), first as usize, None, &[&text], 4).unwrap_err();
    let expected = format!("has the token id {first} (`E`), but the model's vocabulary has {first} rows");
    assert!(error.to_string().contains(&expected), "{error}");
}

#[test]
fn truncation_and_padding_of_the_tokenizer_are_not_for_this() {
    let folder = Folder::new();
    let json = std::fs::read_to_string(model().join("tokenizer.json")).unwrap();
    let truncation = "\"truncation\": {\"direction\": \"Right\", \"max_length\": 4, \"strategy\": \"LongestFirst\", \
        \"stride\": 0}";
    folder.write("tokenizer.json", json.replacen("\"truncation\": null", truncation, 1));
    let text = folder.write("a.txt", TEXT);
    let tokens = windows(folder.0.path(), VOCABULARY, None, &[&text], 1).unwrap().sequences.concat();
    assert_eq!(tokens, tokens_of(&text));
}
