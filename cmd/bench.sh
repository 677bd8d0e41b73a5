#!/usr/bin/env bash
# bash cmd/bench.sh [--quick] [name ...] [key=value ...]   run measurements, bench/<room>/<name>.py; without a name all
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash cmd/setup.sh
exec env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m bench "$@"
