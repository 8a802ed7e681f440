"""Runs models of which bantam stored the MLP's down projection as terms of a polynomial (pass `taylor_mlp`).

With z the input of the activation and u what the activation is multiplied with (1 where there is no such gate), a
protected layer computes

    y = plain · (activation(z) ∘ u) + Σ_n terms[n] · (s^n ∘ u) + bias,    s = (clamp(z, low, high) − point) / scale,

the sum over the protected units, the first product over all others. Powers grow by one product per order, and all of
the sum is in 32 bits. A hardened layer has its zeroth terms merged, `merged · x`, and `terms` begin with n = 1.

`config.json` has the settings under `bantam.taylor_mlp`: `order`, `hardened`, and `layers`, of each layer either `{}` or
`{"units": how many are protected}`. With P the down projection's name, the file has `P_terms.weight [terms, hidden,
units]`, `P_points.weight [4, units]` (point, scale, low, high), `P_units [units]`, and where there are such parts
`P_plain.weight [hidden, other units]`, `P_merged.weight` and `P.bias`.

This makes a model slower and its weights less handy. It does not protect them: `bantam audit` recovers them.
"""

import torch
from torch import nn
from transformers import (
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MistralForCausalLM,
    OPTForCausalLM,
    PhiForCausalLM,
    Qwen2ForCausalLM,
)
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.opt.modeling_opt import OPTDecoderLayer
from transformers.models.phi.modeling_phi import PhiMLP

# What is kept in 32 bits whatever the type of the model.
SINGLE = ["_terms.weight", "_points.weight", "_merged.weight"]


class Stored(nn.Module):
    """A stored tensor, under the name that it has in the file."""

    def __init__(self, shape: tuple, dtype: torch.dtype | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape, dtype=dtype))


class Bias(nn.Module):
    """What is left of a down projection."""

    def __init__(self, bias: nn.Parameter | None):
        super().__init__()
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.bias is None else x + self.bias


