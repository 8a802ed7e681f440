"""Indices of centroids back to weights, with NumPy alone; written from vptq.md, used by bantam_decode.py."""

import re

import numpy as np


def rounded(values, dtype):
    """To the type that the codebooks are stored in, ties to even; in F32."""
    if dtype == "F16":
        return values.astype(np.float16).astype(np.float32)
    if dtype != "BF16":
        return values.astype(np.float32)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return (bits + np.uint32(0x7FFF) + (bits >> 16 & 1) & np.uint32(0xFFFF0000)).view(np.float32)


def streams(words, count, bits):
    """`count` numbers of `bits` bits from each row of 32-bit words, the least significant bit first."""
    stream = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")[:, : count * bits]
    return (stream.reshape(len(words), count, bits).astype(np.int64) << np.arange(bits)).sum(-1)


def vectors(part, codec, dtype, rows, columns):
    """One matrix, as it is stored: rotated where its group says so."""
    number = lambda key, default: int(found[1]) if (found := re.search(rf"-{key}(\d+)(?:-|$)", codec)) else default
    length, main, residual, groups = number("v", 1), number("k", 1), number("r", 0), number("g", 1)
    apart = re.search(r"-o(\d+)v(\d+)k(\d+)", codec)
    outliers = int(apart[1]) if apart else 0
    width, bits, more = (columns - outliers) // groups, main.bit_length() - 1, max(residual, 1).bit_length() - 1
    places = []
    if apart:
        book = part("outlier_centroids.weight").reshape(-1, int(apart[2]))
        index = part("outlier_indices").view(np.uint16)[0]
        places.append(book[index].swapaxes(1, 2).reshape(-1, outliers)[:rows])
    for group in range(groups):
        merged = streams(np.ascontiguousarray(part("indices")[group]), width, bits + more)
        values = part("centroids.weight")[group].reshape(main, length)[merged & main - 1].astype(np.float32)
        if residual:
            book = part("res_centroids.weight")[group].reshape(residual, length)
            values = rounded(values + book[merged >> bits].astype(np.float32), dtype)
        places.append(values.swapaxes(1, 2).reshape(-1, width)[:rows])
    weights = np.concatenate(places, axis=1).astype(np.float32)
    if "-perm" in codec:
        inputs = np.empty_like(weights)
        inputs[:, part("perm").view(np.uint16)] = weights
        weights = inputs
    if "-norm" in codec:
        scaled = rounded(weights * part("weight_scale").astype(np.float32), dtype)
        weights = rounded(scaled + part("weight_bias").astype(np.float32), dtype)
    return weights
