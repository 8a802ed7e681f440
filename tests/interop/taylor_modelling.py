#!/usr/bin/env python3
"""The modelling file of TaylorMLP must compute what the format's page says, for every family that it has a class for.

usage: taylor_modelling.py

Needs one of the environments of `environment.sh`, and no binary: artifacts are written here, of tiny random models and
of polynomials with random coefficients, so that a wrong power, unit, range or sign shows whatever the activation is. The
reference is the stock model in 64 bits with the activations of protected units replaced by their polynomials.
"""

import json
import pathlib
import shutil
import sys
import tempfile

import own_modules  # first: transformers reads what it sets
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import tiny_models
from taylor_with import PARTS

FILE = pathlib.Path(__file__).resolve().parents[2] / "src/layout/remote_code/modeling_bantam_taylor_mlp.py"
PHI = ("PhiForCausalLM", tiny_models.COMMON | {"intermediate_size": 96, "partial_rotary_factor": 0.5})
MODELS = {name: tiny_models.MODELS[name] for name in
          ("llama", "llama-biases", "mistral", "qwen2", "opt-project", "opt-after", "gpt2")} | {"phi": PHI}
ORDER, LIMIT = 5, 1e-5
# Layer by layer: none protected, some, all.
SHARES = (0.0, 0.6, 1.0)


class Layer:
    """A protected layer: its stored tensors, and the stock layer made to compute the same."""

    def __init__(self, model: torch.nn.Module, down: str, share: float, hardened: bool, seed: int):
        generator = torch.Generator().manual_seed(seed)
        parent, leaf = down.rsplit(".", 1)
        gate, up = PARTS[leaf]
        modules = dict(model.named_modules())
        self.gate, self.down = modules[f"{parent}.{gate}"], modules[down]
        self.up = modules[f"{parent}.{up}"] if up else None
        turned = isinstance(self.down, transformers.pytorch_utils.Conv1D)
        weight = self.down.weight.detach().double()
        weight = weight.T if turned else weight
        hidden, intermediate = weight.shape
        self.units = torch.randperm(intermediate, generator=generator)[: round(share * intermediate)].sort().values
        count = len(self.units)

        def random(*shape: int) -> torch.Tensor:
            # What is stored in 32 bits is what both sides compute with.
            return torch.randn(shape, generator=generator).double()

        self.coefficients, self.point = random(ORDER + 1, count), random(count)
        self.scale, half = 1 + random(count).abs(), 0.5 + random(count).abs()
        # Narrow enough that some arguments lie outside.
        self.low, self.high = (self.point - half).float().double(), (self.point + half).float().double()
        terms = weight[:, self.units] * self.coefficients[:, None]
        others = torch.ones(intermediate, dtype=torch.bool)
        others[self.units] = False
        self.stored = {"units": self.units.int(), "points.weight": torch.stack(
            [self.point, self.scale, self.low, self.high]).float()}
        if share < 1:
            self.stored["plain.weight"] = weight[:, others].float().contiguous()
        if hardened:
            merged = terms[0] @ self.up.weight.detach().double()[self.units] if up else terms[0].sum(dim=1)
            self.stored["merged.weight"] = merged.float()
        self.stored["terms.weight"] = terms[hardened:].float().contiguous()
        # Merged terms know nothing of a bias of the other factor.
        self.first = self.coefficients[0] * self.up.bias.detach().double()[self.units] \
            if hardened and up and self.up.bias is not None else None

    def watch(self) -> None:
        """Has the stock layer's down projection get the polynomials' values."""
        kept = {}
        self.gate.register_forward_hook(lambda _, inputs, z: kept.update(z=z))
        if self.up is not None:
            self.up.register_forward_hook(lambda _, inputs, u: kept.update(u=u))

        def replace(_, inputs: tuple) -> tuple:
            z = kept["z"].reshape(inputs[0].shape)[..., self.units]
            s = (torch.minimum(torch.maximum(z, self.low), self.high) - self.point) / self.scale
            value = sum(coefficient * s**power for power, coefficient in enumerate(self.coefficients))
            h = inputs[0].clone()
            h[..., self.units] = value if self.up is None else value * kept["u"][..., self.units]
            if self.first is not None:
                h[..., self.units] -= self.first
            return (h,)

        self.down.register_forward_pre_hook(replace)


