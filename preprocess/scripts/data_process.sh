#!/usr/bin/env bash
# Fetches the seven published question sets and builds train, validation and test parquet from them.
# Arguments are those of `python -m preprocess.questions` (out=DIR, protocol=..., valid_from=test).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ -x .venv/bin/python ] || bash cmd/setup.sh
.venv/bin/python -m preprocess.download --save_path data questions
.venv/bin/python -m preprocess.questions "$@"
