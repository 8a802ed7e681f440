#!/usr/bin/env python3
"""TaylorMLP artifacts of layout `remote-code` must run in transformers as `bantam eval` says, near what they were made from.

usage: remote_taylor.py --bantam BINARY --gptqmodel PYTHON --compressed-tensors PYTHON [--only GLOB] [--keep DIR]

Artifacts of the fixture at every even order from 2 to 12, and of one tiny random model of every family, plain and
hardened, are loaded with `trust_remote_code`, most of them in both environments, whose transformers differ. Compared:
logits and perplexity with `bantam eval`; every layer's outputs with the source's, within the bound that the manifest
states; the file's tensors with the source's, of whose protected columns none may be there. Greedy tokens are counted up
to the first that differs. Run it with the first Python that `environment.sh` prints.
"""

import argparse
import fnmatch
import json
import pathlib
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy
from safetensors.numpy import load_file, save_file

import architectures
import evaluation
import run

# Of logits (mean removed per token) and perplexity, relative: both sides compute in 32 bits, in another order.
LOGITS, PERPLEXITY = 1e-5, 1e-5
ORDERS = range(2, 13, 2)
WIDE = {"basis": "chebyshev"}
# Power series of activations that range widely converge on a part of the range only.
NARROW = {"basis": "taylor", "deviations": 1.5}
# Of `tiny_models.py`: one of every family with a class of its own that bantam has a forward pass of.
FAMILIES = ["llama-biases", "mistral", "qwen2", "opt-project", "gpt2"]
WINDOWS = 8


@dataclass(frozen=True)
class Case:
    """An artifact to make; `everywhere`: to be read in both environments, and not in the first alone."""

    name: str
    model: pathlib.Path
    context: int
    settings: dict
    fixture: bool = False
    everywhere: bool = True
    greedy: bool = False


def cases() -> list[Case]:
    def of_fixture(name: str, settings: dict, **options: bool) -> Case:
        return Case(name, run.SOURCE, evaluation.CONTEXT, settings, True, **options)

    found = [of_fixture(f"chebyshev-{order}", WIDE | {"order": order}, everywhere=order == 8) for order in ORDERS]
    # Wide enough for all that the model meets while it generates: every greedy token is the source's.
    found.append(of_fixture("chebyshev-12-wide", WIDE | {"order": 12, "margin": 0.3}, everywhere=False, greedy=True))
    found.append(of_fixture("taylor-8", {"order": 8, "deviations": 2.0}))
    found.append(of_fixture("hardened-8", WIDE | {"order": 8, "hardened": True}))
    for family in FAMILIES:
        model = architectures.model_folder(family) / "model"
        found.append(Case(f"{family}-taylor", model, 24, NARROW | {"order": 8}))
        if family != "llama-biases":  # merged terms of power zero have no place for biases of up-projections: refused
            found.append(Case(f"{family}-hardened", model, 24, WIDE | {"order": 8, "units": 1.0, "hardened": True}))
    return found


def calibration_text(case: Case, folder: pathlib.Path) -> list[str]:
    """Text for the fixture that the windows are not from; random tokens for a random model."""
    if case.fixture:
        pages = ("recipe", "rtn", "models", "cli", "performance")
        return [str(run.ROOT / "fixtures" / "text" / f"{page}.txt") for page in pages]
    path = folder / "calibration.safetensors"
    ids = numpy.random.default_rng(0).integers(0, 96, (64, case.context))
    save_file({"ids": ids.astype(numpy.int64)}, path)
    return [str(path)]


def recipe(case: Case, folder: pathlib.Path) -> pathlib.Path:
    settings = "\n".join(f"{key} = {json.dumps(value)}" for key, value in case.settings.items())
    path = folder / "recipe.toml"
    path.write_text(f"""schema = 1
model = {json.dumps(str(case.model))}

[calibration]
text = {json.dumps(calibration_text(case, folder))}
sequences = 64
sequence_length = {case.context}

[[pass]]
use = "taylor_mlp"
{settings}

[artifact]
out = "artifact"
layout = "remote-code"
""", encoding="utf-8")
    return path


def bounds(artifact: pathlib.Path) -> dict[str, float]:
    """What the manifest states of every down projection: the largest error of a unit's polynomial over its range."""
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    return {tensor["name"].removesuffix(".weight"): tensor["expansion"]["largest_error"]
            for tensor in manifest["tensors"] if "expansion" in tensor}


