#!/usr/bin/env bash
# Train. With no argument: the quick start. `bash cmd/train.sh --help` lists every key.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then exec bash cmd/help.sh train; fi
bash cmd/setup.sh
# Bytecode is kept even where the environment says not to: several processes import the same large libraries.
exec env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m search_agent.train "$@"