class Protected:
    """Of a module that holds a down projection: stores and evaluates the polynomial instead."""

    def withhold(self, down: str, hidden: int, intermediate: int, settings: dict, layer: dict, gated: bool) -> None:
        """Puts what the file has in place of the projection `down`."""
        units, single = layer["units"], torch.float32
        parts = {
            "terms": Stored((settings["order"] + (not settings["hardened"]), hidden, units), single),
            "points": Stored((4, units), single),
        }
        if settings["hardened"]:
            parts["merged"] = Stored((hidden, hidden) if gated else (hidden,), single)
        if units < intermediate:
            parts["plain"] = Stored((hidden, intermediate - units))
        for name, part in parts.items():
            self.add_module(f"{down}_{name}", part)
        self.register_buffer(f"{down}_units", torch.zeros(units, dtype=torch.int32))
        setattr(self, down, Bias(getattr(self, down).bias))
        self._down, self._intermediate, self._others = down, intermediate, None

    def stored(self, part: str) -> torch.Tensor | None:
        module = getattr(self, f"{self._down}_{part}", None)
        return None if module is None else module.weight

    def others(self, units: torch.Tensor) -> torch.Tensor:
        """The units that are not protected, ascending; found once on every device."""
        if self._others is None or self._others.device != units.device:
            plain = torch.ones(self._intermediate, dtype=torch.bool, device=units.device)
            plain[units] = False
            self._others = plain.nonzero().flatten()
        return self._others

    def polynomial(self, z: torch.Tensor, u: torch.Tensor | None, x: torch.Tensor | None) -> torch.Tensor:
        """The protected units' share of the output, `[tokens, hidden]` in 32 bits, of their `z` and `u`."""
        point, scale, low, high = self.stored("points")
        terms, merged = self.stored("terms"), self.stored("merged")
        s = (torch.minimum(torch.maximum(z.float(), low), high) - point) / scale
        power = torch.ones_like(s) if u is None else u.float()
        if merged is None:
            first, rest = terms[0], terms[1:]
            total = power @ first.T
        else:
            rest = terms
            total = merged if x is None else x.float() @ merged.T
        for term in rest:
            power = power * s
            total = torch.addmm(total, power, term.T)
        return total

    def project(
        self, activation, z: torch.Tensor, u: torch.Tensor | None = None, x: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The output without bias, of the activation's input, the gated values and the MLP's input where it is gated."""
        shape, z = z.shape[:-1], z.flatten(0, -2)
        u, x = (None if values is None else values.flatten(0, -2) for values in (u, x))
        units = getattr(self, f"{self._down}_units").long()
        with torch.autocast(z.device.type, enabled=False):
            y = self.polynomial(z[:, units], None if u is None else u[:, units], x).to(z.dtype)
        plain = self.stored("plain")
        if plain is not None:
            others = self.others(units)
            h = activation(z[:, others])
            y = y + nn.functional.linear(h if u is None else h * u[:, others], plain)
        return y.unflatten(0, shape)


class GatedMLP(Protected, nn.Module):
    """That of Llama, Mistral and Qwen2."""

    def __init__(self, mlp: nn.Module, settings: dict, layer: dict):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act_fn
        self.withhold("down_proj", mlp.hidden_size, mlp.intermediate_size, settings, layer, gated=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.project(self.act_fn, self.gate_proj(x), self.up_proj(x), x))


class ProtectedPhiMLP(Protected, PhiMLP):
    def __init__(self, config, settings: dict, layer: dict):
        super().__init__(config)
        self.withhold("fc2", config.hidden_size, config.intermediate_size, settings, layer, gated=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.project(self.activation_fn, self.fc1(x)))


class ProtectedGPT2MLP(Protected, GPT2MLP):
    def __init__(self, config, settings: dict, layer: dict):
        intermediate = config.n_inner or 4 * config.hidden_size
        super().__init__(intermediate, config)
        self.withhold("c_proj", config.hidden_size, intermediate, settings, layer, gated=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.c_proj(self.project(self.act, self.c_fc(x))))


class ProtectedOPTLayer(Protected, OPTDecoderLayer):
    """The stock layer computes `fc2(activation_fn(fc1(x)))` itself: here its activation does the projection's work."""

    def __init__(self, config, index: int, settings: dict, layer: dict):
        super().__init__(config, index)
        self.own_activation_fn = self._modules.pop("activation_fn")
        self.withhold("fc2", config.hidden_size, config.ffn_dim, settings, layer, gated=False)

    def activation_fn(self, z: torch.Tensor) -> torch.Tensor:
        return self.project(self.own_activation_fn, z)


def protected(config):
    """Gives index, settings of the pass and what is stored of each protected layer."""
    settings = config.bantam["taylor_mlp"]
    for index, layer in enumerate(settings["layers"]):
        if layer:
            yield index, settings, layer


class Gated:
    _keep_in_fp32_modules_strict = SINGLE

    def __init__(self, config):
        super().__init__(config)
        for index, settings, layer in protected(config):
            block = self.model.layers[index]
            block.mlp = GatedMLP(block.mlp, settings, layer)


class BantamLlamaForCausalLM(Gated, LlamaForCausalLM):
    pass


class BantamMistralForCausalLM(Gated, MistralForCausalLM):
    pass


class BantamQwen2ForCausalLM(Gated, Qwen2ForCausalLM):
    pass


class BantamPhiForCausalLM(PhiForCausalLM):
    _keep_in_fp32_modules_strict = SINGLE

    def __init__(self, config):
        super().__init__(config)
        for index, settings, layer in protected(config):
            self.model.layers[index].mlp = ProtectedPhiMLP(config, settings, layer)


class BantamGPT2LMHeadModel(GPT2LMHeadModel):
    _keep_in_fp32_modules_strict = SINGLE

    def __init__(self, config):
        super().__init__(config)
        for index, settings, layer in protected(config):
            self.transformer.h[index].mlp = ProtectedGPT2MLP(config, settings, layer)


class BantamOPTForCausalLM(OPTForCausalLM):
    _keep_in_fp32_modules_strict = SINGLE
    _no_split_modules = ["OPTDecoderLayer", "ProtectedOPTLayer"]

    def __init__(self, config):
        super().__init__(config)
        for index, settings, layer in protected(config):
            self.model.decoder.layers[index] = ProtectedOPTLayer(config, index, settings, layer)
