#!/usr/bin/env python3
"""Artifacts of pass `lowrank_kv` in layout `remote-code` must run in transformers as `docs/formats/remote-code.md` says.

usage: remote_lowrank.py --bantam BINARY [--only GLOB] [--keep DIR]

Run it with either Python that `environment.sh` prints. For every case the binary plans, makes and decodes an artifact;
the folder is loaded with `trust_remote_code=True`, in double precision, and compared with

- the stock model of the decoded weights, where nothing but the factors changes (no window, no codes);
- `lowrank_reference.py`, which computes attention another way, always;
- the logits of `bantam eval`, the binary's own forward pass;
- itself: in chunks onto a filled cache against all at once, and greedy generation and beams, on a batch padded on the
  left, with a cache against without.

Then, in the type that the checkpoint has: the bytes that the live cache keeps must be those of `bantam plan`, exactly.
On the trained fixture also retrieval: a passage that comes twice must still be found the second time.
"""

import argparse
import fnmatch
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass, field

CACHED = pathlib.Path(tempfile.mkdtemp(prefix="bantam-modules-"))
os.environ["HF_MODULES_CACHE"] = str(CACHED)  # where transformers copies modelling files to
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, DynamicCache

import architectures
import run
from lowrank_reference import Reference

# Both sides in double precision, but for rotations and norms, which transformers rounds to single on both sides alike.
EXACT = 1e-7
# `bantam decode` rounds B·A to single precision.
DECODED = 1e-6
# `bantam eval` computes in single precision.
SINGLE = 1e-5
# There a latent that lies between two codes may fall to the other side, which moves it by a step.
SINGLE_WITH_CODES = 2e-3
# `bantam eval` rounds scales to the type of the checkpoint, BF16; a model loaded in double precision does not.
ROUNDED_SCALES = 2e-2
TOKENS = 83

torch.set_num_threads(2)
torch.manual_seed(0)


@dataclass(frozen=True)
class Case:
    source: str
    settings: dict
    # Layers that the rule leaves out.
    skip: list[str] = field(default_factory=list)
    calibrated: bool = False
    # Takes a model whose tokens are text.
    retrieval: bool = False


CASES = {
    "llama": Case("tiny-llama", {"method": "svd", "key_density": 0.5, "value_density": 0.5}),
    "llama-absorbed": Case("llama-biases", {"method": "svd", "key_density": 0.5, "value_density": 0.75,
                                            "group_heads": 1, "absorb_values": True}),
    "llama-window": Case("tiny-llama", {"method": "optimal", "key_density": 0.5, "value_density": 0.5, "window": 32},
                         calibrated=True, retrieval=True),
    "llama-ratio": Case("tiny-llama", {"method": "svd", "cache_ratio": 0.4, "group_heads": 2, "window": 8,
                                       "cache_bits": 4}),
    "llama-codes": Case("llama", {"method": "svd", "key_density": 0.8, "value_density": 0.8, "cache_bits": 8,
                                  "absorb_values": True}),
    "mistral": Case("mistral", {"method": "svd", "cache_ratio": 0.6, "group_heads": 1}),
    "mistral-window": Case("mistral-window", {"method": "svd", "key_density": 0.5, "value_density": 0.5, "window": 32,
                                              "cache_bits": 4, "absorb_values": True}),
    "qwen2": Case("qwen2", {"method": "svd", "key_density": 0.5, "value_density": 0.5, "window": 5, "group_heads": 1,
                            "absorb_values": True}),
    "qwen2-part": Case("qwen2-window", {"method": "svd", "key_density": 0.4, "value_density": 0.6}, skip=["block.1"]),
    "qwen2-codes": Case("qwen2", {"method": "svd", "cache_ratio": 0.5, "window": 32, "cache_bits": 8}),
}


