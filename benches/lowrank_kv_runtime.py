#!/usr/bin/env python3
"""What a live cache of latents takes and what decoding with it costs, in transformers on one core.

usage: lowrank_kv_runtime.py MODEL ARTIFACT... [--tokens N,...] [--generate N]

MODEL is the original, ARTIFACT a folder of layout `remote-code`. For each length the cache is filled with that many
tokens and its bytes are counted; then as many tokens as asked for are generated one by one. Times are of the processor,
so that others on the machine count little. Needs torch and transformers.
"""

import argparse
import os
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)


def bytes_of(cache) -> int:
    if hasattr(cache, "nbytes"):
        return cache.nbytes()
    return sum(part.untyped_storage().nbytes() for layer in cache.layers for part in (layer.keys, layer.values))


@torch.no_grad()
def measure(path: str, length: int, generate: int) -> tuple[float, float, float]:
    """Bytes per token, processor time to read `length` tokens (s), and for each further token (ms)."""
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype="auto",
                                                 attn_implementation="eager").eval()
    ids = torch.randint(2, model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(length))
    model(ids[:, :8])
    start = time.process_time()
    answer = model(ids, use_cache=True)
    read = time.process_time() - start
    past, held = answer.past_key_values, bytes_of(answer.past_key_values)
    start = time.process_time()
    for _ in range(generate):
        answer = model(answer.logits[:, -1:].argmax(dim=-1), past_key_values=past, use_cache=True)
    return held / length, read, (time.process_time() - start) / generate * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("artifacts", nargs="*")
    parser.add_argument("--tokens", default="512")
    parser.add_argument("--generate", type=int, default=32)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}\n")
    print("| model | tokens | bytes per token | reading (s) | each further token (ms) |\n|---|---|---|---|---|")
    for length in map(int, arguments.tokens.split(",")):
        for path in (arguments.model, *arguments.artifacts):
            held, read, step = measure(path, length, arguments.generate)
            name = os.path.basename(os.path.normpath(path))
            print(f"| {name} | {length} | {held:.1f} | {read:.2f} | {step:.2f} |", flush=True)


if __name__ == "__main__":
    main()
