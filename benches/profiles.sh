#!/usr/bin/env bash
# Compares the profiles that are shipped: size of the binary, and processor time of two fixed jobs, taken in turn.
#
# usage: benches/profiles.sh [ROUNDS]     builds what is not built yet; `dist` takes several times as long as `release`
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-5}
target=${CARGO_TARGET_DIR:-target}
jobs=(fixtures/calibrated/solved-gptq-4bit-sym.toml fixtures/calibrated/solved-pvq.toml)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

for profile in release dist; do
    cargo build --locked --quiet --profile "$profile" --bin bantam
    cp "$target/$profile/bantam" "$scratch/$profile"
    printf '%-8s %12s bytes' "$profile" "$(stat --format=%s "$scratch/$profile")"
    strip -g "$scratch/$profile" -o "$scratch/stripped"
    printf ', %s without line tables\n' "$(stat --format=%s "$scratch/stripped")"
done

# User and system seconds of one run.
seconds() {
    { TIMEFORMAT='%U %S'; time "$scratch/$1" run "$2" --out "$scratch/out" --fresh -qq >/dev/null; } 2>&1 \
        | awk '{ printf "%.3f\n", $1 + $2 }'
}
median() {
    sort -n | awk '{ values[NR] = $1 } END { print values[int((NR + 1) / 2)] }'
}
for job in "${jobs[@]}"; do
    for ((round = 0; round < rounds; round++)); do
        for profile in release dist; do
            seconds "$profile" "$job" >> "$scratch/$profile.seconds"
        done
    done
    release=$(median < "$scratch/release.seconds") dist=$(median < "$scratch/dist.seconds")
    awk -v job="$job" -v release="$release" -v dist="$dist" \
        'BEGIN { printf "%s: release %.2f s, dist %.2f s, ratio %.3f\n", job, release, dist, dist / release }'
    rm "$scratch"/*.seconds
done
