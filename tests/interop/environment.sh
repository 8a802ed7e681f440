#!/usr/bin/env bash
# Installs the readers that the interop tests compare with, once, and prints the Python of each environment:
# first the one for GPTQ and AWQ, then the one for compressed-tensors.
#
# The environments live outside the checkout, under a name that changes with the requirements:
# ${BANTAM_CACHE:-$HOME/.cache/bantam}/interop-HASH and …-compressed-tensors.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${BANTAM_CACHE:-$HOME/.cache/bantam}
hash=$(cat "$here/requirements.txt" "$here/requirements-compressed-tensors.txt" "$here/environment.sh" | sha256sum | cut -c1-12)
first=$cache/interop-$hash
second=$first-compressed-tensors

purelib() {
    "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'
}

# A marker written last tells a finished environment from one that was interrupted.
if [ ! -e "$second/.complete" ]; then
    rm -rf "$first" "$second"
    mkdir -p "$cache"
    if ! python3 -m venv "$first" >&2; then
        echo "environment.sh: python3 needs its venv module (Debian: apt-get install python3-venv python3-dev)" >&2
        exit 4
    fi
    "$first/bin/pip" install --quiet --upgrade pip "setuptools==80.9.0" wheel >&2
    grep -v -e '^#' -e gptqmodel -e optimum -e compressed-tensors "$here/requirements.txt" \
        | xargs "$first/bin/pip" install --quiet >&2
    grep -e '^gptqmodel' -e '^optimum' "$here/requirements.txt" \
        | BUILD_CUDA_EXT=0 xargs "$first/bin/pip" install --quiet --no-build-isolation >&2
    grep -e '^compressed-tensors' "$here/requirements.txt" | xargs "$first/bin/pip" install --quiet >&2

    python3 -m venv "$second" >&2
    purelib "$first" > "$(purelib "$second")/shared.pth"
    # gptqmodel, seen through the shared folder, asks for a newer transformers; it is not used in this environment.
    "$second/bin/pip" install --quiet --requirement "$here/requirements-compressed-tensors.txt" 2>&1 \
        | grep -v -e 'dependency resolver' -e 'gptqmodel.*requires transformers' >&2 || true
    "$second/bin/python" -c 'import transformers, compressed_tensors; assert transformers.__version__ == "5.17.0"' >&2
    touch "$second/.complete"
fi

echo "$first/bin/python"
echo "$second/bin/python"
