#!/usr/bin/env python3
"""Tokens per second of artifacts of layout `remote-code` in transformers, against their source.

    python benches/slowdown.py SOURCE ARTIFACT ... [--rounds 7] [--new 32] [--batch 4] [--length 128] [--dtype float32]

Needs torch and transformers (the first Python that `tests/interop/environment.sh` prints has them). All models are in
memory at once and take turns, each between two runs of the source; a ratio is the median over the rounds of (tokens per
second of the source) / (tokens per second of the artifact). With one thread, seconds are those of the processor, which
others on a busy machine do not add to. Two workloads: reading a batch of sequences, and greedy generation of one
sequence with a cache. `expected` counts multiply-adds per token, attention over the context left out; `size` is the
ratio of the files' bytes.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers import AutoModelForCausalLM


def load(folder: str, dtype: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), trust_remote_code=True).eval()


def weights_bytes(folder: str) -> int:
    return sum(path.stat().st_size for path in pathlib.Path(folder).glob("*.safetensors"))


def products(model: torch.nn.Module) -> int:
    """Multiply-adds per token: one for each weight of a matrix, embeddings aside, those of the tied head counted."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    count = sum(value.numel() for name, value in model.named_parameters()
                if value.dim() > 1 and id(value) not in tables and "_points" not in name)
    head = model.get_output_embeddings().weight
    return count + (head.numel() if id(head) in tables else 0)


@torch.no_grad()
def read(model: torch.nn.Module, ids: torch.Tensor) -> int:
    model(ids, use_cache=False)
    return ids.numel()


@torch.no_grad()
def generate(model: torch.nn.Module, prompt: torch.Tensor, count: int) -> int:
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=count,
                         min_new_tokens=count, pad_token_id=0)
    return out.shape[1] - prompt.shape[1]


def rate(work, *arguments) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    tokens = work(*arguments)
    return tokens / (clock() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("artifacts", nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new", type=int, default=32, help="tokens to generate")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    source = load(arguments.source, arguments.dtype)
    models = [load(folder, arguments.dtype) for folder in arguments.artifacts]
    ids = torch.randint(0, source.config.vocab_size, (arguments.batch, arguments.length),
                        generator=torch.Generator().manual_seed(0))
    works = {"read": (read, ids), "generate": (generate, ids[:1, :8], arguments.new)}
    ratios = {work: [[] for _ in models] for work in works}
    rates = {work: [] for work in works}
    for name, (work, *values) in works.items():
        for model in [source, *models]:
            work(model, *values)  # warms up
        for _ in range(arguments.rounds):
            before = rate(work, source, *values)
            for index, model in enumerate(models):
                own, after = (rate(work, one, *values) for one in (model, source))
                rates[name].append(after)
                ratios[name][index].append((before + after) / 2 / own)
                before = after

    print(f"source: {statistics.median(rates['read']):.0f} tokens/s read in batches of {arguments.batch} × "
          f"{arguments.length}, {statistics.median(rates['generate']):.1f} tokens/s generated; {arguments.dtype}, "
          f"{arguments.threads} thread(s), {arguments.rounds} rounds\n")
    print("| artifact | order | size | expected | read | range | generate | range |")
    print("|---|---|---|---|---|---|---|---|")
    for index, (folder, model) in enumerate(zip(arguments.artifacts, models)):
        settings = model.config.bantam["taylor_mlp"]
        cells = [pathlib.Path(folder).name, str(settings["order"]),
                 f"{weights_bytes(folder) / weights_bytes(arguments.source):.2f}",
                 f"{products(model) / products(source):.2f}"]
        for name in works:
            own = ratios[name][index]
            cells += [f"{statistics.median(own):.2f}", f"{min(own):.2f}–{max(own):.2f}"]
        print("| " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
