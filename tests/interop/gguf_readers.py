#!/usr/bin/env python3
"""GGUF artifacts in the package `gguf` and in transformers' GGUF reader, against `bantam decode` and the source.

usage: gguf_readers.py --bantam BINARY [--only GLOB]          (run with the Python of environment-beside.sh gguf)

For every fixture recipe of layout `gguf`, and for models made here (Qwen 2 and 3, which keep the order of rows; Mistral with
SentencePiece-like tokens; Llama with tied embeddings and scaled rotary positions):
- each tensor, dequantized by the package, is what `bantam decode` gives, bit for bit (rows of queries and keys turned back
  by reshaping);
- `AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file="model.gguf")` gives the logits of the decoded model;
- the tokenizer that transformers makes of the file gives the ids that tokenizer.json gives.
"""

import argparse
import fnmatch
import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gguf
import numpy
import torch
import transformers
from safetensors.numpy import load_file
from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TEXTS = ["The plan is exact: 12 shards, 3.5 bits.", "  two spaces\n\tand a tab", "naïve café — 北京 🙂", "x" * 40, ""]

WITHIN = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def bantam(binary: str, *arguments: str) -> None:
    done = subprocess.run([binary, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"bantam {arguments[0]} exited with {done.returncode}: {' '.join(done.stderr.split())[-400:]}")


def model_name(name: str) -> str:
    module, what = name.rsplit(".", 1)
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{what}"
    _, number, inside = module.split(".")
    return f"model.layers.{number}.{WITHIN[inside]}.{what}"


def turned_back(values: numpy.ndarray, heads: int) -> numpy.ndarray:
    rows = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return rows.swapaxes(1, 2).reshape(values.shape)


def values(artifact: pathlib.Path, decoded: pathlib.Path) -> list[str]:
    """Every tensor of the file, dequantized by the package."""
    reader = gguf.GGUFReader(artifact / "model.gguf")
    field = lambda key: reader.fields[key].contents()  # noqa: E731
    architecture = field("general.architecture")
    heads = {"attn_q": field(f"{architecture}.attention.head_count"),
             "attn_k": field(f"{architecture}.attention.head_count_kv")}
    ours = load_file(str(decoded / "model.safetensors"))
    problems, seen = [], set()
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        theirs = gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32, copy=False)
        theirs = theirs.reshape([int(side) for side in reversed(tensor.shape)])
        part = tensor.name.split(".")[-2]
        if architecture == "llama" and part in heads:
            theirs = turned_back(theirs, heads[part])
        name = model_name(tensor.name)
        seen.add(name)
        if theirs.shape != ours[name].shape or theirs.tobytes() != ours[name].tobytes():
            problems.append(f"{name} ({tensor.tensor_type.name}) differs")
    if seen != set(ours):
        problems.append(f"other tensors: {sorted(seen ^ set(ours))[:4]}")
    return problems


def logits(artifact: pathlib.Path, decoded: pathlib.Path, biases: bool) -> tuple[list[str], float]:
    """The model that transformers makes of the file, against the decoded one."""
    torch.manual_seed(1)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(artifact, gguf_file="model.gguf", dtype=torch.float32)
    plain = transformers.AutoModelForCausalLM.from_pretrained(decoded, dtype=torch.float32)
    ids = torch.randint(0, plain.config.vocab_size, (2, 48))
    with torch.no_grad():
        theirs, ours = loaded.eval()(ids).logits, plain.eval()(ids).logits
    far = (theirs - ours).abs().max().item() / ours.abs().max().item()
    return ([f"logits are {far:.1e} off"] if far > 1e-5 else []), far


def tokens(artifact: pathlib.Path, source: pathlib.Path) -> list[str]:
    made = transformers.AutoTokenizer.from_pretrained(artifact, gguf_file="model.gguf")
    given = Tokenizer.from_file(str(source / "tokenizer.json"))
    problems = []
    for text in TEXTS:
        theirs, ours = made(text)["input_ids"], given.encode(text).ids
        if theirs != ours:
            problems.append(f"{text[:20]!r} is {theirs[:8]}, by tokenizer.json {ours[:8]}")
    return problems


