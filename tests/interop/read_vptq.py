#!/usr/bin/env python3
"""Loads artifacts with the public package `vptq` and compares each with the dense model that `bantam decode` wrote.

usage: read_vptq.py JOBS.json RESULTS.json          (jobs and results as in read_with.py)

The package makes its `VQuantLinear` of what `config.json` says (`make_quant_linear`), and computes with torch where there is
no GPU. The tensors are loaded here, by name: transformers' own way asks for a GPU, and in 5.17 and 5.23 ends with a
KeyError before it has replaced a module within another one; the package's calls functions that transformers no longer has.
Weights must be equal, bit for bit: a module's weights are its answer to the identity matrix, a product in which nothing is
rounded.
"""

import json
import os
import pathlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from vptq import VQuantLinear
from vptq.layers.model_base import make_quant_linear

import read_with
import schemes
from jobs import answer


def load(path: str, dtype: torch.dtype) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


def load_quantized(path: str, dtype: torch.dtype) -> torch.nn.Module:
    config = AutoConfig.from_pretrained(path)
    quantization = config.quantization_config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    make_quant_linear(model, quantization["config_for_layers"], quantization.get("shared_layer_config", {}), VQuantLinear)
    tensors = {}
    for file in sorted(pathlib.Path(path).glob("*.safetensors")):
        tensors |= load_file(str(file))
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if set(missing) - tied or unexpected:
        raise RuntimeError(f"missing tensors {missing[:4]}, unexpected ones {unexpected[:4]}")
    return model


def own_type(artifact: str) -> torch.dtype:
    """The type that the checkpoint names, which is the one its modules are made with."""
    with open(os.path.join(artifact, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    return getattr(torch, config.get("dtype") or config["torch_dtype"])


@torch.no_grad()
def compare(job: dict) -> dict:
    dtype = own_type(job["artifact"])
    windows = read_with.tokens(job["artifact"], job["text"])
    reader = load_quantized(job["artifact"], dtype)
    dense, source = load(job["dense"], dtype), load(job["source"], dtype)
    tolerance = schemes.BY_FORMAT["vptq"]

    problems, worst, compared = [], 0.0, 0
    # Decoded weights are compared as they were written, in 32 bits.
    decoded = dict(load(job["dense"], torch.float32).named_modules())
    for name, module in reader.named_modules():
        if not isinstance(module, VQuantLinear):
            continue
        ours = decoded[name].weight
        answer = module(torch.eye(module.in_features, dtype=dtype))
        theirs = (answer if module.bias is None else answer - module.bias).T.float()
        compared += 1
        if theirs.shape != ours.shape:
            problems.append(f"{name}: {tuple(theirs.shape)} is not {tuple(ours.shape)}")
        elif not torch.equal(theirs, ours):
            worst = max(worst, ((theirs - ours).abs().max() / ours.abs().max()).item())
            problems.append(f"{name}: {(theirs != ours).sum().item()} weights differ")
    reader_logits, dense_logits = (read_with.logits(model, windows) for model in (reader, dense))
    distance = read_with.relative(reader_logits, dense_logits)
    # How far compression moved the model: a comparison that could not see even that would prove nothing.
    to_source = read_with.relative(reader_logits, read_with.logits(source, windows))
    if not distance <= tolerance.logits:
        problems.append(f"logits differ by {distance:.2e}")
    if not to_source > 20 * tolerance.logits:
        problems.append(f"the artifact is as close to its source ({to_source:.2e}) as rounding: nothing was compressed")
    if compared == 0:
        problems.append("no VQuantLinear was compared")
    figures = {"weights": worst, "logits": distance, "to_source": to_source, "linears": compared,
               "weight_limit": tolerance.weight, "logits_limit": tolerance.logits}
    return {"name": job["name"], "passed": not problems, "figures": figures, "message": "; ".join(problems[:3])}


if __name__ == "__main__":
    answer(compare)