def write(model: torch.nn.Module, layers: list[Layer | None], downs: list[str], hardened: bool, folder: pathlib.Path) -> None:
    state = {name: tensor.float().clone().contiguous() for name, tensor in model.state_dict().items()}
    for name in list(model.all_tied_weights_keys):
        state.pop(name, None)
    for down, layer in zip(downs, layers):
        if layer is not None:
            del state[f"{down}.weight"]
            state |= {f"{down}_{what}": tensor for what, tensor in layer.stored.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    own = f"Bantam{type(model).__name__}"
    settings = {"order": ORDER, "hardened": hardened,
                "layers": [{} if layer is None else {"units": len(layer.units)} for layer in layers]}
    config |= {"architectures": [own], "auto_map": {"AutoModelForCausalLM": f"{FILE.stem}.{own}"}, "dtype": "float32",
               "bantam": {"version": 1, "groups": [], "taylor_mlp": settings}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copy(FILE, folder)


@torch.no_grad()
def compare(name: str, hardened: bool, folder: pathlib.Path) -> tuple[float, float, list[str]]:
    """The relative difference from the reference, how far the reference is from the stock model, and what is wrong."""
    class_name, values, *_ = MODELS[name]
    seed = sum(name.encode())
    stock = getattr(transformers, class_name)(tiny_models.config_of(class_name, values)).eval()
    tiny_models.shake(stock, seed)
    ids = torch.randint(0, tiny_models.VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(seed))
    stock.double()
    dense = stock(ids).logits
    downs = [path for path, _ in stock.named_modules() if path.rsplit(".", 1)[-1] in PARTS or path.endswith("mlp.c_proj")]
    downs = [path for path in downs if ".attn." not in path]
    layers = [Layer(stock, down, share, hardened, seed + index) if share else None
              for index, (down, share) in enumerate(zip(downs, SHARES, strict=True))]
    write(stock, layers, downs, hardened, folder)
    for layer in filter(None, layers):
        layer.watch()
    expected = stock(ids).logits

    own, found = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    problems = [f"{key}: {sorted(names)}" for key, names in found.items() if names]
    logits = own.eval()(ids).logits.double()
    if not torch.equal(own(ids[:, :8], use_cache=False).logits, own(ids[:, :8]).logits):
        problems.append("with and without a cache differ")
    norm = torch.linalg.vector_norm
    half = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
    kept = {tensor.dtype for path, tensor in half.named_parameters() if "_terms" in path or "_points" in path}
    if kept != {torch.float32}:
        problems.append(f"terms and points are {kept} in a model of BF16")
    return (norm(logits - expected) / norm(expected)).item(), (norm(expected - dense) / norm(dense)).item(), problems


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    print(f"transformers {transformers.__version__}, limit {LIMIT:.0e}\n\n{'model':14} {'hardened':9} {'difference':11} to stock")
    failures = 0
    for name in MODELS:
        for hardened in (False, True):
            with tempfile.TemporaryDirectory(prefix="bantam-modelling-") as scratch:
                difference, to_stock, problems = compare(name, hardened, pathlib.Path(scratch))
            if not difference <= LIMIT:
                problems.append("logits differ")
            if not to_stock > 100 * LIMIT:
                problems.append("the polynomials change nothing: the comparison proves nothing")
            failures += bool(problems)
            verdict = f"FAILED: {'; '.join(problems)}" if problems else "ok"
            print(f"{name:14} {'yes' if hardened else 'no':9} {difference:<11.1e} {to_stock:<8.1e} {verdict}", flush=True)
    print(f"\n{'all passed' if failures == 0 else f'{failures} failed'}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
