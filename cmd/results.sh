#!/usr/bin/env bash
# bash cmd/results.sh NAME ... [key=value ...]   make recorded results again: docs/results/<room>_<name>.json
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -eq 0 ]; then
    echo "usage: bash cmd/results.sh NAME ... (names and keys as for cmd/bench.sh)" >&2
    exit 2
fi
exec bash cmd/bench.sh --record "$@"
