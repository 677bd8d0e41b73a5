#!/usr/bin/env bash
# bash cmd/bench.sh [--quick] [name ...] [key=value ...]   run measurements (bench/<room>/<name>.py), all if none is named
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash cmd/setup.sh
exec env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m bench "$@"
