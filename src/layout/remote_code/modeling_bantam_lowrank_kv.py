"""Llama, Mistral and Qwen2 whose keys and values are thin products, and whose cache holds what stands between them.

A projection W ≈ B·A with A `[R, n]` and B `[group_rows, R]`: the latents x·Aᵀ, R numbers per token, are what the cache
keeps; keys and values come back as latents·Bᵀ + bias, keys are then rotated at their own positions. A group of heads
owns some columns of latents and of B. `config.bantam["lowrank_kv"]` says the rest:

- `window` W: the query of index t sees index j exactly, through the original projections, where j > t − W;
- `cache_bits`: a block of 32 indices [32i, 32i + 31] is seen in that many bits where 32i + 31 ≤ t − W: keys with a least
  value and a scale per channel of the block, values per token and group;
- `absorb_values`: B of the values multiplied into `o_proj`; attention sums latents;
- `layers`: the ranks of the groups, `{}` where a layer is as it was.

Index is the place in the cache, padding on the left included. All of it is the same with a cache and without.
"""

import torch
from torch import nn
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

BLOCK = 32
# Bounds the memory for scores; results do not depend on it.
QUERIES_AT_ONCE = 256


def grow(held, new):
    """Appends tokens; the first dimension of everything here is the batch, the second counts tokens or blocks."""
    return new if held is None else torch.cat((held, new), dim=1)


def rotate(states, rotations):
    """Rotary embedding of `[batch, tokens, heads, head_dim]`, channel i paired with i + head_dim / 2."""
    cosine, sine = (part.unsqueeze(2) for part in rotations)
    first, second = states.chunk(2, dim=-1)
    return states * cosine + torch.cat((-second, first), dim=-1) * sine


class Latents:
    """What one layer holds of its keys, or of its values: `raw` latents of the tokens from `coded` on, codes of those
    before, and the last tokens exactly."""

    PARTS = ("raw", "codes", "scale", "least", "exact")

    def __init__(self, ranks, bits, by_channel):
        self.ranks, self.bits, self.by_channel = ranks, bits, by_channel
        self.raw = self.codes = self.scale = self.least = self.exact = None
        self.first = self.coded = 0  # indices: of the first raw latent, and of the first that has no code

    def encode(self, stop):
        """Gives codes to the whole blocks before index `stop`; their raw latents stay until `settle`."""
        stop = max(stop, 0) // BLOCK * BLOCK
        if not self.bits or stop <= self.coded:
            return
        latents = self.raw[:, self.coded - self.first : stop - self.first]
        wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
        if self.by_channel:
            least, most = wide.unflatten(1, (-1, BLOCK)).aminmax(dim=2)
        else:
            ranges = [group.aminmax(dim=-1) for group in wide.split(self.ranks, dim=-1)]
            least, most = (torch.stack(ends, dim=-1) for ends in zip(*ranges))
        levels = 2**self.bits - 1
        scale, least = ((most - least) / levels).to(latents.dtype), least.to(latents.dtype)
        step = self._spread(scale).to(wide.dtype)
        codes = (wide - self._spread(least)) / torch.where(step == 0, torch.ones_like(step), step)
        codes = codes.round().clamp(0, levels).to(torch.uint8)
        if self.bits == 4:  # two tokens to a byte, the earlier one low
            codes = codes[:, 0::2] | codes[:, 1::2] << 4
        self.codes, self.scale, self.least = grow(self.codes, codes), grow(self.scale, scale), grow(self.least, least)
        self.coded = stop

    def _spread(self, numbers):
        """One number for each latent: from `[batch, blocks, R]` (keys) or `[batch, tokens, groups]` (values)."""
        if self.by_channel:
            return numbers.repeat_interleave(BLOCK, dim=1)
        parts = [numbers[..., group, None].expand(*numbers.shape[:-1], rank) for group, rank in enumerate(self.ranks)]
        return torch.cat(parts, dim=-1)

    def read(self, start, stop, coded=False):
        """Latents of the indices `start..stop`, as their codes give them or raw."""
        if not (coded and self.coded):
            return self.raw[:, start - self.first : stop - self.first]
        codes = self.codes
        if self.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1, 2)
        wide = torch.promote_types(self.scale.dtype, torch.float32)
        numbers = codes.to(wide) * self._spread(self.scale).to(wide) + self._spread(self.least).to(wide)
        return numbers[:, start:stop].to(self.scale.dtype)

    def settle(self, window):
        """Lets go of what no later query sees; copies, because a slice would keep the whole alive."""
        if self.coded > self.first:
            self.raw, self.first = self.raw[:, self.coded - self.first :].clone(), self.coded
        if self.exact is not None and self.exact.shape[1] > window:
            self.exact = self.exact[:, -window:].clone()

    def tensors(self):
        return {part: getattr(self, part) for part in self.PARTS if getattr(self, part) is not None}


