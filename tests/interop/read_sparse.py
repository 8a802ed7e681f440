#!/usr/bin/env python3
"""Loads bit masks with compressed-tensors 0.14.0.1, the last version that has them, and compares with `bantam decode`.

usage: read_sparse.py JOBS.json RESULTS.json          (jobs and results as in read_with.py)

Both ways: what the package decompresses is what `bantam decode` gives, and what it compresses of that are the tensors of the
artifact, bit for bit but for the masks of groups with more zeros than have to be, where any of them may be kept.
"""

import json
import os
import pathlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.config import Sparse24BitMaskConfig
from safetensors.torch import load_file

from jobs import answer


def load_all(folder: str) -> dict:
    tensors = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        tensors |= load_file(str(path))
    return tensors


def compare(job: dict) -> dict:
    artifact = pathlib.Path(job["artifact"])
    config = json.loads((artifact / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    parsed = Sparse24BitMaskConfig(**config["sparsity_config"])
    compressor = BaseCompressor.load_from_registry(parsed.format, config=parsed)
    theirs = dict(compressor.decompress(str(artifact)))
    ours, source, stored = load_all(job["dense"]), load_all(job["source"]), load_all(job["artifact"])

    problems, masked, moved = [], 0, 0.0
    if theirs.keys() != ours.keys():
        problems.append(f"other tensors: {sorted(theirs.keys() ^ ours.keys())[:4]}")
    for name in sorted(theirs.keys() & ours.keys()):
        # `decode` widens; so does this.
        if not torch.equal(theirs[name].float(), ours[name].float()):
            problems.append(f"{name} differs")
        module = name.removesuffix(".weight")
        if f"{module}.bitmask" not in stored:
            continue
        masked += 1
        moved = max(moved, (theirs[name].float() - source[name].float()).abs().max().item())
        again = compressor.compress_weight(module, theirs[name])
        kept = theirs[name].reshape(-1, 4) != 0
        whole = (kept.sum(1) == 2).reshape(theirs[name].shape[0], -1).all(1)
        for part in ("compressed", "bitmask"):
            a, b = again[f"{module}.{part}"], stored[f"{module}.{part}"]
            if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(a[whole], b[whole]):
                problems.append(f"{module}.{part} is not what the package writes")
        shape = again[f"{module}.shape"]
        if shape.dtype != stored[f"{module}.shape"].dtype or not torch.equal(shape, stored[f"{module}.shape"]):
            problems.append(f"{module}.shape is not what the package writes")
    if masked == 0 or moved == 0.0:
        problems.append("nothing was masked")
    figures = {"weights": 0.0, "weight_limit": 0.0, "to_source": moved, "linears": masked}
    return {"name": job["name"], "passed": not problems, "figures": figures, "message": "; ".join(problems[:4])}


if __name__ == "__main__":
    answer(compare)
