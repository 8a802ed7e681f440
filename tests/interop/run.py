#!/usr/bin/env python3
"""Interop tests: every fixture recipe, run with the binary, must load in the runtime it is written for and give the
weights and logits of our own `bantam decode`.

usage: run.py --bantam BINARY --gptqmodel PYTHON --compressed-tensors PYTHON [--vptq PYTHON] [--sparse PYTHON]
              [--only GLOB] [--keep DIR]

Four readers that know nothing of bantam's code: transformers with compressed-tensors, transformers with GPTQModel (GPTQ
and AWQ), transformers with the package `vptq`, and for our own layout and for bit masks the decoders of `docs/formats`,
written in NumPy from the formats' pages; for bit masks also compressed-tensors 0.14. `environment.sh` and
`environment-beside.sh` install them. Tolerances and their reasons are in `schemes.py`. Needs the standard library only.
"""

import argparse
import fnmatch
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import schemes

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TEXT = ROOT / "docs" / "architecture.md"
SOURCE = ROOT / "fixtures" / "tiny-llama"


def bantam(binary: str, *arguments: str) -> str | None:
    """Runs the binary; gives what it complained about, `None` when it did not."""
    done = subprocess.run([binary, *arguments], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    return f"bantam {arguments[0]} exited with {done.returncode}: {' '.join(done.stderr.split())[-300:]}"


def make(binary: str, recipe: pathlib.Path, folder: pathlib.Path) -> dict:
    """Makes the artifact of a recipe and its dense form; gives the job for a reader, or one with `failure`."""
    job = {"name": recipe.stem, "artifact": str(folder / "artifact"), "dense": str(folder / "dense"),
           "source": str(SOURCE), "text": str(TEXT)}
    job["failure"] = bantam(binary, "run", str(recipe), "--out", job["artifact"], "--no-progress") or bantam(
        binary, "decode", job["artifact"], "--out", job["dense"], "--dtype", "f32")
    if job["failure"] is None:
        config = json.loads((folder / "artifact" / "config.json").read_text(encoding="utf-8"))
        job["format"] = schemes.format_of(config)
    return job


def read(python: str, script: str, jobs: list[dict], folder: pathlib.Path) -> list[dict]:
    """Hands jobs to a reader in its own environment."""
    if not jobs:
        return []
    jobs_path, results_path = folder / f"{script}.jobs.json", folder / f"{script}.results.json"
    jobs_path.write_text(json.dumps(jobs), encoding="utf-8")
    results_path.unlink(missing_ok=True)
    log_path = folder / f"{script}.log"
    with log_path.open("w", encoding="utf-8") as log:
        code = subprocess.run([python, str(HERE / script), str(jobs_path), str(results_path)], stdout=log,
                              stderr=subprocess.STDOUT, check=False).returncode
    if code != 0 or not results_path.exists():
        tail = log_path.read_text(encoding="utf-8", errors="replace")[-2000:]
        print(f"{script} exited with {code}; its last words:\n{tail}", file=sys.stderr)
        return [{"name": job["name"], "passed": False, "figures": {}, "message": f"{script} exited with {code}"}
                for job in jobs]
    return json.loads(results_path.read_text(encoding="utf-8"))


def table(rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def report(jobs: list[dict], results: dict[str, dict]) -> int:
    """Prints a line per artifact; gives the number of failures."""
    rows = [["recipe", "format", "reader", "weights", "limit", "logits", "limit", "to source", ""]]
    failures = 0
    for job in jobs:
        result = results[job["name"]]
        failures += not result["passed"]
        figures = result["figures"]
        numbers = [f"{figures[key]:.1e}" if key in figures else "–"
                   for key in ("weights", "weight_limit", "logits", "logits_limit", "to_source")]
        verdict = "ok" if result["passed"] else f"FAILED: {result['message']}"
        rows.append([job["name"], job.get("format", "–"), job.get("reader", "–"), *numbers, verdict])
    table(rows)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bantam", required=True, help="the binary under test")
    parser.add_argument("--gptqmodel", required=True, help="Python that has gptqmodel")
    parser.add_argument("--compressed-tensors", required=True, help="Python that has compressed-tensors")
    parser.add_argument("--vptq", help="Python that has vptq; without it such artifacts are made and not read")
    parser.add_argument("--sparse", help="Python that has compressed-tensors 0.14; without it bit masks are read by NumPy")
    parser.add_argument("--only", default="*", help="recipes whose name matches")
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the artifacts, kept afterwards")
    arguments = parser.parse_args()

    recipes = [path for folder in ("recipes", "calibrated")
               for path in sorted((ROOT / "fixtures" / folder).glob("*.toml")) if fnmatch.fnmatch(path.stem, arguments.only)]
    # Artifacts with a modelling file are loaded by remote_lowrank.py and remote_taylor.py, GGUF files by gguf_readers.py.
    elsewhere = ('layout = "remote-code"', 'layout = "gguf"')
    recipes = [path for path in recipes if not any(layout in path.read_text(encoding="utf-8") for layout in elsewhere)]
    if not recipes:
        parser.error(f"no recipe matches {arguments.only}")
    pythons = {"compressed-tensors": arguments.compressed_tensors, "gptqmodel": arguments.gptqmodel,
               "vptq": arguments.vptq, "sparse": arguments.sparse, "numpy": arguments.gptqmodel}
    scripts = {"compressed-tensors": "read_with.py", "gptqmodel": "read_with.py", "vptq": "read_vptq.py",
               "sparse": "read_sparse.py", "numpy": "read_own.py"}

    folder = arguments.keep or pathlib.Path(tempfile.mkdtemp(prefix="bantam-interop-"))
    try:
        jobs = []
        for recipe in recipes:
            job = make(arguments.bantam, recipe, folder / recipe.stem)
            job["reader"] = schemes.reader_of(job["format"]) if job["failure"] is None else "–"
            if job.get("format") == "sparse-24-bitmask" and arguments.sparse:
                job["reader"] = "sparse"
            jobs.append(job)
        results = {}
        for job in jobs:
            failure = job["failure"] or (f"no reader for {job['format']}" if job["reader"] is None else None)
            if failure:
                job["reader"] = job["reader"] or "–"
                results[job["name"]] = {"name": job["name"], "passed": False, "figures": {}, "message": failure}
        unread = [job for job in jobs if job["reader"] == "vptq" and not arguments.vptq]
        for job in unread:
            print(f"SKIPPED: {job['name']} was not read: there is no Python with vptq", file=sys.stderr)
        jobs = [job for job in jobs if job not in unread]
        for reader, python in pythons.items():
            own = folder / reader
            own.mkdir(parents=True, exist_ok=True)
            mine = [job for job in jobs if job["reader"] == reader]
            results |= {result["name"]: result for result in read(python, scripts[reader], mine, own)}
        failures = report(jobs, results)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{len(jobs) - failures} passed, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
