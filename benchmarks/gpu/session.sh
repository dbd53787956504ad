#!/usr/bin/env bash
# The checks and measurements for a CUDA machine that is at hand for a quarter of an hour, in two starts:
#
#   bash benchmarks/gpu/session.sh 1 --out FOLDER      what is right and what is not; then mend it here
#   bash benchmarks/gpu/session.sh 2 3 --out FOLDER    the tests and compute-sanitizer; then the measurements
#
# --rehearse runs all of it on a machine without a GPU. Before leaving for one without a network, gather the
# packages: python -m benchmarks.gpu.packages. PYTHON names the interpreter whose torch sees the GPU.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
exec "${PYTHON:-python3}" -m benchmarks.gpu.session "$@"
