#!/usr/bin/env bash
# Installs requirements-object-store.txt once, in an environment of its own, and prints its Python.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
hash=$(cat "$here/requirements-object-store.txt" "$0" | sha256sum | cut -c1-12)
own=${BANTAM_CACHE:-$HOME/.cache/bantam}/object-store-$hash

if [ ! -e "$own/.complete" ]; then
    rm -rf "$own"
    python3 -m venv "$own" >&2
    "$own/bin/pip" install --quiet --requirement "$here/requirements-object-store.txt" >&2
    "$own/bin/python" -c 'import moto.server' >&2
    touch "$own/.complete"
fi

echo "$own/bin/python"