def bantam(binary: str, *arguments: str) -> str:
    done = subprocess.run([binary, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = " ".join(done.stderr.split())[-400:]
        raise RuntimeError(f"bantam {arguments[0]} exited with {done.returncode}: {words}")
    return done.stdout


def longer(name: str, folder: pathlib.Path) -> pathlib.Path:
    """A copy of a tiny model that takes as many tokens as are used here."""
    shutil.copytree(architectures.model_folder(name) / "model", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 128
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def write_recipe(case: Case, folder: pathlib.Path) -> pathlib.Path:
    source = run.SOURCE if case.source == "tiny-llama" else longer(case.source, folder / "source")
    lines = ["schema = 1", f"model = {json.dumps(str(source))}"]
    if case.calibrated:
        texts = [str(run.ROOT / "fixtures" / "text" / f"{name}.txt") for name in ("recipe", "rtn", "models", "cli")]
        lines += ["[calibration]", f"text = {json.dumps(texts)}", "sequences = 32", "sequence_length = 128"]
    lines += ["[[pass]]", 'use = "lowrank_kv"']
    lines += [f"skip = {json.dumps(case.skip)}"] if case.skip else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in case.settings.items()]
    lines += ["[artifact]", f"out = {json.dumps(str(folder / 'artifact'))}", 'layout = "remote-code"']
    recipe = folder / "recipe.toml"
    recipe.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return recipe


def load(artifact: pathlib.Path, dtype) -> torch.nn.Module:
    model, info = AutoModelForCausalLM.from_pretrained(artifact, trust_remote_code=True, dtype=dtype,
                                                       output_loading_info=True)
    odd = {kind: names for kind, names in info.items() if names}
    assert not odd, f"from_pretrained found {odd}"
    assert type(model).__name__.startswith("Bantam"), type(model).__name__
    return model.eval()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = (tensor.double() - tensor.double().mean(dim=-1, keepdim=True) for tensor in (a, b))
    return ((a - b).norm() / b.norm()).item()


def check(wrong: list[str], figures: dict, name: str, figure: float, limit: float) -> None:
    figures[name] = figure
    if not figure <= limit:
        wrong.append(f"{name}: {figure:.1e} is more than {limit:.0e}")


def in_chunks(model, ids: torch.Tensor) -> torch.Tensor:
    """Logits with a cache that fills in steps of one token and of several."""
    past, pieces, start = None, [], 0
    for count in (1, 30, 1, 1, 17, 1, 25, 1, 1, 1, 1, 1, 1, 1):
        answer = model(ids[:, start : start + count], past_key_values=past, use_cache=True)
        past, start = answer.past_key_values, start + count
        pieces.append(answer.logits)
    assert start == ids.shape[1], start
    return torch.cat(pieces, dim=1)


def generation(model, ids: torch.Tensor) -> list[str]:
    """What differs between generation with a cache and without."""
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    wrong = []
    for beams in (1, 3):
        named = {"attention_mask": mask, "max_new_tokens": 14, "do_sample": False, "num_beams": beams, "pad_token_id": 0,
                 "eos_token_id": None}
        if not torch.equal(model.generate(ids, **named), model.generate(ids, use_cache=False, **named)):
            wrong.append(f"generation with {beams} beams and a cache gives other tokens than without")
    return wrong


def claimed(cache: dict, policy: dict, tokens: int) -> float:
    """Bytes of a sequence's cache by what `plan` says."""
    window, bits = policy["window"], policy["cache_bits"]
    exact = cache["kv_window_bytes"] / window * min(window, tokens) if window else 0
    if not bits:
        return tokens * cache["kv_bytes_per_token"] + exact
    assert all(policy["layers"]), "the claim is by token only where all layers have the same kinds of tokens"
    coded = max(tokens - window, 0) // 32 * 32
    pending = cache["kv_pending_bytes"] / (window + 31)
    return coded * cache["kv_bytes_per_token"] + (tokens - coded) * pending + exact


def live_bytes(artifact: pathlib.Path, cache: dict, ids: torch.Tensor, figures: dict) -> list[str]:
    """How the live cache's bytes differ from the claim, after 5, 40 and all tokens."""
    model, past, wrong, start = load(artifact, "auto"), None, [], 0
    policy = model.config.bantam["lowrank_kv"]
    for stop in (5, 40, ids.shape[1]):
        past = model(ids[:, start:stop], past_key_values=past, use_cache=True).past_key_values
        start, claim = stop, claimed(cache, policy, stop) * len(ids)
        if past.nbytes() != claim:
            wrong.append(f"the cache of {stop} tokens has {past.nbytes()} bytes, the plan says {claim}")
    figures["bytes"] = past.nbytes() / ids.numel()
    stock = DynamicCache(config=model.config)
    before, stocked = cache["kv_bytes_per_token_before"], stock_bytes(model, stock)
    if before != stocked:
        wrong.append(f"the plan says {before} bytes per token before, transformers has {stocked}")
    try:
        model(ids[:, :2], past_key_values=stock)
        wrong.append("a cache of keys and values was taken")
    except TypeError:
        pass
    return wrong


def stock_bytes(model, cache: DynamicCache) -> int:
    """Bytes of one token in the stock cache of a stock model of this configuration."""
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for index in range(config.num_hidden_layers):
        token = torch.zeros(1, config.num_key_value_heads, 1, width, dtype=model.dtype)
        cache.update(token, token, index)
    return sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))