def make(binary: str, case: Case, folder: pathlib.Path, windows: pathlib.Path) -> dict:
    """The job of a case, with what `bantam eval` gives for it; or with `failure`."""
    folder.mkdir(parents=True)
    artifact, ours = folder / "artifact", folder / "ours.safetensors"
    job = {"name": case.name, "artifact": str(artifact), "source": str(case.model), "windows": str(windows),
           "everywhere": case.everywhere, "greedy": case.greedy}
    job["failure"] = run.bantam(binary, "run", str(recipe(case, folder)), "--out", str(artifact), "--no-progress")
    if job["failure"] is None:
        try:
            report = evaluation.evaluate(binary, str(artifact), "--text", str(windows), "--context", str(case.context),
                                         "--save-logits", str(ours))
            job |= {"perplexity": report["perplexity"], "ours": str(ours), "bounds": bounds(artifact)}
        except (RuntimeError, OSError, KeyError) as error:
            job["failure"] = str(error)
    return job


def compare(job: dict, result: dict) -> dict:
    """Adds what was found to the job."""
    figures = result["figures"]
    problems = [result["message"]] if result["message"] else []
    if figures:
        ours, theirs = (evaluation.centred(load_file(path)["logits"]) for path in (job["ours"], result["logits"]))
        norm = numpy.linalg.norm
        figures |= {"logits": norm(ours - theirs) / norm(theirs),
                    "ours": abs(job["perplexity"] / figures["perplexity"] - 1)}
        problems += [f"{what} differ by {figures[key]:.1e}"
                     for what, key, limit in (("logits", "logits", LOGITS), ("perplexities", "ours", PERPLEXITY))
                     if not figures[key] <= limit]
        if job["greedy"] and figures["greedy"] != 1:
            problems.append(f"{figures['greedy']:.4f} of greedy tokens are the source's")
    return job | {"figures": figures, "failure": "; ".join(problems) or None}


def report(jobs: list[dict]) -> int:
    columns = {"logits": ".1e", "ours": ".1e", "bound": ".3f", "to_source": ".1e", "outside": ".5f", "agreement": ".4f",
               "greedy": ".4f"}
    rows = [["artifact", "transformers", "logits", "perplexity", "of bound", "to source", "clamped", "best token",
             "greedy", ""]]
    for job in jobs:
        figures = job.get("figures") or {}
        numbers = [f"{figures[key]:{form}}" if figures.get(key) is not None else "–" for key, form in columns.items()]
        rows.append([job["name"], job.get("reader", "–"), *numbers, f"FAILED: {job['failure']}" if job["failure"] else "ok"])
    run.table(rows)
    return sum(bool(job["failure"]) for job in jobs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bantam", required=True, help="the binary under test")
    parser.add_argument("--gptqmodel", required=True, help="Python with one version of transformers")
    parser.add_argument("--compressed-tensors", required=True, help="Python with another")
    parser.add_argument("--only", default="*", help="artifacts whose name matches")
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the artifacts, kept afterwards")
    arguments = parser.parse_args()

    folder = (arguments.keep or pathlib.Path(tempfile.mkdtemp(prefix="bantam-taylor-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _, text = evaluation.write_text(folder)
        windows = folder / "windows.safetensors"
        save_file({"ids": load_file(text)["ids"][:WINDOWS]}, windows)
        jobs = [make(arguments.bantam, case, folder / case.name,
                     windows if case.fixture else case.model.parent / "ids.safetensors")
                for case in cases() if fnmatch.fnmatch(case.name, arguments.only)]
        pythons = {"gptqmodel": arguments.gptqmodel, "compressed-tensors": arguments.compressed_tensors}

        def read(reader: str) -> list[dict]:
            own = folder / reader
            own.mkdir()
            mine = [job | {"logits": str(own / f"{job['name']}.safetensors")} for job in jobs
                    if not job["failure"] and (job["everywhere"] or reader == "gptqmodel")]
            results = {result["name"]: result for result in run.read(pythons[reader], "taylor_with.py", mine, own)}
            return [compare(job, results[job["name"]] | {"logits": job["logits"]}) | {"reader": reader} for job in mine]

        with ThreadPoolExecutor() as pool:
            compared = [job for answers in pool.map(read, pythons) for job in answers]
        failures = report([job for job in jobs if job["failure"]] + compared)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{'all passed' if failures == 0 else f'{failures} failed'}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
