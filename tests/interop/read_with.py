#!/usr/bin/env python3
"""Loads artifacts in transformers and compares each with the dense model that `bantam decode` wrote for it.

usage: read_with.py JOBS.json RESULTS.json

Runs inside one of the environments of environment.sh; all artifacts in one process, because imports take longest.
A job: {"name", "artifact", "dense", "source", "format", "text"}. A result: {"name", "passed", "figures", "message"}.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

import schemes
from jobs import answer

WINDOWS, CONTEXT = 4, 128

torch.set_num_threads(1)
torch.manual_seed(0)


def tokens(artifact: str, text: str) -> torch.Tensor:
    """Gives fixed windows of the text, tokenized with the artifact's own copy of the tokenizer."""
    with open(text, encoding="utf-8") as file:
        ids = Tokenizer.from_file(os.path.join(artifact, "tokenizer.json")).encode(file.read()).ids
    needed = WINDOWS * CONTEXT
    assert len(ids) >= needed, f"{text} has {len(ids)} tokens, {needed} are needed"
    return torch.tensor(ids[:needed]).view(WINDOWS, CONTEXT)


@torch.no_grad()
def load(path: str, format_name: str) -> torch.nn.Module:
    own_type = format_name in schemes.LOAD_IN_OWN_TYPE
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto" if own_type else torch.float32).eval()
    # compressed-tensors decompresses when the model first runs.
    model(torch.zeros((1, 2), dtype=torch.long))
    if own_type:
        # transformers forbids `.float()` on what was quantized once; by now every weight is dense.
        torch.nn.Module.float(model)
    # Weights are compared here. Quantizing activations at run time is the reader's alone and would hide them.
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            module.quantization_enabled = False
    return model


@torch.no_grad()
def effective_weight(module: torch.nn.Module, columns: int) -> torch.Tensor:
    """What the module multiplies with, whatever it stores: its answer to the identity matrix."""
    answer = module(torch.eye(columns)).float()
    bias = getattr(module, "bias", None)
    return (answer if bias is None else answer - bias.float()).T


@torch.no_grad()
def logits(model: torch.nn.Module, windows: torch.Tensor) -> torch.Tensor:
    values = model(windows).logits.double()
    return values - values.mean(dim=-1, keepdim=True)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return (torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)).item()


def compare(job: dict) -> dict:
    windows = tokens(job["artifact"], job["text"])
    reader, dense = load(job["artifact"], job["format"]), load(job["dense"], "dense")
    tolerance = schemes.BY_FORMAT[job["format"]]

    problems, worst_weight, worst_name, compared = [], 0.0, "", 0
    modules = dict(reader.named_modules())
    for name, module in dense.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        ours = module.weight.float()
        theirs = effective_weight(modules[name], ours.shape[1])
        if theirs.shape != ours.shape:
            problems.append(f"{name}: {tuple(theirs.shape)} is not {tuple(ours.shape)}")
            continue
        difference = ((theirs - ours).abs().max() / ours.abs().max()).item()
        compared += 1
        if not difference <= worst_weight:
            worst_weight, worst_name = difference, name
    reader_logits = logits(reader, windows)
    distance = relative(reader_logits, logits(dense, windows))
    # How far compression moved the model: a comparison that could not see even that would prove nothing.
    to_source = relative(reader_logits, logits(load(job["source"], "dense"), windows))

    if not worst_weight <= tolerance.weight:
        problems.append(f"{worst_name}: a weight differs by {worst_weight:.2e} of the largest")
    if not distance <= tolerance.logits:
        problems.append(f"logits differ by {distance:.2e}")
    if not to_source > 2 * tolerance.logits and not to_source > 20 * distance:
        problems.append(f"the artifact is as close to its source ({to_source:.2e}) as rounding: nothing was compressed")
    if compared == 0:
        problems.append("no linear layer was compared")
    figures = {"weights": worst_weight, "logits": distance, "to_source": to_source, "linears": compared,
               "weight_limit": tolerance.weight, "logits_limit": tolerance.logits}
    return {"name": job["name"], "passed": not problems, "figures": figures, "message": "; ".join(problems)}


if __name__ == "__main__":
    answer(compare)