def small(folder: pathlib.Path, kind: str, tokenizer: str, **more) -> pathlib.Path:
    """A model with random weights, and a tokenizer trained on this repository's own pages."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

    path = folder / f"{kind}-{tokenizer}"
    special = ["<unk>", "<s>", "</s>"]
    if tokenizer == "pieces":
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=special + [f"<0x{b:02X}>" for b in range(256)])
        made.train([str(page) for page in sorted((ROOT / "docs").glob("*.md"))], trainer)
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
        # The trainer adds bytes as special tokens, which SentencePiece's vocabularies do not.
        text = json.loads(made.to_str())
        text["added_tokens"] = [token for token in text["added_tokens"] if token["content"] in special]
        made = Tokenizer.from_str(json.dumps(text))
    else:
        split = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                 r"|\s+(?!\S)|\s+")
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(tokenizers.Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        made.train([str(page) for page in sorted((ROOT / "docs").glob("*.md"))], trainer)
    size = made.get_vocab_size()
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(
        kind, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=size, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=None, **more)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(3)
    model.save_pretrained(path)
    made.save(str(path / "tokenizer.json"))
    bos = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} if tokenizer == "pieces" else {
        "eos_token": "<|endoftext|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(bos), encoding="utf-8")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bantam", required=True, help="the binary under test")
    parser.add_argument("--only", default="*", help="jobs whose name matches")
    arguments = parser.parse_args()

    failures = 0
    with tempfile.TemporaryDirectory(prefix="bantam-gguf-") as kept:
        folder = pathlib.Path(kept)
        jobs = []
        for kind in ("recipes", "calibrated"):
            for recipe in sorted((ROOT / "fixtures" / kind).glob("*.toml")):
                if 'layout = "gguf"' in recipe.read_text(encoding="utf-8"):
                    jobs.append((recipe.stem, recipe, lambda: ROOT / "fixtures" / "tiny-llama", False))
        q8 = folder / "q8.toml"
        q8.write_text('schema = 1\n[[pass]]\nuse = "rtn"\nbits = 8\ngroup_size = 32\nsymmetric = true\n'
                      '[artifact]\nlayout = "gguf"\n', encoding="utf-8")
        plain = folder / "plain.toml"
        plain.write_text('schema = 1\n[artifact]\nlayout = "gguf"\n', encoding="utf-8")
        jobs += [
            ("plain", plain, lambda: ROOT / "fixtures" / "tiny-llama", False),
            ("qwen2", q8, lambda: small(folder, "qwen2", "bytes", tie_word_embeddings=True), False),
            ("qwen3", q8, lambda: small(folder, "qwen3", "bytes", head_dim=64), False),
            ("mistral", q8, lambda: small(folder, "mistral", "pieces", head_dim=64, sliding_window=None), False),
            ("llama-tied", plain, lambda: small(folder, "llama", "pieces", head_dim=96, tie_word_embeddings=True), False),
        ]
        for name, recipe, source, biases in jobs:
            if not fnmatch.fnmatch(name, arguments.only):
                continue
            artifact, decoded = folder / f"{name}-artifact", folder / f"{name}-decoded"
            figure = float("nan")
            try:
                model = source()
                bantam(arguments.bantam, "run", str(recipe), "--model", str(model), "--out", str(artifact), "--no-progress")
                bantam(arguments.bantam, "verify", str(artifact), "--source", str(model))
                bantam(arguments.bantam, "decode", str(artifact), "--out", str(decoded), "--dtype", "f32")
                problems = values(artifact, decoded)
                more, figure = logits(artifact, decoded, biases)
                problems += more + tokens(artifact, model)
            except Exception as error:  # noqa: BLE001 - one job must not hide the others
                problems = [f"{type(error).__name__}: {error}"]
            failures += bool(problems)
            verdict = "FAILED: " + "; ".join(problems[:4]) if problems else "ok"
            print(f"{name:24} logits {figure:.1e}  {verdict}", flush=True)
    print(f"{failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
