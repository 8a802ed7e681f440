#!/usr/bin/env python3
"""Forward pass: a tiny random model of every architecture must give what transformers computes with it.

usage: architectures.py --bantam BINARY [--only GLOB] [--list]

Run it with the first Python that `environment.sh` prints. The models and what transformers computes are made once, and
kept in ${BANTAM_CACHE:-$HOME/.cache/bantam}/architectures-HASH, under a name that changes with `tiny_models.py` and the
requirements. The reference is computed in double precision; how far transformers' own single precision is from it
stands beside, as a yardstick. An architecture passes when the relative error of every position is below the limit.
"""

import argparse
import fnmatch
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy
from safetensors.numpy import load_file

HERE = pathlib.Path(__file__).resolve().parent
LIMIT = 1e-5


def cache() -> pathlib.Path:
    parts = [(HERE / name).read_bytes() for name in ("tiny_models.py", "requirements.txt")]
    name = "architectures-" + hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]
    return pathlib.Path(os.environ.get("BANTAM_CACHE", pathlib.Path.home() / ".cache" / "bantam")) / name


def model_folder(name: str) -> pathlib.Path:
    """The folder of a model, made when it is not there yet; complete or absent, never in between."""
    folder = cache() / name
    if not folder.exists():
        import tiny_models  # takes seconds to load, and is needed once

        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished-"))
        try:
            tiny_models.make(name, unfinished)
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another run was faster
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def relative_error(ours: numpy.ndarray, theirs: numpy.ndarray) -> numpy.ndarray:
    """Of every position."""
    ours, theirs = ours.astype(numpy.float64), theirs.astype(numpy.float64)
    return numpy.linalg.norm(ours - theirs, axis=-1) / numpy.linalg.norm(theirs, axis=-1)


def compare(binary: str, name: str) -> tuple[str, str, str]:
    """The largest error of ours, that of transformers' single precision, and what is wrong (nothing: empty)."""
    folder = model_folder(name)
    reference = load_file(folder / "reference.safetensors")
    precise = reference["precise"]
    yardstick = f"{relative_error(reference['single'], precise).max():.1e}"
    with tempfile.TemporaryDirectory(prefix="bantam-architectures-") as scratch:
        out = pathlib.Path(scratch) / "out.safetensors"
        command = [binary, "eval", str(folder / "model"), "--text", str(folder / "ids.safetensors"), "--context",
                   str(precise.shape[1]), "--save-logits", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not out.exists():
            return "–", yardstick, f"bantam exited with {done.returncode}: {' '.join(done.stderr.split())[-300:]}"
        tensors = load_file(out)
    wanted = "hidden" if name == "bert-model" else "logits"
    if wanted not in tensors:
        return "–", yardstick, f"no tensor `{wanted}`, only {', '.join(tensors)}"
    ours = tensors[wanted]
    if ours.shape != precise.shape:
        return "–", yardstick, f"shape {list(ours.shape)}, expected {list(precise.shape)}"
    errors = relative_error(ours, precise)
    worst = f"{errors.max():.1e}"
    if (errors < LIMIT).all():  # not so where one is NaN
        return worst, yardstick, ""
    misses = ~(errors < LIMIT)
    sequence, position = numpy.argwhere(misses)[0]
    where = f"the first at sequence {sequence}, position {position}"
    return worst, yardstick, f"{misses.sum()} of {misses.size} positions, {where}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bantam", help="the binary under test")
    parser.add_argument("--only", default="*", help="architectures whose name matches")
    parser.add_argument("--list", action="store_true", help="make the models, print their folders and names, and stop")
    arguments = parser.parse_args()
    if not arguments.list and not arguments.bantam:
        parser.error("--bantam is needed")

    names = [name for name in names_of_models() if fnmatch.fnmatch(name, arguments.only)]
    if not names:
        parser.error(f"no architecture matches {arguments.only}")
    if arguments.list:
        for name in names:
            print(model_folder(name))
        return 0
    print(f"limit {LIMIT:.0e}; models in {cache()}\n")
    width = max(len(name) for name in names)
    print(f"{'architecture':{width}}  {'ours':7}  {'single':7}")
    failures = 0
    for name in names:
        worst, yardstick, wrong = compare(arguments.bantam, name)
        failures += bool(wrong)
        print(f"{name:{width}}  {worst:7}  {yardstick:7}  {'FAILED: ' + wrong if wrong else 'ok'}", flush=True)
    print(f"\n{len(names) - failures} passed, {failures} failed")
    return 1 if failures else 0


def names_of_models() -> list[str]:
    """The names in `tiny_models.py`, without the seconds that loading it takes where all models are there."""
    listing = cache() / "names"
    if not listing.exists():
        import tiny_models

        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("\n".join(tiny_models.MODELS), encoding="utf-8")
    return listing.read_text(encoding="utf-8").split()


if __name__ == "__main__":
    sys.exit(main())