def retrieval(model) -> tuple[float, float]:
    """The shares of tokens of a passage that are predicted when it first comes, and when it comes again."""
    text = (run.ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    ids = Tokenizer.from_file(str(run.SOURCE / "tokenizer.json")).encode(text).ids
    passages = torch.tensor(ids[: 24 * 48]).view(24, 48)
    found = model(torch.cat((passages, passages), dim=1)).logits.argmax(dim=-1)
    right = (part == passages[:, 1:] for part in (found[:, :47], found[:, 48:-1]))
    return tuple(part.float().mean().item() for part in right)


@torch.no_grad()
def examine(binary: str, case: Case, folder: pathlib.Path) -> tuple[dict, list[str]]:
    """Figures of a case and what is wrong with it."""
    folder.mkdir(parents=True)
    artifact, dense, figures, wrong = folder / "artifact", folder / "dense", {}, []
    recipe = write_recipe(case, folder)
    cache = json.loads(bantam(binary, "plan", str(recipe), "--json"))["cache"]
    bantam(binary, "run", str(recipe), "--no-progress")
    bantam(binary, "decode", str(artifact), "--out", str(dense), "--dtype", "f32")
    model = load(artifact, torch.float64)
    policy = model.config.bantam["lowrank_kv"]
    ids = torch.randint(2, model.config.vocab_size, (2, TOKENS))
    logits = model(ids, use_cache=False).logits

    if not policy["window"] and not policy["cache_bits"]:
        stock = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float64, attn_implementation="eager").eval()
        check(wrong, figures, "decoded", relative(logits, stock(ids).logits), DECODED)
    check(wrong, figures, "reference", relative(logits, Reference(artifact, dense).model(ids, use_cache=False).logits),
          EXACT)
    save_file({"ids": ids}, folder / "ids.safetensors")
    bantam(binary, "eval", str(artifact), "--text", str(folder / "ids.safetensors"), "--context", str(TOKENS), "--quiet",
           "--save-logits", str(folder / "logits.safetensors"))
    with_codes = ROUNDED_SCALES if case.source == "tiny-llama" else SINGLE_WITH_CODES
    single = with_codes if policy["cache_bits"] else SINGLE
    check(wrong, figures, "eval", relative(load_file(folder / "logits.safetensors")["logits"], logits), single)
    check(wrong, figures, "chunks", relative(in_chunks(model, ids), logits), EXACT)
    wrong += generation(model, ids[:, :21])
    wrong += live_bytes(artifact, cache, ids, figures)
    if case.retrieval:
        source = AutoModelForCausalLM.from_pretrained(run.SOURCE, dtype=torch.float32).eval()
        (_, before), (first, after) = retrieval(source), retrieval(load(artifact, torch.float32))
        figures["retrieval"] = after
        if not after > 0.8 * before:
            wrong.append(f"{after:.3f} of a repeated passage are found again, {before:.3f} without compression")
    return figures, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bantam", required=True, help="the binary under test")
    parser.add_argument("--only", default="*", help="cases whose name matches")
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the artifacts, kept afterwards")
    arguments = parser.parse_args()
    names = [name for name in CASES if fnmatch.fnmatch(name, arguments.only)]
    if not names:
        parser.error(f"no case matches {arguments.only}")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    folder = arguments.keep or pathlib.Path(tempfile.mkdtemp(prefix="bantam-lowrank-"))
    columns = ("decoded", "reference", "eval", "chunks", "bytes", "retrieval")
    print(f"transformers {transformers.__version__}\n")
    print(f"{'case':15}" + "".join(f"{column:>11}" for column in columns))
    failures = 0
    try:
        for name in names:
            try:
                figures, wrong = examine(arguments.bantam, CASES[name], folder / name)
            except Exception as error:  # whatever goes wrong is this case's failure, not the others'
                traceback.print_exc()
                figures, wrong = {}, [f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"]
            failures += bool(wrong)
            numbers = [f"{figures[column]:.1e}" if column in figures and column not in ("bytes", "retrieval")
                       else f"{figures[column]:.3f}" if column in figures else "–" for column in columns]
            verdict = f"FAILED: {'; '.join(wrong)}" if wrong else "ok"
            print(f"{name:15}" + "".join(f"{number:>11}" for number in numbers) + f"  {verdict}", flush=True)
    finally:
        shutil.rmtree(CACHED, ignore_errors=True)
        if arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{len(names) - failures} passed, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
