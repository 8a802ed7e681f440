"""Points of pyramids and rotations back to weights, with NumPy alone; written from bantam.md, used by bantam_decode.py."""

import numpy as np


def words(rows, count, bits):
    """`count` words of `bits` bits from each row of bytes, the least significant bit first; Python's integers."""
    stream = np.unpackbits(rows, axis=-1, bitorder="little")[:, : count * bits].reshape(len(rows), count, bits)
    values = np.zeros((len(rows), count), object)
    for first in range(0, bits, 32):
        part = stream[..., first : first + 32].astype(np.uint64)
        values += (part << np.arange(part.shape[-1], dtype=np.uint64)).sum(-1).astype(object) << first
    return values


def counts(dimension, pulses):
    """V(n, k), the points of n integers whose magnitudes have the sum k: V(n, k) = V(n−1, k) + V(n, k−1) + V(n−1, k−1)."""
    table = [[1] + [0] * pulses]
    for _ in range(dimension):
        row = [1]
        for k in range(1, pulses + 1):
            row.append(table[-1][k] + row[k - 1] + table[-1][k - 1])
        table.append(row)
    return [np.array(row, object) for row in table]


def points(index, dimension, pulses):
    """The points of these indices: coordinates one after the other, values in the order 0, 1, −1, 2, −2, …"""
    table = counts(dimension, pulses)
    left = np.full(len(index), pulses)
    found = np.zeros((len(index), dimension), int)
    for place in range(dimension):
        rest = table[dimension - 1 - place]
        other = index >= rest[left]
        index = np.where(other, index - rest[left], index)
        size = other.astype(int)
        while (more := other & (index >= 2 * rest[left - size])).any():
            index = np.where(more, index - 2 * rest[left - size], index)
            size += more
        negative = other & (index >= rest[left - size])
        index = np.where(negative, index - rest[left - size], index)
        found[:, place] = np.where(negative, -size, size)
        left = left - size
    return found


def pyramid(part, codec, rows, columns):
    """One matrix, as it is stored: rotated."""
    dimension, pulses, gain_bits = (int(field[1:]) for field in codec.split("-")[1:])
    bits = int(counts(dimension, pulses)[dimension][pulses] - 1).bit_length()
    index = words(part("words"), columns, bits).reshape(-1)
    y = points(index, dimension, pulses).reshape(-1, columns, dimension).astype(np.float32)
    level = part("gain_codebook")[words(part("gains"), columns, gain_bits).astype(int)]
    step = (part("column_scales").astype(np.float32) * level) / np.sqrt((y * y).sum(-1))
    return (step[..., None] * y).swapaxes(1, 2).reshape(-1, columns)[:rows]


def signs(count, seed):
    """1 or −1 by the highest bit of splitmix64's outputs."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return np.where((z ^ z >> np.uint64(31)) >> np.uint64(63), -1.0, 1.0)


def paley(order):
    """Paley's Hadamard matrix of an order, over a field of a prime or of its square; None where there is none."""
    for q, second in ((order - 1, False), (order // 2 - 1, True)):
        root = int(round(q**0.5))
        prime = root if root * root == q else q
        if order % 4 or q < 3 or q % 4 != (1 if second else 3) or any(prime % d == 0 for d in range(2, int(prime**0.5) + 1)):
            continue
        plain = {a * a % prime for a in range(1, prime)}
        r = next((r for r in range(2, prime) if r not in plain), 0)
        a, b = np.arange(q) % prime, np.arange(q) // prime
        chi = np.where(np.arange(q) == 0, 0, -1)
        chi[((a * a + b * b * r) % prime + 2 * a * b % prime * prime)[1:]] = 1
        core = chi[(a[:, None] - a) % prime + (b[:, None] - b) % prime * prime]
        edged = np.ones((q + 1, q + 1), int)
        edged[1:, 1:], edged[0, 0], edged[1:, 0] = core, 0, 1 if second else -1
        if second:
            return np.kron(edged, [[1, 1], [1, -1]]) + np.kron(np.eye(q + 1, dtype=int), [[1, -1], [-1, -1]])
        return edged + np.eye(q + 1, dtype=int)
    return None


def rotation(size, seed):
    """Q as a matrix."""
    power, odd = size & -size, size // (size & -size)
    orders = [odd << j for j in range(power.bit_length())] if odd > 1 else []
    found = next((matrix for order in orders if order <= 1024 and (matrix := paley(order)) is not None), None)
    block = np.ones((1, 1)) if found is None else found
    while len(block) < (power if found is None else size):
        block = np.kron(block, [[1, 1], [1, -1]])
    return np.kron(np.eye(size // len(block)), block / len(block) ** 0.5) * signs(size, seed)
