"""Kept weights and their places back to a matrix, with NumPy alone; written from bantam.md, used by bantam_decode.py."""

import re

import numpy as np


def sparse(part, codec, rows, columns):
    """The matrix, [rows, columns]; `part` gives the stored tensors `values` and `indices`."""
    keep, of = map(int, re.fullmatch(r"mask-(\d)of(\d)", codec).groups())
    groups, bits = columns // of, (of - 1).bit_length()
    count = groups * keep
    stream = np.unpackbits(part("indices"), axis=-1, bitorder="little")[:, : count * bits]
    places = (stream.reshape(rows, count, bits) << np.arange(bits, dtype=np.uint8)).sum(-1).astype(np.int64)
    at = places + (np.arange(count) // keep * of)[None, :]
    values = part("values").astype(np.float32)
    matrix = np.zeros((rows, columns), np.float32)
    np.put_along_axis(matrix, at, values[:, :count], axis=1)
    matrix[:, groups * of :] = values[:, count:]
    return matrix