class LatentLayer(CacheLayerMixin):
    """The cache of one layer with factors. `length` tokens are in it."""

    is_sliding = False

    def __init__(self, policy, ranks):
        super().__init__()
        self.policy, self.ranks = policy, ranks
        self.reset()

    def reset(self):
        bits = self.policy["cache_bits"]
        self.keys = Latents(self.ranks["key_ranks"], bits, by_channel=True)
        self.values = Latents(self.ranks["value_ranks"], bits, by_channel=False)
        self.length, self.is_initialized = 0, True

    def lazy_initialization(self, key_states, value_states):
        """Nothing: tensors come with the first tokens."""

    def update(self, key_states, value_states, exact_keys=None, exact_values=None):
        """Appends latents `[batch, tokens, R]` and, for the window, exact keys and values `[batch, tokens, heads,
        head_dim]`; then codes every block that the last of these tokens sees in codes."""
        self.length += key_states.shape[1]
        for side, latents, exact in ((self.keys, key_states, exact_keys), (self.values, value_states, exact_values)):
            side.raw = grow(side.raw, latents)
            if exact is not None:
                side.exact = grow(side.exact, exact)
            side.encode(self.length - self.policy["window"])
        return self.keys, self.values

    def settle(self):
        for side in (self.keys, self.values):
            side.settle(self.policy["window"])

    def get_mask_sizes(self, query_length):
        return self.length + query_length, 0

    def get_seq_length(self):
        return self.length

    def get_max_length(self):
        return -1

    def apply(self, function):
        """Replaces every tensor by what the function makes of it."""
        for side in (self.keys, self.values):
            for part, tensor in side.tensors().items():
                setattr(side, part, function(tensor))

    def reorder_cache(self, beam_idx):
        self.apply(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats):
        self.apply(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices):
        self.apply(lambda tensor: tensor[indices, ...])

    def offload(self):
        self.apply(lambda tensor: tensor.to("cpu"))

    def prefetch(self):
        raise NotImplementedError("a cache of latents cannot be offloaded")


class LatentCache(Cache):
    """The cache that these models make for themselves, and the only one they take."""

    def __init__(self, config):
        policy = config.bantam["lowrank_kv"]
        # Layers as they were keep all tokens too, so that one mask fits all; masks alone make sliding windows.
        super().__init__(layers=[LatentLayer(policy, ranks) if ranks else DynamicLayer() for ranks in policy["layers"]])
        self.positions = None

    def place(self, position_ids, count, device):
        """Positions of all tokens, `count` new ones included; held only where they are not simply the indices."""
        length = self.get_seq_length()
        indices = torch.arange(length + count, device=device).unsqueeze(0)
        if position_ids is None:
            position_ids = indices[:, length:]
        if self.positions is None:
            if bool((position_ids == indices[:, length:]).all()):
                return indices
            self.positions = indices[:, :length].int()
        rows = max(len(self.positions), len(position_ids))
        self.positions = grow(self.positions.expand(rows, -1), position_ids.int().expand(rows, -1))
        return self.positions

    def nbytes(self):
        """Bytes of memory that the tensors in it keep alive."""
        tensors = [] if self.positions is None else [self.positions]
        for layer in self.layers:
            if isinstance(layer, LatentLayer):
                tensors += [*layer.keys.tensors().values(), *layer.values.tensors().values()]
            elif layer.is_initialized:
                tensors += [layer.keys, layer.values]
        storages = {storage.data_ptr(): storage.nbytes() for storage in map(torch.Tensor.untyped_storage, tensors)}
        return sum(storages.values())

    def _positions(self, function):
        if self.positions is not None and len(self.positions) > 1:
            self.positions = function(self.positions)

    def reset(self):
        super().reset()
        self.positions = None

    def reorder_cache(self, beam_idx):
        super().reorder_cache(beam_idx)
        self._positions(lambda positions: positions.index_select(0, beam_idx.to(positions.device)))

    def batch_repeat_interleave(self, repeats):
        super().batch_repeat_interleave(repeats)
        self._positions(lambda positions: positions.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices):
        super().batch_select_indices(indices)
        self._positions(lambda positions: positions[indices, ...])


