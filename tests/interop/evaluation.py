#!/usr/bin/env python3
"""`bantam eval` must give the logits and the perplexity that transformers gives, for dense models and for artifacts.

usage: evaluation.py --bantam BINARY --gptqmodel PYTHON --compressed-tensors PYTHON [--only GLOB] [--keep DIR]

Makes the artifact of every recipe of fixtures/calibrated, and of some of fixtures/recipes whose activations are rounded
at run time. Perplexity: the text is tokenised whole, without special tokens, cut into windows that do not overlap, mean
over all tokens but the first of each window. Where ../shared is there, also its text against its evaluator. Run it with
the first Python that `environment.sh` prints.
"""

import argparse
import fnmatch
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass

import numpy
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

import run
import schemes

ROOT = run.ROOT
SHARED = ROOT.parent / "shared"
CONTEXT = 128
# Pages that no fixture recipe calibrates on.
PAGES = ["architecture.md", "checkpoints.md", "calibration.md", "fuzzing.md"]


@dataclass(frozen=True)
class Limits:
    """Relative differences: of perplexity, of all logits, and of those of a window's first token (median over windows).
    Logits have their mean removed per token."""

    perplexity: float
    logits: float
    first: float

    @staticmethod
    def of(format_name: str, rounds_inputs: bool) -> "Limits":
        if rounds_inputs:
            # Both sides sum in 32 bits, in another order. An input that lies at half a step falls on either side, moves
            # by a step, and brings others to half a step: soon most tokens differ by about the rounding itself. A first
            # token attends to nothing else and meets few such inputs: most must agree as if nothing was rounded.
            return Limits(1e-3, 3e-2, 1e-5)
        logits = 1e-5 if format_name == "dense" else schemes.BY_FORMAT[format_name].logits
        return Limits(1e-4, logits, logits)


