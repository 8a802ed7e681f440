#!/usr/bin/env python3
"""What transformers computes with a TaylorMLP artifact of layout `remote-code`, next to the model that it was made from.

usage: taylor_with.py JOBS.json RESULTS.json

Runs inside either environment of environment.sh. A job: {"name", "artifact", "source", "windows", "logits", "bounds"},
windows a safetensors file of token ids, logits where to write the artifact's, bounds the largest error of a unit's
polynomial over its range by down projection, as stated by bantam. A result: {"name", "passed", "figures", "message"}.
"""

import math
import pathlib

import own_modules  # first: transformers reads what it sets
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN

from jobs import answer

torch.set_num_threads(1)
# The names of down projections, of what the activation's input comes from, and of what it is multiplied with.
GATED, UNGATED = {"down_proj": ("gate_proj", "up_proj")}, {"fc2": ("fc1", None), "c_proj": ("c_fc", None)}
PARTS = GATED | UNGATED
# Of sums in 32 bits, as a share of the sum of magnitudes.
ROUNDING = 1e-5


def load(folder: str) -> tuple[torch.nn.Module, list[str]]:
    """The model, and the names of tensors that it and the file do not agree on."""
    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True,
                                                        output_loading_info=True)
    return model.eval(), sorted(str(name) for names in found.values() for name in names)


class Tensors:
    """The tensors of a folder; matrices as `[outputs, inputs]`."""

    def __init__(self, folder: str):
        self.stored = {name: tensor for path in sorted(pathlib.Path(folder).glob("*.safetensors"))
                       for name, tensor in load_file(path).items()}

    def weight(self, module: str) -> torch.Tensor:
        weight = self.stored[f"{module}.weight"]
        return weight.T if module.rsplit(".", 1)[1].startswith("c_") else weight

    def bias(self, module: str) -> torch.Tensor:
        return self.stored.get(f"{module}.bias", torch.zeros(len(self.weight(module))))

    def protected(self) -> list[str]:
        """The down projections that are stored as terms."""
        return [name.removesuffix("_units") for name in self.stored if name.endswith("_units")]


def withheld(artifact: Tensors, source: Tensors) -> list[str]:
    """What is wrong with the file: nothing of a protected unit's dense column may be in it."""
    problems = []
    for down in artifact.protected():
        dense, units = source.weight(down), artifact.stored[f"{down}_units"].long()
        others = torch.ones(dense.shape[1], dtype=torch.bool)
        others[units] = False
        plain = artifact.stored.get(f"{down}_plain.weight", dense[:, :0])
        if plain.shape != dense[:, others].shape or not torch.equal(plain, dense[:, others]):
            problems.append(f"{down}_plain.weight is not the columns of the other units")
        columns = {column.float().numpy().tobytes() for column in dense[:, units].T}
        block = down[: down.rindex(".")]
        for name, tensor in artifact.stored.items():
            if name == f"{down}.weight" or not name.startswith(block) or tensor.dim() < 2:
                continue
            for rows in (tensor.float(), tensor.float().mT):
                found = {row.numpy().tobytes() for row in rows.flatten(0, -2)} if rows.shape[-1] == len(dense) else set()
                if found & columns:
                    problems.append(f"{name} has a protected unit's column")
        if f"{down}.weight" in artifact.stored:
            problems.append(f"{down}.weight is in the file")
    return problems


class Watched:
    """The inputs and outputs of an artifact's protected MLPs while it runs."""

    def __init__(self, model: torch.nn.Module, downs: list[str]):
        modules = dict(model.named_modules())
        self.inputs, self.outputs = {}, {}
        for down in downs:
            path = down if down in modules else f"{model.base_model_prefix}.{down}"
            parent, leaf = path.rsplit(".", 1)
            modules[f"{parent}.{PARTS[leaf][0]}"].register_forward_hook(
                lambda _, inputs, output, down=down: self.keep(self.inputs, down, inputs[0]))
            modules[path].register_forward_hook(
                lambda _, inputs, output, down=down: self.keep(self.outputs, down, output))

    @staticmethod
    def keep(where: dict, down: str, values: torch.Tensor) -> None:
        where.setdefault(down, []).append(values.flatten(0, -2).double())


