"""Times llm-compressor's GPTQ (4 bits, groups of 128, symmetric) on a model folder and token ids.

    python benches/llm_compressor.py MODEL IDS.safetensors

Needs `llmcompressor` and `torch`. Prints JSON: seconds for the calibrated pass over all blocks, without loading and saving,
and the rate of F32 matrix products before and after, in GFLOP/s.
"""

import json
import sys
import time

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast


def matmul_rate(side=4096):
    """GFLOP/s of the best of three products."""
    left, right = torch.randn(side, side), torch.randn(side, side)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e9


def main():
    folder, ids = sys.argv[1:3]
    before = matmul_rate()
    tokens = next(iter(load_file(ids).values())).long()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if "--bf16" in sys.argv else torch.float32)
    rows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in tokens]
    recipe = GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])
    # Not used, but asked for.
    processor = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    start = time.perf_counter()
    oneshot(
        model=model,
        dataset=DataLoader(rows, batch_size=None),
        recipe=recipe,
        processor=processor,
        max_seq_length=tokens.shape[1],
        num_calibration_samples=tokens.shape[0],
    )
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "matmul_before": before, "matmul_after": matmul_rate()}))


main()
