"""Decodes a bantam artifact to dense weights with NumPy alone; written from bantam.md, and independent of bantam.

    python bantam_decode.py ARTIFACT [OUT]     prints each matrix, and saves it as OUT/NAME.npy
"""

import json
import pathlib
import re
import sys

import k_quant_decode
import numpy as np
import pyramid_decode
import sparse_decode
import vector_decode

NAMES = {"mxfp4": "fp4-g32-e8m0", "mxfp8": "fp8-g32-e8m0", "nvfp4": "fp4-g16-e4m3"}
FP4 = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
TYPES = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "I16": "<i2", "U8": "u1", "BF16": "<u2", "F8_E4M3": "u1"}


def fp8(codes):
    exponent, mantissa = codes >> 3 & 15, (codes & 7).astype(np.float32)
    normal = (1 + mantissa / 8) * np.exp2(exponent.astype(np.float32) - 7)
    value = np.where(exponent == 0, mantissa * np.float32(2.0**-9), normal)
    return np.where(codes & 0x7F == 0x7F, np.nan, np.where(codes & 0x80, -value, value)).astype(np.float32)


def read_tensors(folder):
    """All tensors of the folder's safetensors files by name; BF16 and F8 as floats."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            if name == "__metadata__" or entry["dtype"] not in TYPES:
                continue
            first, end = (start + offset for offset in entry["data_offsets"])
            values = np.frombuffer(data[first:end], TYPES[entry["dtype"]])
            if entry["dtype"] == "BF16":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            if entry["dtype"] == "F8_E4M3":
                values = fp8(values)
            tensors[name] = values.reshape(entry["shape"])
    return tensors


def unpack(rows, count, bits):
    stream = np.unpackbits(rows, axis=-1, bitorder="little")[:, : count * bits]
    return (stream.reshape(len(rows), count, bits) << np.arange(bits, dtype=np.uint8)).sum(-1).astype(np.uint8)


def decode_turned(tensors, name, group, shape):
    """Matrices that are stored rotated, as points of pyramids or masked: each expert's matrix as a whole."""
    *stack, rows, columns = [*shape[:-2], *shape[:-3:-1]] if group["transposed"] else shape
    rotations = group.get("rotations") or {"inputs": False, "outputs": False, "seed": 0}
    plain = {**group, "rotations": None, "transposed": False}
    matrices = []
    for expert in range(int(np.prod(stack, dtype=np.int64))):
        owner = lambda suffix: group.get("codebooks", {}).get(name, name) if "centroids" in suffix else name
        stored = lambda suffix: tensors[f"{owner(suffix)}.{suffix}"]
        part = lambda suffix: stored(suffix)[expert] if stack else stored(suffix)
        if group["codec"].startswith("pvq"):
            matrix = pyramid_decode.pyramid(part, group["codec"], rows, columns)
        elif group["codec"].startswith("vptq"):
            matrix = vector_decode.vectors(part, group["codec"], group["scale_dtype"], rows, columns)
        elif group["codec"].startswith("mask"):
            matrix = sparse_decode.sparse(part, group["codec"], rows, columns)
        elif group["codec"] in k_quant_decode.BYTES:
            matrix = k_quant_decode.k_quant(part, group["codec"], rows, columns)
        else:
            matrix = decode(tensors, name, plain, [*stack, rows, columns]).reshape(-1, rows, columns)[expert]
        if rotations["outputs"]:
            matrix = pyramid_decode.rotation(rows, ~rotations["seed"] % 2**64).T @ matrix
        if rotations["inputs"]:
            matrix = matrix @ pyramid_decode.rotation(columns, rotations["seed"])
        matrices.append(matrix.astype(np.float32))
    weights = np.stack(matrices).reshape(*stack, rows, columns)
    return weights.swapaxes(-1, -2) if group["transposed"] else weights


