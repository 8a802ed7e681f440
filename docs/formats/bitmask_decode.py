"""Decodes a `sparse-24-bitmask` artifact with NumPy alone; written from sparse-24-bitmask.md, and independent of bantam.

    python bitmask_decode.py ARTIFACT [OUT]     prints each matrix, and saves it as OUT/NAME.npy
"""

import json
import pathlib
import sys

import bantam_decode
import numpy as np


def decode_all(folder):
    """Names and weights of all masked matrices."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["sparsity_config"]["format"] == "sparse-24-bitmask", "another format"
    bantam_decode.TYPES["I64"] = "<i8"
    tensors = bantam_decode.read_tensors(folder)
    for name, bitmask in tensors.items():
        if not name.endswith(".bitmask"):
            continue
        module = name.removesuffix(".bitmask")
        rows, columns = tensors[f"{module}.shape"].ravel()
        kept = np.unpackbits(bitmask, axis=-1, bitorder="little")[:, :columns].astype(bool)
        assert kept.shape == (rows, columns) and (kept.reshape(-1, 4).sum(1) == 2).all(), f"{module}: not two of four"
        weights = np.zeros((rows, columns), np.float32)
        weights[kept] = tensors[f"{module}.compressed"].astype(np.float32).ravel()
        yield f"{module}.weight", weights


if __name__ == "__main__":
    for name, weights in decode_all(pathlib.Path(sys.argv[1])):
        print(name, weights.shape, f"{np.abs(weights).mean():.6g}")
        if len(sys.argv) > 2:
            out = pathlib.Path(sys.argv[2])
            out.mkdir(parents=True, exist_ok=True)
            np.save(out / f"{name}.npy", weights)
