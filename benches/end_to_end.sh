#!/usr/bin/env bash
# Measures the main job against the disk itself, in one run, on a synthetic checkpoint of TinyLlama-1.1B's shapes:
# `cat` of the input plus writing and syncing as many bytes as the artifact has, and `bantam run` with everything on.
#
#   benches/end_to_end.sh FOLDER [BLOCKS] [ROUNDS]
#
# FOLDER must have room for the input and two artifacts (22 blocks: 2.2 GB + 2 × 0.8 GB). Everything made is removed.
set -euo pipefail
folder=${1:?folder}; blocks=${2:-22}; rounds=${3:-5}
here=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$here/target}
cargo build --quiet --release --manifest-path "$here/Cargo.toml" --bin bantam --example synthetic
work=$(mktemp -d "$folder/bantam-bench.XXXXXX")
trap 'rm -rf "$work"' EXIT
"$target/release/examples/synthetic" "$work/model" --blocks "$blocks"
cat >"$work/recipe.toml" <<'RECIPE'
schema = 1
[[pass]]
use = "int4"
[artifact]
layout = "compressed-tensors"
RECIPE
sync
python3 - "$target/release/bantam" "$work" "$rounds" <<'PYTHON'
import json, os, resource, shutil, statistics, subprocess, sys, time
binary, work, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
model, recipe, out = f"{work}/model", f"{work}/recipe.toml", f"{work}/out"
arguments = [recipe, "--model", model, "--out", out]

def timed(f):
    start = time.perf_counter(); f(); return time.perf_counter() - start

def measured(command):
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status: sys.exit(f"{command}: {status}\n{error.decode()}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime

plans = []
for _ in range(5):
    start = time.perf_counter()
    plan = json.loads(subprocess.run([binary, "plan", "--json", *arguments], check=True, capture_output=True).stdout)
    plans.append(time.perf_counter() - start)
size = plan["total_bytes"]

def baseline():
    subprocess.run(f"cat {model}/*.safetensors > /dev/null", shell=True, check=True)
    block = bytes(os.urandom(1 << 20)) * 4
    with open(f"{work}/copy", "wb", buffering=0) as file:
        left = size
        while left:
            left -= file.write(block[: min(left, len(block))])
        os.fsync(file.fileno())

subprocess.run(f"cat {model}/*.safetensors > /dev/null", shell=True, check=True)
ratios, base_times, run_times, peaks, processor = [], [], [], [], []
for _ in range(rounds):
    base = timed(baseline); os.remove(f"{work}/copy"); os.sync()
    seconds, peak, cpu = measured([binary, "run", "--quiet", *arguments])
    shutil.rmtree(out); os.sync()
    base_times.append(base); run_times.append(seconds); peaks.append(peak); processor.append(cpu); ratios.append(seconds / base)
    print(f"cat + write + sync {base:.2f} s   bantam run {seconds:.2f} s ({cpu:.2f} s of processor)   ratio {seconds / base:.2f}   peak {peak / 1e6:.0f} MB", flush=True)
print(f"input {plan['source_bytes'] / 1e9:.3f} GB, artifact {size / 1e9:.3f} GB, plan {min(plans) * 1e3:.0f} ms (median {statistics.median(plans) * 1e3:.0f})")
print(f"median ratio {statistics.median(ratios):.2f} (best {min(ratios):.2f}, worst {max(ratios):.2f}); ratio of medians {statistics.median(run_times) / statistics.median(base_times):.2f}; peak {max(peaks) / 1e6:.0f} MB, planned {plan['peak_memory_bytes'] / 1e6:.0f} MB")
PYTHON