def evaluate(binary: str, model: str, *arguments: str) -> dict:
    done = subprocess.run([binary, "eval", model, "--json", "--quiet", *arguments], capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        raise RuntimeError(f"bantam eval exited with {done.returncode}: {' '.join(done.stderr.split())[-300:]}")
    return json.loads(done.stdout)


def write_text(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The text, and its windows as token ids, cut by the other library."""
    text = folder / "text.txt"
    text.write_text("\n".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in PAGES), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(run.SOURCE / "tokenizer.json"))
    ids = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    count = len(ids) // CONTEXT
    assert count >= 16, f"{count} windows are too few"
    windows = folder / "ids.safetensors"
    save_file({"ids": numpy.array(ids[: count * CONTEXT], dtype=numpy.int64).reshape(count, CONTEXT)}, windows)
    return text, windows


def make(binary: str, recipe: pathlib.Path | None, folder: pathlib.Path, windows: pathlib.Path) -> dict:
    """The job for a reader; without a recipe that of the dense fixture."""
    folder.mkdir(parents=True)
    job = {"name": recipe.stem if recipe else "dense", "model": str(run.SOURCE), "format": "dense", "failure": None,
           "rounds_inputs": False, "windows": str(windows), "folder": str(folder)}
    if recipe:
        job["model"] = str(folder / "artifact")
        job["failure"] = run.bantam(binary, "run", str(recipe), "--out", job["model"], "--no-progress")
        if job["failure"] is None:
            config = json.loads((folder / "artifact" / "config.json").read_text(encoding="utf-8"))
            job["format"] = schemes.format_of(config)
            groups = config["quantization_config"].get("config_groups", {}).values()
            job["rounds_inputs"] = any(group["input_activations"] for group in groups)
    return job


def compare(binary: str, job: dict, result: dict, text: pathlib.Path) -> dict:
    """Adds what was found to the job."""
    if "message" in result:
        return job | {"failure": result["message"]}
    ours_path = pathlib.Path(job["folder"]) / "ours.safetensors"
    saved = evaluate(binary, job["model"], "--text", job["windows"], "--context", str(CONTEXT), "--save-logits",
                     str(ours_path))
    report = evaluate(binary, job["model"], "--text", str(text), "--context", str(CONTEXT))
    ours, theirs = (centred(load_file(path)["logits"]) for path in (ours_path, result["logits"]))
    if ours.shape != theirs.shape:
        return job | {"failure": f"logits are {list(ours.shape)}, not {list(theirs.shape)}"}
    limits = asdict(Limits.of(job["format"], job["rounds_inputs"]))
    norm = numpy.linalg.norm
    first = norm(ours[:, 0] - theirs[:, 0], axis=-1) / norm(theirs[:, 0], axis=-1)
    differences = {"perplexity": abs(report["perplexity"] / result["perplexity"] - 1),
                   "logits": norm(ours - theirs) / norm(theirs), "first": numpy.median(first)}
    # Not a number is above every limit.
    problems = [f"{key} differs by {differences[key]:.2e}" for key in limits if not differences[key] <= limits[key]]
    if saved["perplexity"] != report["perplexity"]:
        problems.append("text and token ids give different figures: the windows are not the same")
    return job | {"ours": report["perplexity"], "theirs": result["perplexity"], "differences": differences,
                  "limits": limits, "failure": "; ".join(problems) or None}


def centred(logits: numpy.ndarray) -> numpy.ndarray:
    logits = logits.astype(numpy.float64)
    return logits - logits.mean(axis=-1, keepdims=True)


def against_shared(binary: str, python: str, model: str, reference: str | None, folder: pathlib.Path) -> list[str]:
    """A model, next to its reference if there is one, on a text of 68,000 tokens; gives what is wrong."""
    script = SHARED / "interop" / "perplexity.py"
    text = str(SHARED / "models" / "text" / "evaluation.txt")
    options = ["--context", "256", *(["--reference", reference] if reference else [])]
    log = folder / "shared.log"
    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run([python, str(script), model, text, *options], stdout=subprocess.PIPE, stderr=errors,
                              text=True, check=False)
    if done.returncode != 0:
        return [f"{script.name} exited with {done.returncode}: {log.read_text(encoding='utf-8')[-300:]}"]
    theirs = json.loads(done.stdout.splitlines()[-1])
    ours = evaluate(binary, model, "--text", text, *options)
    # Agreement is a count: a token whose best two are next to equal may fall either way.
    limits = {"tokens": 0, "perplexity": 1e-4, "mean_kl_divergence": 1e-3, "top1_agreement": 2e-4}
    problems = []
    for key in (key for key in limits if key in theirs):
        difference = abs(ours[key] / theirs[key] - 1)
        print(f"{key:20} {ours[key]:<20.10g} {theirs[key]:<20.10g} {difference:.1e}  limit {limits[key]:.0e}")
        if not difference <= limits[key]:
            problems.append(f"{key}: {ours[key]}, theirs {theirs[key]}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bantam", required=True, help="the binary under test")
    parser.add_argument("--gptqmodel", required=True, help="Python that has gptqmodel")
    parser.add_argument("--compressed-tensors", required=True, help="Python that has compressed-tensors")
    parser.add_argument("--only", default="*", help="recipes whose name matches")
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the artifacts, kept afterwards")
    arguments = parser.parse_args()

    fixtures = ROOT / "fixtures"
    # Of the others no runtime has a forward pass, and their weights are compared by run.py; or they bring a modelling file,
    # which remote_lowrank.py and remote_taylor.py evaluate; or they are GGUF files, which gguf_readers.py loads.
    own = ('layout = "bantam"', 'layout = "vptq"', 'layout = "remote-code"', 'layout = "gguf"')
    recipes = [path for path in sorted((fixtures / "calibrated").glob("*.toml"))
               if not any(layout in path.read_text(encoding="utf-8") for layout in own)]
    recipes += [fixtures / "recipes" / f"{name}.toml" for name in ("w8a8", "fp8-channel", "fp8-tensor")]
    recipes = [path for path in recipes if fnmatch.fnmatch(path.stem, arguments.only)]
    folder = (arguments.keep or pathlib.Path(tempfile.mkdtemp(prefix="bantam-evaluation-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        text, windows = write_text(folder)
        jobs = [make(arguments.bantam, recipe, folder / (recipe.stem if recipe else "dense"), windows)
                for recipe in [None, *recipes]]
        results = {}
        for python, own in [(arguments.compressed_tensors, False), (arguments.gptqmodel, True)]:
            mine = [job for job in jobs
                    if (schemes.reader_of(job["format"]) == "gptqmodel") == own and not job["failure"]]
            scratch = folder / ("gptqmodel" if own else "compressed-tensors")
            scratch.mkdir()
            results |= {result["name"]: result for result in run.read(python, "evaluate_with.py", mine, scratch)}
        jobs = [job if job["failure"] else compare(arguments.bantam, job, results[job["name"]], text) for job in jobs]
        failures = report(jobs)
        if not SHARED.is_dir():
            print("\nSKIPPED: the comparison with the evaluator of ../shared, which is not here")
        else:
            dense = str(SHARED / "models" / "tiny-llama")
            pairs = [(dense, None)]
            pairs += [(job["model"], dense) for job in jobs if job["format"] == "pack-quantized"][:1]
            for model, reference in pairs:
                what = pathlib.Path(model).parent.name if reference else "the dense model"
                print(f"\n{what} on the text of ../shared: ours, theirs, relative difference")
                problems = against_shared(arguments.bantam, arguments.compressed_tensors, model, reference, folder)
                failures += bool(problems)
                for problem in problems:
                    print(f"FAILED: {problem}")
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{'all passed' if failures == 0 else f'{failures} failed'}")
    return 1 if failures else 0


def report(jobs: list[dict]) -> int:
    rows = [["model", "format", "perplexity", "theirs", "difference", "limit", "logits", "limit", "first", "limit", ""]]
    for job in jobs:
        numbers = ["–"] * 8
        if "limits" in job:
            pairs = [(job["differences"][key], job["limits"][key]) for key in job["limits"]]
            numbers = [f"{job['ours']:.4f}", f"{job['theirs']:.4f}"]
            numbers += [text for difference, limit in pairs for text in (f"{difference:.1e}", f"{limit:.0e}")]
        rows.append([job["name"], job["format"], *numbers, f"FAILED: {job['failure']}" if job["failure"] else "ok"])
    run.table(rows)
    return sum(bool(job["failure"]) for job in jobs)


if __name__ == "__main__":
    sys.exit(main())
