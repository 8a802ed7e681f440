#!/usr/bin/env bash
# Installs requirements-NAME.txt beside the environments of environment.sh, once, and prints its Python: a small environment
# that takes torch and transformers from the one for GPTQ and AWQ.
#
#   environment-beside.sh NAME CHECK      CHECK is Python that fails where the package is not what it should be
#
# It has a script of its own so that a change of it does not install the large ones anew.
set -euo pipefail
name=$1; check=$2

here=$(cd "$(dirname "$0")" && pwd)
first=$(bash "$here/environment.sh" | head -1)
base=$(dirname "$(dirname "$first")")
hash=$(cat "$here/requirements-$name.txt" "$0" | sha256sum | cut -c1-12)
own=$base-$name-$hash

purelib() {
    "$1" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'
}

if [ ! -e "$own/.complete" ]; then
    rm -rf "$own"
    python3 -m venv "$own" >&2
    purelib "$first" > "$(purelib "$own/bin/python")/shared.pth"
    "$own/bin/pip" install --quiet --no-deps --requirement "$here/requirements-$name.txt" >&2
    "$own/bin/python" -c "$check" >&2
    touch "$own/.complete"
fi

echo "$own/bin/python"
