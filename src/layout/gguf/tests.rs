use proptest::prelude::*;
use serde_json::json;

use super::{super::scatter, rows::HeadOrder, *};
use crate::codec::{Codec, Element, Granularity, ZeroPoint};

fn config() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
        "num_hidden_layers": 1, "max_position_embeddings": 128, "intermediate_size": 96, "vocab_size": 10,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "architectures": ["LlamaForCausalLM"],
    })
}

fn codec(element: Element, scale: ScaleFormat) -> Coding {
    Codec { element, granularity: Granularity::Group(32), scale, zero: ZeroPoint::None, outliers: None }.into()
}

fn matrix(name: &str, rows: usize, columns: usize, codec: Coding) -> MatrixSpec {
    MatrixSpec {
        name: name.to_owned(),
        experts: None,
        rows,
        columns,
        transposed: false,
        dense_dtype: Dtype::BF16,
        codec,
        rotations: None,
        codebook_of: None,
        cache: None,
        activations: Activations::None,
        bias: false,
    }
}

#[test]
fn names_go_both_ways() {
    for (name, stored) in [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.layers.0.self_attn.q_proj.bias", "blk.0.attn_q.bias"),
        ("model.layers.17.mlp.down_proj.weight", "blk.17.ffn_down.weight"),
        ("model.layers.3.self_attn.k_norm.weight", "blk.3.attn_k_norm.weight"),
    ] {
        assert_eq!(names::to_file(name).as_deref(), Some(stored));
        assert_eq!(names::from_file(stored).as_deref(), Some(name));
    }
    for name in ["model.layers.01.mlp.up_proj.weight", "model.layers..mlp.up_proj.weight", "lm_head", "a.weight"] {
        assert_eq!(names::to_file(name), None, "{name}");
    }
}

/// The order's definition in llama.cpp's converter: `reshape(heads, 2, d / 2).swapaxes(1, 2)`.
#[test]
fn rows_move_as_reshaping_moves_them() {
    let (heads, head_rows) = (3, 10);
    let order = HeadOrder::new(head_rows).unwrap();
    let mut place = 0;
    for head in 0..heads {
        for pair in 0..head_rows / 2 {
            for half in 0..2 {
                let row = head * head_rows + half * (head_rows / 2) + pair;
                assert_eq!((order.stored(row), order.logical(place)), (place, row));
                place += 1;
            }
        }
    }
    assert_eq!(HeadOrder::new(7), None);
}

proptest! {
    #[test]
    fn pieces_of_any_stripes_make_the_moved_matrix(
        half in 1usize..9, heads in 1usize..5, cuts in prop::collection::vec(1usize..40, 1..6),
    ) {
        let order = HeadOrder::new(2 * half).unwrap();
        let rows = heads * 2 * half;
        let bytes: Vec<u8> = (0..rows * 3).map(|index| index as u8).collect();
        let mut moved = vec![vec![0; bytes.len()]];
        let (mut row, mut cuts) = (0, cuts.into_iter().cycle());
        while row < rows {
            let end = (row + cuts.next().unwrap()).min(rows);
            scatter(&order.pieces(row, 3, &bytes[row * 3..end * 3]), &mut moved);
            row = end;
        }
        prop_assert_eq!(&moved[0], &order.move_rows(&bytes, 3));
        for row in 0..rows {
            prop_assert_eq!(&moved[0][order.stored(row) * 3..][..3], &bytes[row * 3..][..3]);
        }
    }

    #[test]
    fn blocks_hold_codes_and_scales(
        index in 0usize..3, codes in prop::collection::vec(any::<u8>(), 64), scales in prop::collection::vec(1u8..200, 2),
    ) {
        let (kind, mask) = [(GgmlType::Q8_0, 255), (GgmlType::Q4_0, 15), (GgmlType::Mxfp4, 15)][index];
        let codes: Vec<u8> = codes.into_iter().map(|code| code & mask).collect();
        let power = |scale: u8| 2f32.powi(i32::from(scale) / 8 - 12);
        let rows = CodedRows {
            first_row: 0, rows: 1, columns: 64, codes: codes.clone(),
            scales: scales.iter().map(|&scale| power(scale)).collect(), zeros: Vec::new(),
        };
        let bytes = blocks::pack(kind, &rows);
        prop_assert_eq!(bytes.len(), blocks::row_bytes(kind, 64));
        let one_zero = |code: u8| if kind == GgmlType::Mxfp4 && code == 8 { 0 } else { code };
        prop_assert_eq!(blocks::codes(kind, &bytes), codes.iter().map(|&code| one_zero(code)).collect::<Vec<_>>());
        prop_assert_eq!(blocks::scales(kind, &bytes), rows.scales);
    }
}