class LowRankAttention(nn.Module):
    """Attention over latents. Shapes: B batch, T queries, N keys, K key/value heads, each for P query heads."""

    def __init__(self, stock, policy, ranks):
        super().__init__()
        self.config, self.layer_idx, self.head_dim = stock.config, stock.layer_idx, stock.head_dim
        self.scaling, self.dropout = stock.scaling, stock.attention_dropout
        self.policy, self.ranks, self.of = policy, ranks, {"k": ranks["key_ranks"], "v": ranks["value_ranks"]}
        self.heads, self.sharing = stock.config.num_key_value_heads, stock.num_key_value_groups
        self.q_proj, self.o_proj = stock.q_proj, stock.o_proj
        self._folded = (None, None)
        for name, of_groups in self.of.items():
            dense = getattr(stock, f"{name}_proj")
            rows = dense.out_features // len(of_groups)
            self.add_module(f"{name}_proj_a", nn.Linear(dense.in_features, sum(of_groups), bias=False))
            self.add_module(f"{name}_proj_b", nn.Linear(sum(of_groups), rows, bias=False))
            if dense.bias is not None:
                self.add_module(f"{name}_proj", nn.ParameterDict({"bias": dense.bias}))
            if policy["window"]:
                self.add_module(f"{name}_proj_exact", nn.Linear(dense.in_features, dense.out_features, bias=False))

    def bias(self, name):
        return getattr(self, f"{name}_proj").bias if hasattr(self, f"{name}_proj") else None

    def expand(self, name, latents):
        """Keys, not yet rotated, or values `[B, N, K, head_dim]` from latents."""
        factors = getattr(self, f"{name}_proj_b").weight.split(self.of[name], dim=1)
        groups = zip(latents.split(self.of[name], dim=-1), factors)
        states = torch.cat([nn.functional.linear(part, factor) for part, factor in groups], dim=-1)
        states = states if self.bias(name) is None else states + self.bias(name)
        return states.unflatten(-1, (self.heads, self.head_dim))

    def exact(self, name, hidden_states):
        """What the original projection gives."""
        weight = getattr(self, f"{name}_proj_exact").weight
        return nn.functional.linear(hidden_states, weight, self.bias(name)).unflatten(-1, (self.heads, self.head_dim))

    def forward(self, hidden_states, position_embeddings, attention_mask=None, past_key_values=None, key_rotations=None,
                **kwargs):
        count, window = hidden_states.shape[1], self.policy["window"]
        if past_key_values is None:  # a cache for this call alone: one way to compute, with a cache and without
            cache, rotations = LatentLayer(self.policy, self.ranks), position_embeddings
        else:
            cache, rotations = past_key_values.layers[self.layer_idx], key_rotations
        first, stop = cache.length, cache.length + count
        queries = rotate(self.q_proj(hidden_states).unflatten(-1, (-1, self.head_dim)), position_embeddings)
        exact = (None, None)
        if window:
            exact = rotate(self.exact("k", hidden_states), position_embeddings), self.exact("v", hidden_states)
        keys, values = cache.update(self.k_proj_a(hidden_states), self.v_proj_a(hidden_states), *exact)

        def rebuilt(start, end, coded):
            """Keys and values (latents of values where `o_proj` has absorbed the rest) of a run of indices."""
            turned = rotate(self.expand("k", keys.read(start, end, coded)), [part[:, start:end] for part in rotations])
            latents = values.read(start, end, coded)
            return start, turned, latents if self.policy["absorb_values"] else self.expand("v", latents)

        # Three views of the past, of which a query sees each index in one: in codes, as latents, exactly.
        raw, near = self.coded_before(first), max(first - window + 1, 0)
        views = [rebuilt(0, self.coded_before(stop - 1), True), rebuilt(raw, max(stop - window, raw), False)]
        if window:
            views.append((near, keys.exact[:, near - stop :], values.exact[:, near - stop :]))
        pieces = []
        for start in range(first, stop, QUERIES_AT_ONCE):
            end = min(start + QUERIES_AT_ONCE, stop)
            mask = None if attention_mask is None else attention_mask[:, :, start - first : end - first]
            pieces.append(self.attend(queries[:, start - first : end - first], views, start, end, mask))
        cache.settle()
        return torch.cat(pieces, dim=1), None

    def coded_before(self, query):
        """The index before which this query sees codes."""
        return max(query + 1 - self.policy["window"], 0) // BLOCK * BLOCK if self.policy["cache_bits"] else 0

    def attend(self, queries, views, start, end, mask):
        """The output `[B, T, hidden]` for the queries of indices `start..end`."""
        window, device = self.policy["window"], queries.device
        runs = [(0, self.coded_before(end - 1)), (self.coded_before(start), max(end - window, 0)),
                (max(start - window + 1, 0), end)]
        runs = [(low, max(low, high)) for low, high in runs[: len(views)]]
        cut = [[part[:, low - begin : high - begin] for part in parts]
               for (begin, *parts), (low, high) in zip(views, runs)]
        keys = torch.cat([part[0] for part in cut], dim=1)
        latent_columns = sum(high - low for low, high in runs[:2])

        t = torch.arange(start, end, device=device).unsqueeze(1)
        coded, latent, exact = (torch.arange(*run, device=device) for run in (*runs, (0, 0))[:3])
        seen_from = (t + 1 - window).div(BLOCK, rounding_mode="floor") * BLOCK if self.policy["cache_bits"] else t * 0
        as_latents = (latent >= seen_from) & (latent <= t - window)
        visible = torch.cat((coded < seen_from, as_latents, exact > t - window), dim=1)
        columns = torch.cat((coded, latent, exact))
        lowest = torch.finfo(queries.dtype).min
        if mask is None:
            mask, visible = torch.zeros((), device=device), visible & (columns <= t)
        else:
            mask = mask[..., columns].unsqueeze(2)
            visible = visible & (mask > lowest / 2)

        grouped = queries.unflatten(2, (self.heads, self.sharing)).permute(0, 2, 3, 1, 4)
        scores = grouped.flatten(2, 3) @ keys.permute(0, 2, 3, 1) * self.scaling
        scores = scores.unflatten(2, (self.sharing, end - start)) + mask
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = nn.functional.softmax(scores.masked_fill(~visible, lowest), dim=-1, dtype=wide)
        # A query that sees nothing is padding: its output, zero, must not depend on how many keys there are.
        weights = weights.masked_fill(~visible, 0).to(queries.dtype)
        weights = nn.functional.dropout(weights, p=self.dropout, training=self.training)
        if self.policy["absorb_values"]:
            return self.sum_latents(weights, [part[1] for part in cut], latent_columns)
        values = torch.cat([part[1] for part in cut], dim=1)
        return self.o_proj(self.weighted(weights, values))

    @staticmethod
    def weighted(weights, values):
        """Sums `[B, N, K, d]` with weights `[B, K, P, T, N]` to `[B, T, K·P·d]`."""
        sums = weights.flatten(2, 3) @ values.permute(0, 2, 1, 3)
        return sums.unflatten(2, weights.shape[2:4]).permute(0, 3, 1, 2, 4).flatten(2)

    def sum_latents(self, weights, values, latent_columns):
        """As `o_proj` of the sum of values, without values for what is held as latents."""
        of_latents, of_exact = weights[..., :latent_columns], weights[..., latent_columns:]
        latents = torch.cat(values[:2], dim=1).split(self.of["v"], dim=-1)
        plain = self.weighted(of_exact, values[2]) if len(values) > 2 else None
        if self.bias("v") is not None:
            bias = of_latents.sum(dim=-1, keepdim=True) * self.bias("v").view(self.heads, 1, 1, self.head_dim)
            bias = bias.permute(0, 3, 1, 2, 4).flatten(2)
            plain = bias if plain is None else plain + bias
        output = self.o_proj(plain) if plain is not None else 0 if self.o_proj.bias is None else self.o_proj.bias
        for part, folded, share in zip(latents, self.folded(), of_latents.chunk(len(self.of["v"]), dim=1)):
            output = output + self.weighted(share.flatten(1, 2).unsqueeze(1), part.unsqueeze(2)) @ folded
        return output

    def folded(self):
        """`o_proj` times B for each query head, by group `[heads of the group · r, hidden]`; made once and kept, but
        never where gradients must reach the factors."""
        weight, factor = self.o_proj.weight, self.v_proj_b.weight
        made_of = [(tensor.data_ptr(), tensor.dtype, 0 if tensor.is_inference() else tensor._version)
                   for tensor in (weight, factor)]
        if self._folded[0] == made_of and not torch.is_grad_enabled():
            return self._folded[1]
        wide = torch.promote_types(weight.dtype, torch.float32)
        by_head = weight.to(wide).view(weight.shape[0], self.heads, self.sharing, self.head_dim)
        groups = zip(by_head.chunk(len(self.of["v"]), dim=1), factor.to(wide).split(self.of["v"], dim=1))
        folded = [torch.einsum("okpd,kdr->kpro", heads, part.unflatten(0, (-1, self.head_dim))).flatten(0, 2)
                  .to(weight.dtype).contiguous() for heads, part in groups]
        if not torch.is_grad_enabled():
            self._folded = (made_of, folded)
        return folded


