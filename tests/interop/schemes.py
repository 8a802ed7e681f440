"""What each artifact of the fixture's recipes is read with, and how close the reader must come.

Both numbers compare the reader's model with the dense one that `bantam decode` writes, everything in 32 bits:

- `weight`: largest |reader − decode| over a matrix, as a share of the matrix's largest magnitude;
- `logits`: ‖reader − decode‖ / ‖decode‖ over the logits of all tokens, mean removed per token.

The reader's own arithmetic decides them: see each entry.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    weight: float
    logits: float
    reason: str


# The reader dequantizes in the type asked for, 32 bits: the same products, nothing left to round differently.
EXACT = Tolerance(1e-6, 1e-5, "32-bit arithmetic on both sides")
# compressed-tensors decompresses these formats in 16 bits whatever the model's type is. The values of MX formats,
# a small code times a power of two, fit BF16; NVFP4's product with its scales does not: two roundings, 2⁻⁹ each.
EXACT_IN_BF16 = Tolerance(1e-6, 1e-5, "values are exact in BF16")
ROUNDED_TO_BF16 = Tolerance(2**-8, 5e-3, "the reader decompresses to BF16")
# The package and bantam round each operation to the checkpoint's type, so weights are equal bit for bit; both models then
# run in that type with the same products.
EXACT_IN_OWN_TYPE = Tolerance(0.0, 1e-6, "the same roundings on both sides")
# GPTQModel's kernels for the CPU compute in 16 bits inside.
SIXTEEN_BIT_KERNEL = Tolerance(2**-10, 1e-3, "the reader's kernel computes in 16 bits")

BY_FORMAT = {
    "pack-quantized": EXACT,
    "int-quantized": EXACT,
    "float-quantized": EXACT,
    "mixed-precision": EXACT,
    "mxfp4-pack-quantized": EXACT_IN_BF16,
    "mxfp8-quantized": EXACT_IN_BF16,
    "nvfp4-pack-quantized": ROUNDED_TO_BF16,
    "gptq": SIXTEEN_BIT_KERNEL,
    "gptq_v2": SIXTEEN_BIT_KERNEL,
    "awq": SIXTEEN_BIT_KERNEL,
    "vptq": EXACT_IN_OWN_TYPE,
}

# Formats that compressed-tensors can only load in the checkpoint's own type; widened to 32 bits after loading.
LOAD_IN_OWN_TYPE = {"mxfp4-pack-quantized", "mxfp8-quantized", "nvfp4-pack-quantized"}


def format_of(config: dict) -> str:
    """Names the format of an artifact from its `config.json`; `bantam` for our own layout."""
    quantization = config.get("quantization_config")
    if quantization is None:
        return "dense"
    method = quantization["quant_method"]
    if method == "compressed-tensors":
        return quantization["format"] if "format" in quantization else quantization["sparsity_config"]["format"]
    if method == "gptq":
        return quantization.get("checkpoint_format", "gptq")
    return method


def reader_of(format_name: str) -> str | None:
    """Which reader a format has; `None` where there is none."""
    # compressed-tensors 0.15 and later cannot read the bit masks of earlier versions.
    if format_name in ("bantam", "dense", "sparse-24-bitmask"):
        return "numpy"
    if format_name in ("gptq", "gptq_v2", "awq"):
        return "gptqmodel"
    if format_name == "vptq":
        return "vptq"
    return "compressed-tensors" if format_name in BY_FORMAT else None