/// Bytes by ggml's definition of its blocks.
#[test]
fn blocks_are_ggmls() {
    let codes: Vec<u8> = (0..32).map(|index| index as u8 % 16).collect();
    let rows = CodedRows { first_row: 0, rows: 1, columns: 32, codes, scales: vec![0.5], zeros: Vec::new() };
    let nibbles: Vec<u8> = (0..16).map(|index| index | index << 4).collect();
    assert_eq!(blocks::pack(GgmlType::Q4_0, &rows), [&[0x00, 0x38][..], &nibbles].concat());
    let q8 = blocks::pack(GgmlType::Q8_0, &rows);
    assert_eq!((&q8[..2], q8[2].cast_signed(), q8[17].cast_signed()), (&[0x00, 0x38][..], -128, -113));
    let mx = blocks::pack(GgmlType::Mxfp4, &rows);
    assert_eq!((mx[0], mx[1 + 7], mx[1 + 8]), (126, 0x77, 0x00));
}

#[test]
fn what_it_cannot_hold_is_refused_by_name() {
    let gguf = Gguf::of_model(Some(&config())).unwrap_or_else(|refusal| panic!("{refusal:?}"));
    let q4 = || codec(Element::Integer { bits: 4 }, ScaleFormat::F16);
    let up = "model.layers.0.mlp.up_proj.weight";
    assert_eq!(gguf.accepts(&matrix(up, 96, 64, q4())), Ok(()));
    let format = |matrix: MatrixSpec| match gguf.accepts(&matrix) {
        Err(Refusal::Format(message)) => message,
        other => panic!("{other:?}"),
    };
    assert!(format(matrix("model.layers.0.extra.weight", 96, 64, q4())).contains("no name"));
    assert!(format(matrix(up, 96, 64, codec(Element::Integer { bits: 3 }, ScaleFormat::F16))).contains("no blocks"));
    assert!(format(matrix(up, 96, 64, codec(Element::Integer { bits: 4 }, ScaleFormat::BF16))).contains("no blocks"));
    let query = "model.layers.0.self_attn.q_proj.weight";
    assert!(format(matrix(query, 60, 64, q4())).contains("heads"));
    assert!(matches!(gguf.accepts(&matrix(up, 96, 48, q4())), Err(Refusal::Shape(_))));
    let refused = |key: &str, value: Value| {
        let mut config = config();
        config[key] = value;
        match Gguf::of_model(Some(&config)) {
            Err(Refusal::Format(message)) => message,
            _ => panic!("{key}"),
        }
    };
    assert!(refused("model_type", "gemma2".into()).contains("gemma2"));
    assert!(refused("hidden_act", "gelu".into()).contains("gelu"));
    assert!(refused("num_hidden_layers", Value::Null).contains("num_hidden_layers"));
    assert!(refused("rope_scaling", json!({"rope_type": "longrope", "factor": 2.0})).contains("longrope"));
    assert!(refused("head_dim", 33.into()).contains("33"));
}

#[test]
fn plain_tensors_keep_their_type_but_for_vectors() {
    let gguf = Gguf::of_model(Some(&config())).unwrap_or_else(|refusal| panic!("{refusal:?}"));
    let kept = |dtype, shape: &[usize]| gguf.plain("model.embed_tokens.weight", dtype, shape).unwrap().dtype;
    assert_eq!(kept(Dtype::BF16, &[10, 64]), Dtype::BF16);
    assert_eq!(kept(Dtype::F64, &[10, 64]), Dtype::F32);
    assert_eq!(kept(Dtype::BF16, &[64]), Dtype::F32);
    assert!(gguf.plain("model.embed_tokens.weight", Dtype::I64, &[10, 64]).is_err());
    assert!(gguf.plain("model.layers.0.self_attn.rotary_emb.inv_freq", Dtype::F32, &[10]).is_err());
}

/// Llama 3.1's factors: 1 for short waves, the factor for long ones, monotone between.
#[test]
fn llama_3_factors_run_from_one_to_the_factor() {
    let mut config = config();
    config["rope_parameters"] = json!({
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let rope = rope::Rope::of(&config).unwrap();
    let factors = rope.factors(128).unwrap();
    assert_eq!((factors.len(), factors[0], factors[63]), (64, 1.0, 8.0));
    assert!(factors.is_sorted());
    // transformers' rule, written as there: for frequencies, not for what they are divided by.
    let unscaled = |index: f64| 500000f64.powf(-index / 64.0);
    let expected = |index: f64| {
        let wave = 2.0 * std::f64::consts::PI / unscaled(index);
        let smooth = (8192.0 / wave - 1.0) / 3.0;
        let scaled = (1.0 - smooth) * unscaled(index) / 8.0 + smooth * unscaled(index);
        unscaled(index) / scaled
    };
    for index in [30, 32, 34] {
        let (got, wanted) = (f64::from(factors[index]), expected(index as f64));
        assert!((got - wanted).abs() < 1e-5 * wanted || got == 1.0 || got == 8.0, "{index}: {got} {wanted}");
    }
    assert!(factors.iter().any(|&factor| factor > 1.0 && factor < 8.0));
}
