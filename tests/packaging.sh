#!/usr/bin/env bash
# sdist -> wheel (isolated build) -> fresh environment: what a user's `pip install` goes through.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The sdist needs no torch; the wheel is built from it alone, against the torch that the backend asks for.
"$python" -m venv "$work/build"
"$work/build/bin/pip" install --quiet build
"$work/build/bin/python" -m build --sdist --outdir "$work/dist" . > "$work/sdist.log" || { cat "$work/sdist.log"; exit 1; }
"$work/build/bin/pip" wheel --quiet --no-deps --wheel-dir "$work/dist" "$work"/dist/torchdpt-*.tar.gz
ls -l "$work/dist"

"$python" -m venv "$work/fresh"
"$work/fresh/bin/pip" install --quiet torch==2.13.0  # the wheel's own requirement, ==2.13.*, admits other builds
"$work/fresh/bin/pip" install --quiet "$work"/dist/torchdpt-*.whl pytest cmake ninja
mkdir "$work/checkout"
cp -r tests csrc "$work/checkout"  # the tests, without the Python sources beside them
cd "$work/checkout"
PATH="$work/fresh/bin:$PATH" "$work/fresh/bin/python" -m pytest -q tests/python/test_packaging.py tests/python/test_downstream.py
echo "packaging: sdist, wheel and fresh installation are in order"
