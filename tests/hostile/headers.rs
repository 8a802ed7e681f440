//! Every way in which one file can be wrong.

use bantam::checkpoint::{HEADER_CAP_BYTES, MAXIMUM_RANK};

use crate::{entry, file_of, file_refusal};

/// A header of these entries.
fn header(entries: &[String]) -> String {
    format!("{{{}}}", entries.join(","))
}

#[test]
fn files_shorter_than_a_length() {
    assert_variant!(file_refusal(b"", &["0 bytes", "8"]), TooShort);
    assert_variant!(file_refusal(b"1234567", &["7 bytes", "8"]), TooShort);
}

#[test]
fn header_lengths_beyond_the_file_or_the_cap() {
    let mut file = file_of("{}", 0);
    file[0] = 3;
    assert_variant!(file_refusal(&file, &["3 bytes", "only 10"]), HeaderBeyondFile);
    file[..8].copy_from_slice(&(HEADER_CAP_BYTES + 1).to_le_bytes());
    assert_variant!(file_refusal(&file, &["100000001", "100000000"]), HeaderTooLong);
    file[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_variant!(file_refusal(&file, &["18446744073709551615", "100000000"]), HeaderTooLong);
    file[..8].copy_from_slice(&HEADER_CAP_BYTES.to_le_bytes());
    assert_variant!(file_refusal(&file, &["100000000", "only 10"]), HeaderBeyondFile);
}

#[test]
fn headers_that_are_not_json_objects() {
    assert_variant!(file_refusal(&file_of("", 0), &["nothing"]), HeaderStart);
    assert_variant!(file_refusal(&file_of(" {}", 0), &["0x20"]), HeaderStart);
    assert_variant!(file_refusal(&file_of("[]", 0), &["0x5b"]), HeaderStart);
    assert_variant!(file_refusal(&file_of("\u{feff}{}", 0), &["0xef"]), HeaderStart);
    assert_variant!(file_refusal(&file_of("{", 0), &["not valid JSON", "line 1"]), HeaderNotJson);
    assert_variant!(file_refusal(&file_of("{}{}", 0), &["trailing characters"]), HeaderNotJson);
    assert_variant!(file_refusal(&file_of("{\"a\":}", 0), &["column 6"]), HeaderNotJson);
    let mut file = file_of("{\"a?\":{}}", 0);
    file[8 + 3] = 0xff;
    assert_variant!(file_refusal(&file, &["not UTF-8", "byte 3"]), HeaderNotUtf8);
    // As deep as a header could be long: refused at the first wrong value, without recursion.
    assert_variant!(file_refusal(&file_of(&("{\"a\":".to_owned() + &"[".repeat(1_000_000)), 0), &["`a`"]), WrongEntry);
}

#[test]
fn names_that_stand_twice() {
    let one = entry("w", "U8", "[1]", 0, 1);
    assert_variant!(file_refusal(&file_of(&header(&[one.clone(), one]), 1), &["`w`", "twice"]), DuplicateTensor);
    let escaped = [entry("w", "U8", "[1]", 0, 1), entry("\\u0077", "U8", "[1]", 1, 2)];
    assert_variant!(file_refusal(&file_of(&header(&escaped), 2), &["`w`", "twice"]), DuplicateTensor);
    let metadata = "{\"__metadata__\":{},\"__metadata__\":{}}";
    assert_variant!(file_refusal(&file_of(metadata, 0), &["`__metadata__`"]), DuplicateKey);
    let keys = "{\"__metadata__\":{\"format\":\"pt\",\"format\":\"tf\"}}";
    assert_variant!(file_refusal(&file_of(keys, 0), &["`format`", "twice"]), DuplicateKey);
    for (field, text) in [("dtype", "\"U8\""), ("shape", "[1]"), ("data_offsets", "[0,1]")] {
        let twice = entry("w", "U8", "[1]", 0, 1).replace('}', &format!(",\"{field}\":{text}}}"));
        assert_variant!(file_refusal(&file_of(&header(&[twice]), 1), &["`w`", field, "twice"]), DuplicateField);
    }
}

#[test]
fn metadata_of_other_things_than_strings() {
    let number = "{\"__metadata__\":{\"epoch\":7}}";
    assert_variant!(file_refusal(&file_of(number, 0), &["`epoch`", "7"]), MetadataNotText);
    assert_variant!(file_refusal(&file_of("{\"__metadata__\":null}", 0), &["__metadata__", "null"]), WrongEntry);
    assert_variant!(file_refusal(&file_of("{\"__metadata__\":[\"a\"]}", 0), &["__metadata__"]), WrongEntry);
}

#[test]
fn entries_of_the_wrong_form() {
    let refuse = |tensor: &str, parts: &[&str]| {
        let file = file_of(&format!("{{\"block.w\":{tensor}}}"), 4);
        file_refusal(&file, &[parts, &["`block.w`"]].concat())
    };
    assert_variant!(refuse("null", &["null"]), WrongEntry);
    assert_variant!(refuse("[\"F32\",[1],[0,4]]", &["sequence"]), WrongEntry);
    assert_variant!(refuse("{}", &["no `dtype`"]), MissingField);
    assert_variant!(refuse("{\"dtype\":\"F32\",\"data_offsets\":[0,4]}", &["no `shape`"]), MissingField);
    assert_variant!(refuse("{\"dtype\":\"F32\",\"shape\":[1]}", &["no `data_offsets`"]), MissingField);
    let unknown = "{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"stride\":[1]}";
    assert_variant!(refuse(unknown, &["`stride`", "data_offsets"]), UnknownField);
    let of = |dtype: &str, shape: &str, offsets: &str| {
        format!("{{\"dtype\":{dtype},\"shape\":{shape},\"data_offsets\":{offsets}}}")
    };
    assert_variant!(refuse(&of("\"F33\"", "[1]", "[0,4]"), &["`F33`"]), UnknownDtype);
    assert_variant!(refuse(&of("\"f32\"", "[1]", "[0,4]"), &["`f32`"]), UnknownDtype);
    assert_variant!(refuse(&of("32", "[1]", "[0,4]"), &["32"]), WrongEntry);
    assert_variant!(refuse(&of("\"F32\"", "[-1]", "[0,4]"), &["-1"]), WrongEntry);
    assert_variant!(refuse(&of("\"F32\"", "[1.0]", "[0,4]"), &["1.0"]), WrongEntry);
    assert_variant!(refuse(&of("\"F32\"", "1", "[0,4]"), &["1", "shape"]), WrongEntry);
    assert_variant!(refuse(&of("\"F32\"", "[1]", "[0]"), &["two offsets"]), WrongEntry);
    assert_variant!(refuse(&of("\"F32\"", "[1]", "[0,2,4]"), &["two offsets"]), WrongEntry);
    assert_variant!(refuse(&of("\"F32\"", "[1]", "[0,18446744073709551616]"), &["1.8446744073709552e+19"]), WrongEntry);
    let long = format!("[{}1]", "1,".repeat(MAXIMUM_RANK));
    assert_variant!(refuse(&of("\"F32\"", &long, "[0,4]"), &["64"]), WrongEntry);
    let longest = format!("[{}1]", "1,".repeat(MAXIMUM_RANK - 1));
    let file = file_of(&format!("{{\"w\":{}}}", of("\"F32\"", &longest, "[0,4]")), 4);
    assert_eq!(bantam::checkpoint::parse_header("x".as_ref(), &file, file.len() as u64).unwrap().tensors.len(), 1);
}

#[test]
fn sizes_that_contradict_the_offsets() {
    let refuse = |dtype: &str, shape: &str, end: u64, parts: &[&str]| {
        let file = file_of(&header(&[entry("block.w", dtype, shape, 0, end)]), end as usize);
        file_refusal(&file, &[parts, &["`block.w`", dtype]].concat())
    };
    assert_variant!(refuse("F32", "[2, 3]", 23, &["[2, 3]", "24", "23"]), WrongBytes);
    assert_variant!(refuse("BF16", "[]", 0, &["[]", "2", "0"]), WrongBytes);
    assert_variant!(refuse("F8_E4M3", "[0]", 1, &["[0]", "1"]), WrongBytes);
    assert_variant!(refuse("F4", "[3]", 2, &["[3]", "12 bits"]), PartialByte);
    assert_variant!(refuse("F6_E2M3", "[2]", 2, &["[2]", "12 bits"]), PartialByte);
    assert_variant!(refuse("U8", "[4294967296, 4294967296]", 1, &["[4294967296, 4294967296]"]), ShapeOverflow);
    assert_variant!(refuse("F64", "[2305843009213693952]", 0, &["2305843009213693952"]), ShapeOverflow);
    assert_variant!(refuse("U8", "[4294967296, 4294967296, 0]", 0, &["64 bits"]), ShapeOverflow);
}

#[test]
fn offsets_that_do_not_tile_the_data() {
    let refuse =
        |entries: &[String], data: usize, parts: &[&str]| file_refusal(&file_of(&header(entries), data), parts);
    let (a, b) = (entry("a", "U8", "[4]", 0, 4), entry("b", "U8", "[4]", 4, 8));
    assert_variant!(
        refuse(&[a.clone(), entry("b", "U8", "[4]", 3, 7)], 7, &["`b`", "begins at 3", "`a`", "ends at 4"]),
        Overlap
    );
    assert_variant!(refuse(&[a.clone(), entry("b", "U8", "[4]", 0, 4)], 4, &["`b`", "`a`"]), Overlap);
    assert_variant!(refuse(&[a.clone(), entry("b", "U8", "[4]", 6, 10)], 10, &["4..6", "`b`"]), Hole);
    assert_variant!(refuse(std::slice::from_ref(&b), 8, &["0..4", "`b`"]), Hole);
    assert_variant!(refuse(&[entry("a", "U8", "[4]", 8, 4)], 8, &["`a`", "8", "4"]), OffsetsOutOfOrder);
    assert_variant!(
        refuse(&[entry("a", "U8", "[4]", 100, 104)], 8, &["`a`", "100..104", "8 bytes"]),
        OffsetsOutOfRange
    );
    assert_variant!(
        refuse(&[entry("a", "U8", "[1]", u64::MAX - 1, u64::MAX)], 8, &["18446744073709551615", "8 bytes"]),
        OffsetsOutOfRange
    );
    assert_variant!(refuse(&[a.clone(), b.clone()], 11, &["8 of 11", "last 3"]), TrailingBytes);
    assert_variant!(refuse(&[], 5, &["0 of 5", "last 5"]), TrailingBytes);
    let header_bytes = header(&[a.clone(), b.clone()]).len() + 8;
    let (expected, got) = ((header_bytes + 8).to_string(), (header_bytes + 7).to_string());
    assert_variant!(refuse(&[a.clone(), b.clone()], 7, &["`b`", "truncated", &expected, &got]), Truncated);
    assert_variant!(refuse(&[a, b], 0, &["`a`", "truncated", &expected]), Truncated);
}

#[test]
fn names_cannot_steer_the_terminal() {
    let error = file_refusal(&file_of(&header(&[entry("\\u001b[2Jx", "F33", "[1]", 0, 1)]), 1), &["\\u{1b}[2Jx"]);
    assert!(!error.to_string().contains('\u{1b}'));
    let long = "x".repeat(1 << 20);
    let error = file_refusal(&file_of(&header(&[entry(&long, "F33", "[1]", 0, 1)]), 1), &["xxx…"]);
    assert!(error.to_string().len() < 1000);
}
