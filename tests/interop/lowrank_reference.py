"""Attention over low-rank keys and values, computed as plainly as the format's page says it: query by query, every
index through the one view that the query has of it, no cache, nothing absorbed. In double precision."""

import json
import pathlib

import numpy
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

BLOCK = 32


def quantized(numbers: numpy.ndarray, bits: int) -> numpy.ndarray:
    """One range of numbers through codes and back; values stay as they are where all are equal."""
    least, most = numbers.min(), numbers.max()
    scale = (most - least) / (2**bits - 1)
    return numbers if scale == 0 else numpy.rint((numbers - least) / scale) * scale + least


def through_codes(latents: torch.Tensor, ranks: list[int], bits: int, by_channel: bool) -> torch.Tensor:
    """Latents `[batch, tokens, R]` of all whole blocks as codes give them; what is behind the last block stays."""
    result = latents.numpy().copy()
    for sequence in result:
        for start in range(0, len(sequence) // BLOCK * BLOCK, BLOCK):
            block = sequence[start : start + BLOCK]
            if by_channel:
                for channel in range(block.shape[1]):
                    block[:, channel] = quantized(block[:, channel], bits)
                continue
            for token in block:
                offset = 0
                for rank in ranks:
                    token[offset : offset + rank] = quantized(token[offset : offset + rank], bits)
                    offset += rank
    return torch.from_numpy(result)


class Reference:
    """The stock model of the dense weights, whose attention is replaced where the artifact has factors."""

    def __init__(self, artifact: pathlib.Path, dense: pathlib.Path):
        self.policy = json.loads((artifact / "config.json").read_text(encoding="utf-8"))["bantam"]["lowrank_kv"]
        shards = [load_file(path) for path in sorted(artifact.glob("*.safetensors"))]
        self.stored = {name: tensor.double() for shard in shards for name, tensor in shard.items()}
        self.model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float64, attn_implementation="eager").eval()
        for index, layer in enumerate(self.model.model.layers):
            if self.policy["layers"][index]:
                layer.self_attn.forward = lambda index=index, module=layer.self_attn, **inputs: (
                    self.attention(module, index, **inputs), None)

    def views(self, module, index: int, name: str, inputs: torch.Tensor) -> list[torch.Tensor]:
        """Keys or values `[batch, heads, tokens, head_dim]` before rotation: in codes, of latents, exact."""
        prefix = f"model.layers.{index}.self_attn.{name}_proj"
        ranks = self.policy["layers"][index]["key_ranks" if name == "k" else "value_ranks"]
        bias = self.stored.get(f"{prefix}.bias", 0)
        factor = self.stored[f"{prefix}_b.weight"]
        latents = inputs @ self.stored[f"{prefix}_a.weight"].T
        bits = self.policy["cache_bits"]
        coded = through_codes(latents, ranks, bits, by_channel=name == "k") if bits else latents
        wide = torch.block_diag(*factor.split(ranks, dim=1))
        states = [coded @ wide.T + bias, latents @ wide.T + bias]
        if self.policy["window"]:
            states.append(inputs @ self.stored[f"{prefix}_exact.weight"].T + bias)
        return [part.unflatten(-1, (-1, module.head_dim)).transpose(1, 2) for part in states]

    def attention(self, module, index: int, hidden_states, position_embeddings, attention_mask, **_):
        shape = (*hidden_states.shape[:2], -1, module.head_dim)
        queries = module.q_proj(hidden_states).view(shape).transpose(1, 2)
        queries, _ = apply_rotary_pos_emb(queries, queries, *position_embeddings)
        keys = self.views(module, index, "k", hidden_states)
        keys = [apply_rotary_pos_emb(part, part, *position_embeddings)[1] for part in keys]
        values = self.views(module, index, "v", hidden_states)
        bits, window = self.policy["cache_bits"], self.policy["window"]
        outputs = []
        for t in range(hidden_states.shape[1]):
            def view(j: int) -> int:
                if j > t - window:
                    return 2
                return 0 if bits and j // BLOCK * BLOCK + BLOCK - 1 <= t - window else 1

            places = [(view(j), j) for j in range(t + 1)]
            seen = [torch.stack([parts[which][:, :, j] for which, j in places], dim=2) for parts in (keys, values)]
            seen = [part.repeat_interleave(module.num_key_value_groups, dim=1) for part in seen]
            scores = torch.einsum("bhd,bhjd->bhj", queries[:, :, t], seen[0]) * module.scaling
            weights = (scores + attention_mask[:, :, t, : t + 1]).softmax(dim=-1)
            outputs.append(torch.einsum("bhj,bhjd->bhd", weights, seen[1]).flatten(1))
        return module.o_proj(torch.stack(outputs, dim=1))
