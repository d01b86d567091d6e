#!/usr/bin/env bash
# Sets everything up and runs the main job end to end: `bash tools/demo.sh`, or with `--data DIR` on your own dataset.
# The options are those of tools/demo.py (`bash tools/demo.sh --help`).
set -euo pipefail
arguments=("$@")
set --
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$venv/bin/python" "$root/tools/demo.py" --setup-seconds "$SECONDS" ${arguments[@]+"${arguments[@]}"}
