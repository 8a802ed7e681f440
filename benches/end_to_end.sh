#!/usr/bin/env bash
# Measures a job against the disk itself, in one run, on synthetic checkpoints of TinyLlama-1.1B's shapes: `cat` of the
# inputs plus writing and syncing as many bytes as the artifact has, and `bantam run` with everything on.
#
#   benches/end_to_end.sh FOLDER [BLOCKS] [ROUNDS] [JOB…]
#
# A JOB is int4 (when none is named), mask (2:4 by magnitude, layout `bantam`), bitmask (the same, `sparse-24-bitmask`),
# zeros (the same, `dense`) or bitdelta (the inputs are a fine-tune and its base). FOLDER must have room for the inputs and
# two artifacts (int4, 22 blocks: 2.2 GB + 2 × 0.8 GB). Everything made is removed.
set -euo pipefail
folder=${1:?folder}; blocks=${2:-22}; rounds=${3:-5}
shift $(($# < 3 ? $# : 3))
jobs=${*:-int4}
here=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$here/target}
if [ -z "${BANTAM_BUILT:-}" ]; then
    cargo build --quiet --release --manifest-path "$here/Cargo.toml" --bin bantam --example synthetic
fi
work=$(mktemp -d "$folder/bantam-bench.XXXXXX")
trap 'rm -rf "$work"' EXIT
"$target/release/examples/synthetic" "$work/base" --blocks "$blocks"
case " $jobs " in *" bitdelta "*) "$target/release/examples/synthetic" "$work/tuned" --blocks "$blocks" --fine-tuned ;; esac
recipe() { printf 'schema = 1\n%s[[pass]]\n%s[artifact]\nlayout = "%s"\n' "$2" "$3" "$4" >"$work/$1.toml"; }
mask=$'use = "mask_2_4"\ncriterion = "magnitude"\n'
recipe int4 "" $'use = "int4"\n' compressed-tensors
recipe mask "" "$mask" bantam
recipe bitmask "" "$mask" sparse-24-bitmask
recipe zeros "" "$mask" dense
recipe bitdelta "base = \"$work/base\""$'\n' $'use = "bitdelta"\n' delta
sync
# shellcheck disable=SC2086
python3 - "$target/release/bantam" "$work" "$rounds" $jobs <<'PYTHON'
import json, os, shutil, statistics, subprocess, sys, time
binary, work, rounds, jobs = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]

def timed(f):
    start = time.perf_counter(); f(); return time.perf_counter() - start

def processor():
    return sum(os.times()[:4])

def measured(command):
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status: sys.exit(f"{command}: {status}\n{error.decode()}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime

class Job:
    def __init__(self, name):
        self.name, self.out, self.rounds = name, f"{work}/out-{name}", []
        self.models = [f"{work}/tuned", f"{work}/base"] if name == "bitdelta" else [f"{work}/base"]
        self.arguments = [f"{work}/{name}.toml", "--model", self.models[0], "--out", self.out]
        self.plans = []
        for _ in range(3):
            start = time.perf_counter()
            done = subprocess.run([binary, "plan", "--json", *self.arguments], check=True, capture_output=True)
            self.plans.append(time.perf_counter() - start)
        self.plan = json.loads(done.stdout)
        self.size = self.plan["total_bytes"]

    def baseline(self):
        files = " ".join(f"{model}/*.safetensors" for model in self.models)
        subprocess.run(f"cat {files} > /dev/null", shell=True, check=True)
        block = bytes(os.urandom(1 << 20)) * 4
        with open(f"{work}/copy", "wb", buffering=0) as file:
            left = self.size
            while left:
                left -= file.write(block[: min(left, len(block))])
            os.fsync(file.fileno())

    def round(self):
        before = processor(); base = timed(self.baseline); floor = processor() - before; os.remove(f"{work}/copy"); os.sync()
        seconds, peak, cpu = measured([binary, "run", "--quiet", *self.arguments])
        shutil.rmtree(self.out); os.sync()
        self.rounds.append((base, seconds, peak, cpu, seconds / base, floor))
        print(f"{self.name}: cat + write + sync {base:.2f} s ({floor:.2f} s of processor)   bantam run {seconds:.2f} s ({cpu:.2f} s of processor)   ratio {seconds / base:.2f}   peak {peak / 1e6:.0f} MB", flush=True)

    def report(self):
        base, seconds, peak, cpu, ratio, floor = zip(*self.rounds)
        inputs = sum(os.path.getsize(f"{model}/{name}") for model in self.models for name in os.listdir(model) if name.endswith(".safetensors"))
        print(f"{self.name}: input {inputs / 1e9:.3f} GB, artifact {self.size / 1e9:.3f} GB, plan {min(self.plans) * 1e3:.0f} ms (median {statistics.median(self.plans) * 1e3:.0f})")
        print(f"{self.name}: median ratio {statistics.median(ratio):.2f} (best {min(ratio):.2f}, worst {max(ratio):.2f}); ratio of medians {statistics.median(seconds) / statistics.median(base):.2f}, of the best {min(seconds) / min(base):.2f}; processor {statistics.median(cpu):.2f} s (floor {statistics.median(floor):.2f} s); peak {max(peak) / 1e6:.0f} MB, planned {self.plan['peak_memory_bytes'] / 1e6:.0f} MB")

jobs = [Job(name) for name in jobs]
for model in {model for job in jobs for model in job.models}:
    subprocess.run(f"cat {model}/*.safetensors > /dev/null", shell=True, check=True)
for _ in range(rounds):
    for job in jobs:
        job.round()
for job in jobs:
    job.report()
PYTHON