def place_tokens(model, arguments, named):
    """Before the decoder runs: gives it a cache of latents, and its attention the rotations of all cached keys."""
    past = named.get("past_key_values")
    if past is None:
        uses_cache = named.get("use_cache")
        if not (model.config.use_cache if uses_cache is None else uses_cache):
            return None
        past = named["past_key_values"] = LatentCache(model.config)
    if not isinstance(past, LatentCache):
        raise TypeError(f"a model with low-rank keys and values needs a LatentCache, not a {type(past).__name__}")
    tokens = arguments[0] if arguments else named.get("input_ids")
    tokens = named["inputs_embeds"] if tokens is None else tokens
    positions = past.place(named.get("position_ids"), tokens.shape[1], tokens.device)
    named["key_rotations"] = model.rotary_emb(model.embed_tokens.weight, positions)
    return arguments, named


class LowRankKeysAndValues:
    """What the three models have in common, before the stock class in the order of bases."""

    # Scores of three views stand side by side, which the stock kernels for attention cannot take.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = False
    _can_compile_fullgraph = False

    def __init__(self, config):
        super().__init__(config)
        policy = config.bantam["lowrank_kv"]
        if policy["cache_group"] != BLOCK:
            raise ValueError(f"blocks of {policy['cache_group']} tokens; this file knows blocks of {BLOCK}")
        for layer, ranks in zip(self.model.layers, policy["layers"], strict=True):
            if ranks:
                layer.self_attn = LowRankAttention(layer.self_attn, policy, ranks)
        self.model.register_forward_pre_hook(place_tokens, with_kwargs=True)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *arguments, **named):
        given = generation_config.cache_implementation
        if given not in (None, "dynamic"):
            raise ValueError(f"cache_implementation {given!r}: a model with low-rank keys and values has its own cache")
        if generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = LatentCache(self.config)


class BantamLlamaForCausalLM(LowRankKeysAndValues, LlamaForCausalLM):
    pass


class BantamMistralForCausalLM(LowRankKeysAndValues, MistralForCausalLM):
    pass


class BantamQwen2ForCausalLM(LowRankKeysAndValues, Qwen2ForCausalLM):
    pass
