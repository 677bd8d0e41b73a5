#!/usr/bin/env bash
# Ask a trained model: bash cmd/ask.sh model=RUN_FOLDER "who wrote crimson harbor ?"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then exec bash cmd/help.sh ask; fi
bash cmd/setup.sh
# Bytecode is kept even where the environment says not to: several processes import the same large libraries.
exec env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m search_agent.ask "$@"
