"""Measures calibrated quantization on synthetic checkpoints: time by part, beside the machine's own matrix products, and
peak memory beside the planned one.

    python3 benches/calibration.py FOLDER [CASE ...] [--llm-compressor PYTHON]

Cases: `tinyllama` (two blocks, 32 x 512 random tokens; three settings), `tinyllama-22` (22 blocks, peak memory),
`llama3` (one block of Llama-3-8B's shapes, 16 x 2048 tokens), `deepseek` (one block of DeepSeek-V3's widths with 32 experts
under `--max-memory 6GiB`). FOLDER needs room for model, states and artifact (up to 10 GB). With PYTHON, llm-compressor
does the two blocks in the same run (see llm_compressor.py). Everything made is removed.
"""

import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")) / "release"
PLAIN = "asymmetric = false\nrefine = false\n"
CASES = {
    # name: (options of `synthetic`, sequences, their length, settings by name, options of `run`)
    "tinyllama": (
        "--blocks 2 --vocabulary 4096",
        32,
        512,
        {"plain": PLAIN, "refined": "asymmetric = false\n", "default": ""},
        [],
    ),
    "tinyllama-22": ("--blocks 22", 32, 512, {"default": ""}, []),
    "llama3": (
        "--blocks 1 --hidden 4096 --intermediate 14336 --heads 32 --key-value 1024 --vocabulary 4096",
        16,
        2048,
        {"plain": PLAIN, "default": ""},
        [],
    ),
    "deepseek": (
        "--blocks 1 --experts 32 --heads 16 --vocabulary 4096",
        4,
        2048,
        {"plain": PLAIN},
        ["--max-memory", "6GiB"],
    ),
}


def rate():
    """GFLOP/s of F32 products on all cores."""
    return float(subprocess.run([TARGET / "examples/matmul_rate"], capture_output=True, text=True, check=True).stdout)


def write_tokens(path, sequences, length, vocabulary=4096):
    """Random token ids as a safetensors file."""
    chosen = random.Random(1)
    ids = [chosen.randrange(vocabulary) for _ in range(sequences * length)]
    header = {"input_ids": {"dtype": "I64", "shape": [sequences, length], "data_offsets": [0, 8 * len(ids)]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack(f"<{len(ids)}q", *ids))


def timed(command):
    """Seconds and peak bytes of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, error = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command}: {status}\n{error.decode()[-2000:]}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024, output.decode()


def measure(name, folder, python):
    """One line for each setting of a case."""
    options, sequences, length, settings, run_options = CASES[name]
    model, out, tokens = folder / "model", folder / "out", folder / "tokens.safetensors"
    subprocess.run([TARGET / "examples/synthetic", model, *options.split()], check=True, stdout=subprocess.DEVNULL)
    write_tokens(tokens, sequences, length)
    lines = []
    for setting, keys in settings.items():
        recipe = folder / "recipe.toml"
        recipe.write_text(
            f'schema = 1\n[calibration]\ntext = ["tokens.safetensors"]\nsequences = {sequences}\n'
            f"sequence_length = {length}\n[[pass]]\nuse = \"gptq\"\nbits = 4\ngroup_size = 128\nsymmetric = true\n{keys}"
        )
        arguments = [recipe, "--model", model, "--out", out, *run_options]
        planned = json.loads(timed([TARGET / "bantam", "plan", *arguments, "--json"])[2])
        before = rate()
        seconds, peak, _ = timed([TARGET / "bantam", "run", *arguments])
        after = rate()
        parts = json.loads((out / "run.json").read_text())["calibration_seconds"]
        shares = ", ".join(f"{part} {value:.1f}" for part, value in sorted(parts.items()))
        lines.append(
            f"{name} {setting}: {seconds:.1f} s ({shares}); products {before:.0f} and {after:.0f} GFLOP/s; "
            f"peak {peak / 1e9:.2f} GB, planned {planned['peak_memory_bytes'] / 1e9:.2f} GB"
        )
        print(lines[-1], flush=True)
        shutil.rmtree(out)
    if python and name == "tinyllama":
        command = [python, HERE / "llm_compressor.py", model, tokens]
        _, peak, output = timed(command)
        print(f"{name} llm-compressor: {output.splitlines()[-1]}; peak {peak / 1e9:.2f} GB", flush=True)
    shutil.rmtree(model)


def main():
    """Measures what is asked for."""
    arguments = sys.argv[1:]
    python = None
    if "--llm-compressor" in arguments:
        place = arguments.index("--llm-compressor")
        python = arguments[place + 1]
        del arguments[place : place + 2]
    folder = pathlib.Path(tempfile.mkdtemp(prefix="bantam-bench.", dir=arguments[0]))
    cargo = ["cargo", "build", "--quiet", "--release", "--bin", "bantam", "--example", "synthetic"]
    subprocess.run([*cargo, "--example", "matmul_rate"], cwd=HERE.parent, check=True)
    try:
        for name in arguments[1:] or CASES:
            measure(name, folder, python)
    finally:
        shutil.rmtree(folder)


main()
