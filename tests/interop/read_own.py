#!/usr/bin/env python3
"""Compares `bantam decode` with the decoders of docs/formats, which the pages of formats that no installed runtime reads
document: our own layout, and bit masks.

usage: read_own.py JOBS.json RESULTS.json          (jobs and results as in read_with.py)

A decoder is NumPy alone and was written from the page, not from the code: it stands for the user who has to read an
artifact without bantam. Dense tensors must be the source's, bit for bit. A plain artifact needs no decoder: its tensors
are compared as they are.
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.torch import load_file

from jobs import answer

FORMATS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "formats"
DECODERS = {"bantam": FORMATS / "bantam_decode.py", "sparse-24-bitmask": FORMATS / "bitmask_decode.py"}
# Both multiply the same 32-bit numbers; only a fused multiply-add could round differently.
LIMIT = 1e-6


def compare(job: dict) -> dict:
    source = {name: tensor.float().numpy() for name, tensor in load_all(job["source"]).items()}
    theirs = changed(job, source) if job["format"] == "dense" else decoded(job)
    ours = {name: tensor.float().numpy() for name, tensor in load_all(job["dense"]).items()}

    problems, worst, moved = [], 0.0, 0.0
    if ours.keys() != source.keys():
        problems.append(f"decode's tensors are not the source's: {sorted(ours.keys() ^ source.keys())[:4]}")
    for name, weights in sorted(theirs.items()):
        if name not in ours or ours[name].shape != weights.shape:
            problems.append(f"{name}: {weights.shape} against {ours[name].shape if name in ours else 'nothing'}")
            continue
        scale = np.abs(ours[name]).max()
        worst = max(worst, float(np.abs(ours[name] - weights).max() / scale))
        moved = max(moved, float(np.abs(source[name] - weights).max() / scale))
    for name in source.keys() - theirs.keys():
        if not np.array_equal(ours[name], source[name]):
            problems.append(f"{name} should be as in the source")
    if not theirs:
        problems.append("the decoder found no coded matrix")
    if not worst <= LIMIT:
        problems.append(f"a weight differs by {worst:.2e} of the largest")
    if not moved > 100 * LIMIT:
        problems.append("no weight differs from the source: nothing was compressed")
    figures = {"weights": worst, "weight_limit": LIMIT, "to_source": moved, "linears": len(theirs)}
    return {"name": job["name"], "passed": not problems, "figures": figures, "message": "; ".join(problems)}


def decoded(job: dict) -> dict:
    """What the decoder makes of the artifact's coded matrices."""
    with tempfile.TemporaryDirectory() as out:
        decoder = DECODERS[job["format"]]
        done = subprocess.run([sys.executable, str(decoder), job["artifact"], out], stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{decoder.name}: {' '.join(done.stderr.split())[-300:]}")
        return {path.name.removesuffix(".npy"): np.load(path) for path in pathlib.Path(out).glob("*.npy")}


def changed(job: dict, source: dict) -> dict:
    """The tensors of a plain artifact that a mask changed: two of each four weights of a row are zero."""
    tensors = {name: tensor.float().numpy() for name, tensor in load_all(job["artifact"]).items()}
    masked = {name: tensor for name, tensor in tensors.items() if not np.array_equal(tensor, source[name])}
    for name, tensor in masked.items():
        if ((tensor.reshape(-1, 4) == 0).sum(axis=1) < 2).any():
            raise RuntimeError(f"{name} keeps more than two of four weights")
    return masked


def load_all(folder: str) -> dict:
    tensors = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        tensors |= load_file(str(path))
    return tensors


if __name__ == "__main__":
    answer(compare)