def factors(tensors, name, codec, rows):
    """B·A of each group of rows; what is stored is named by the module."""
    ranks = [int(rank) for rank in codec.removeprefix("factors-").removesuffix("-exact").split(".")]
    a, b = (tensors[f"{name.removesuffix('.weight')}_{part}.weight"].astype(np.float32) for part in "ab")
    ends = np.cumsum([0, *ranks])
    weights = [b[:, start:end] @ a[start:end] for start, end in zip(ends[:-1], ends[1:])]
    assert sum(map(len, weights)) == rows, "the groups' rows are the matrix's"
    return np.concatenate(weights)


def decode(tensors, name, group, shape):
    if group["codec"].startswith("factors"):
        return factors(tensors, name, group["codec"], shape[0])
    if group.get("rotations") or group["codec"].startswith(("pvq", "vptq", "mask", "q4_k", "q6_k")):
        return decode_turned(tensors, name, group, shape)
    element, granularity, *rest = NAMES.get(group["codec"], group["codec"]).split("-")
    *stack, rows, columns = [*shape[:-2], *shape[:-3:-1]] if group["transposed"] else shape
    rows *= int(np.prod(stack, dtype=np.int64))
    bits = {"fp8": 8, "fp4": 4}.get(element) or int(element[3:])
    part = lambda suffix: tensors[f"{name}.{suffix}"]
    flat = lambda suffix: part(suffix).reshape(-1, part(suffix).shape[-1])

    codes = unpack(flat("codes"), columns, bits)
    values = {"fp8": fp8, "fp4": lambda codes: FP4[codes]}.get(element, np.float32)(codes)
    zero = np.float32(2 ** (bits - 1) if element.startswith("int") else 0)
    if granularity == "tensor":
        scale = part("tensor_scale")[0]
        zero = part("tensor_zero")[0] if {"asym", "hqq", "min"} & set(rest) else zero
    else:
        block = re.fullmatch(r"(?:block(\d+)x|g)(\d+)", granularity)
        height, width = (int(block[1] or 1), int(block[2])) if block else (1, columns)
        spread = lambda grid: grid.repeat(height, 0)[:rows].repeat(width, 1)[:, :columns]
        scales = flat("scales")
        if "e8m0" in rest:
            scales = np.exp2(scales.astype(np.float32) - 127)
        if "e4m3" in rest:
            scales = scales / part("tensor_scale")[0]
        scale = spread(scales.astype(np.float32))
        if {"asym", "hqq", "min"} & set(rest):
            zeros = unpack(flat("zeros"), scales.shape[1], bits) if "asym" in rest else flat("zeros")
            zero = spread(zeros.astype(np.float32))
    weights = values * scale + zero if "min" in rest else (values - zero) * scale
    if group["outliers"]:
        row = np.repeat(np.arange(rows), np.diff(part("outlier_row_starts")))
        places = part("outlier_columns")
        weights[row, places.view(np.uint16) if places.dtype == np.int16 else places] = part("outlier_values")
    weights = weights.reshape(*stack, -1, columns)
    return weights.swapaxes(-1, -2) if group["transposed"] else weights


def decode_all(folder):
    """Names, codecs and weights of all coded matrices."""
    tensors = read_tensors(folder)
    config = json.loads((folder / "config.json").read_text())
    config = config.get("quantization_config") or {**config["bantam"], "quant_method": "bantam"}
    assert config["quant_method"] == "bantam" and config["version"] in (1, 2), "not a bantam artifact"
    for group in config["groups"]:
        for name, shape in group["tensors"].items():
            yield name, group["codec"], decode(tensors, name, group, shape)


if __name__ == "__main__":
    for name, codec, weights in decode_all(pathlib.Path(sys.argv[1])):
        print(name, codec, weights.shape, f"{np.abs(weights).mean():.6g}")
        if len(sys.argv) > 2:
            np.save(pathlib.Path(sys.argv[2]) / f"{name}.npy", np.ascontiguousarray(weights))
