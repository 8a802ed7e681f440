#!/usr/bin/env python3
"""What transformers computes with each model: logits of given windows, and perplexity by bantam's protocol.

usage: evaluate_with.py JOBS.json RESULTS.json

Runs inside one of the environments of environment.sh. Unlike read_with.py it lets the runtime round activations.
A job: {"name", "model", "windows", "folder"}, windows a safetensors file of token ids. A result: {"name",
"perplexity", "logits"}, logits the path of a safetensors file, or {"name", "message"}.
"""

import json
import math
import os
import pathlib
import sys
import traceback

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)


@torch.no_grad()
def evaluate(job: dict) -> dict:
    windows = load_file(job["windows"])["ids"]
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    model(windows[:1, :2])  # compressed-tensors decompresses when the model first runs
    loss, logits = 0.0, []
    for batch in windows.split(8):
        values = model(batch).logits.float()
        logits.append(values)
        predicted, targets = values[:, :-1].double(), batch[:, 1:]
        loss += torch.nn.functional.cross_entropy(predicted.flatten(0, 1), targets.flatten(), reduction="sum").item()
    path = str(pathlib.Path(job["folder"]) / "theirs.safetensors")
    save_file({"logits": torch.cat(logits)}, path)
    return {"name": job["name"], "perplexity": math.exp(loss / windows[:, 1:].numel()), "logits": path}


def main() -> None:
    jobs_path, results_path = map(pathlib.Path, sys.argv[1:])
    results = []
    for job in json.loads(jobs_path.read_text(encoding="utf-8")):
        try:
            results.append(evaluate(job))
        except Exception as error:  # whatever a reader raises is this model's failure, not the others'
            traceback.print_exc()
            message = f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
            results.append({"name": job["name"], "message": message})
    results_path.write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
