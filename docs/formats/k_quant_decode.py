"""Decodes super-blocks (`q4_k`, `q6_k`) with NumPy; written from bantam.md, and independent of bantam."""

import numpy as np

BYTES = {"q4_k": 144, "q6_k": 210}


def half(blocks, at):
    return np.ascontiguousarray(blocks[:, at:at + 2]).view("<f2").astype(np.float32)


def q4_k(blocks):
    """Super-blocks [n, 144] to weights [n, 256]."""
    packed, codes = blocks[:, 4:16], blocks[:, 16:].reshape(-1, 4, 32)
    high = packed[:, :8] >> 6 << 4
    scales = np.concatenate([packed[:, :4] & 63, packed[:, 8:] & 15 | high[:, :4]], axis=1).astype(np.float32)
    minima = np.concatenate([packed[:, 4:8] & 63, packed[:, 8:] >> 4 | high[:, 4:]], axis=1).astype(np.float32)
    codes = np.stack([codes & 15, codes >> 4], axis=2).reshape(-1, 8, 32).astype(np.float32)
    steps, least = half(blocks, 0) * scales, half(blocks, 2) * minima
    return (steps[:, :, None] * codes - least[:, :, None]).reshape(-1, 256)


def q6_k(blocks):
    """Super-blocks [n, 210] to weights [n, 256]."""
    i = np.arange(256)
    a, b, c, e = i // 128, i // 64 % 2, i // 32 % 2, i % 32
    low = blocks[:, 64 * a + 32 * c + e] >> 4 * b & 15
    high = blocks[:, 128 + 32 * a + e] >> 4 * b + 2 * c & 3
    codes = (low | high << 4).astype(np.float32) - 32
    steps = half(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    return steps.repeat(16, axis=1) * codes


def k_quant(part, codec, rows, columns):
    blocks = part("blocks").reshape(-1, BYTES[codec])
    return {"q4_k": q4_k, "q6_k": q6_k}[codec](blocks).reshape(rows, columns)
