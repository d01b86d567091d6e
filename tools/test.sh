#!/usr/bin/env bash
# Sets everything up and runs the tests: `bash tools/test.sh`, or with pytest's own options, as `-k moe -x`.
set -euo pipefail
arguments=("$@")
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" --dev
cd "$root"
export OMP_NUM_THREADS=1 # the workers, and ranks of their own below them, share the cores; a third works while others wait for a fault
exec "$venv/bin/python" -m pytest -n 3 --dist loadfile --no-loadscope-reorder ${arguments[@]+"${arguments[@]}"}