def ranges(artifact: Tensors, source: Tensors, down: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The protected units of the source, and their ranges as the source sees them: rows of the gate may be multiplied
    with a power of two and its sign, and units may have changed places among themselves."""
    gate = f"{down.rsplit('.', 1)[0]}.{PARTS[down.rsplit('.', 1)[1]][0]}"
    units = artifact.stored[f"{down}_units"].long()
    ours, theirs = artifact.weight(gate)[units].double(), source.weight(gate)[units].double()
    cosine = torch.nn.functional.normalize(ours) @ torch.nn.functional.normalize(theirs).T
    place = cosine.abs().argmax(dim=1)
    factor = (ours * theirs[place]).sum(dim=1) / theirs[place].square().sum(dim=1)
    bias, own_bias = source.bias(gate)[units][place].double(), artifact.bias(gate)[units].double()
    ends = (artifact.stored[f"{down}_points.weight"][2:].double() - own_bias) / factor + bias
    return units[place], ends.min(dim=0).values, ends.max(dim=0).values


def against_bound(watched: Watched, artifact: Tensors, source: Tensors, down: str, activation, bound: float) -> dict:
    """The error of a layer's outputs on the inputs that it met, as a share of what the stated bound allows: for output i
    and token t the sum over protected units j of |W_ij| |u_j| (bound + what clamping takes away) and rounding."""
    parent, leaf = down.rsplit(".", 1)
    gate, up = PARTS[leaf]
    x, y = torch.cat(watched.inputs[down]), torch.cat(watched.outputs[down])
    z = x @ source.weight(f"{parent}.{gate}").double().T + source.bias(f"{parent}.{gate}").double()
    u = torch.ones_like(z)
    if up:
        u = x @ source.weight(f"{parent}.{up}").double().T + source.bias(f"{parent}.{up}").double()
    weight, h = source.weight(down).double(), activation(z) * u
    error = (y - h @ weight.T - source.bias(down).double()).abs()
    units, low, high = ranges(artifact, source, down)
    z, u = z[:, units], u[:, units].abs()
    within = torch.minimum(torch.maximum(z, low), high)
    clamped = (activation(z) - activation(within)).abs()
    allowed = (u * (bound + clamped)) @ weight[:, units].abs().T + ROUNDING * (h.abs() @ weight.abs().T)
    return {"share": (error / allowed).max().item(), "outside": (z != within).double().mean().item()}


@torch.no_grad()
def greedy(model: torch.nn.Module, prompts: torch.Tensor, count: int) -> torch.Tensor:
    out = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=count,
                         min_new_tokens=count, pad_token_id=0)
    return out[:, prompts.shape[1]:]


@torch.no_grad()
def compare(job: dict) -> dict:
    windows = load_file(job["windows"])["ids"]
    (model, disagreed), (original, _) = load(job["artifact"]), load(job["source"])
    artifact, source = Tensors(job["artifact"]), Tensors(job["source"])
    downs = artifact.protected()
    problems = [f"{name}: file and model do not agree" for name in disagreed] + withheld(artifact, source)
    if not downs:
        problems.append("no layer is protected")

    half = windows.shape[1] // 2
    tokens, wanted = (greedy(one, windows[:, :half], half) for one in (model, original))
    # What comes after the first difference follows from other text.
    same = (tokens == wanted).long().cumprod(dim=1).double().mean().item()

    watched = Watched(model, downs)
    logits, expected = (torch.cat([one(batch, use_cache=False).logits.float() for batch in windows.split(8)])
                        for one in (model, original))
    config = original.config
    activation = ACT2FN[getattr(config, "hidden_act", None) or config.activation_function]
    shares = {down: against_bound(watched, artifact, source, down, activation, job["bounds"][down]) for down in downs}
    worst = max(shares, key=lambda down: shares[down]["share"], default=None)
    if worst and not shares[worst]["share"] <= 1:
        problems.append(f"{worst}: outputs differ by {shares[worst]['share']:.2f} of what the stated bound allows")
    save_file({"logits": logits}, job["logits"])

    centred = [values.double() - values.double().mean(dim=-1, keepdim=True) for values in (logits, expected)]
    norm = torch.linalg.vector_norm
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].double().flatten(0, 1), windows[:, 1:].flatten())
    figures = {"perplexity": math.exp(loss.item()), "to_source": (norm(centred[0] - centred[1]) / norm(centred[1])).item(),
               "bound": shares[worst]["share"] if worst else None, "greedy": same,
               "outside": max((share["outside"] for share in shares.values()), default=None),
               "agreement": (logits.argmax(-1) == expected.argmax(-1)).double().mean().item()}
    return {"name": job["name"], "passed": not problems, "figures": figures, "message": "; ".join(problems)}


if __name__ == "__main__":
    answer(compare)
