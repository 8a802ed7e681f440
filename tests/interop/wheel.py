#!/usr/bin/env python3
"""The wheel, as a user has it: installed into an empty environment without a network, run, removed again.

usage: wheel.py --wheels DIR [--bantam BINARY] [--gptqmodel PYTHON --compressed-tensors PYTHON]

With `--bantam`, the built-in example must come out of both binaries with the same bytes. With the two Pythons of
`environment.sh`, the interop script makes that artifact with the installed binary and has its runtime read it.
Needs the standard library only.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import tomllib
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RECIPE = ROOT / "fixtures" / "recipes" / "int4.toml"
NAME = "bantam-compress"


def call(*command: object) -> str:
    """Runs a command that must succeed; gives what it printed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def files(folder: pathlib.Path) -> set[str]:
    """All files of an environment but what Python caches."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}


def artifact(binary: object, folder: pathlib.Path) -> dict[str, bytes]:
    """The built-in example as the binary makes it, checked by it; file by file, but for the run log."""
    call(binary, "run", RECIPE, "--out", folder, "--quiet")
    call(binary, "verify", folder, "--source", ROOT / "fixtures" / "tiny-llama")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--wheels", type=pathlib.Path, required=True, help="folder with the one wheel")
    parser.add_argument("--bantam", help="a binary of the same version that must write the same bytes")
    parser.add_argument("--gptqmodel", help="for the interop script")
    parser.add_argument("--compressed-tensors", help="for the interop script")
    arguments = parser.parse_args()
    wheels = list(arguments.wheels.glob("*.whl"))
    if len(wheels) != 1:
        sys.exit(f"expected one wheel in {arguments.wheels}, found {[wheel.name for wheel in wheels]}")
    version = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["package"]["version"]
    with tempfile.TemporaryDirectory(prefix="bantam-wheel-") as scratch_name:
        scratch = pathlib.Path(scratch_name)
        environment = scratch / "environment"
        venv.create(environment, with_pip=True)
        pip = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--no-cache-dir"]
        before = files(environment)
        call(*pip, "install", "--no-index", "--find-links", arguments.wheels, NAME)
        added = files(environment) - before
        odd = [path for path in added if path != "bin/bantam" and f"bantam_compress-{version}.dist-info/" not in path]
        if odd or "bin/bantam" not in added:
            sys.exit(f"the wheel has brought {sorted(added)}")
        for licence in ("LICENSE-MIT", "LICENSE-APACHE"):
            if not any(path.endswith(f"/{licence}") for path in added):
                sys.exit(f"the wheel has no {licence}")
        if call(*pip, "list", "--format", "freeze").count(NAME) != 1 or "Requires: \n" not in call(*pip, "show", NAME):
            sys.exit(f"{NAME} is not installed alone:\n{call(*pip, 'show', NAME)}")
        binary = environment / "bin" / "bantam"
        if call(binary, "--version").split() != ["bantam", version]:
            sys.exit(f"`bantam --version` says {call(binary, '--version')!r} and Cargo.toml {version}")
        made = artifact(binary, scratch / "by-wheel")
        if arguments.bantam and made != artifact(arguments.bantam, scratch / "by-binary"):
            sys.exit(f"{wheels[0].name} and {arguments.bantam} write different bytes")
        if arguments.gptqmodel and arguments.compressed_tensors:
            print(call(sys.executable, HERE / "run.py", "--bantam", binary, "--gptqmodel", arguments.gptqmodel,
                       "--compressed-tensors", arguments.compressed_tensors, "--only", RECIPE.stem), end="")
        call(*pip, "uninstall", "--yes", NAME)
        left = files(environment) - before
        if left:
            sys.exit(f"uninstalling has left {sorted(left)}")
    print(f"{wheels[0].name}: {wheels[0].stat().st_size} bytes, installed, run and removed")


if __name__ == "__main__":
    main()
