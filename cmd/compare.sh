#!/usr/bin/env bash
# Is it better, and by how much, on the same questions? bash cmd/compare.sh BEFORE [AFTER] (run folders, seeds with commas)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then exec bash cmd/help.sh compare; fi
bash cmd/setup.sh
exec env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m search_agent.evaluation.compare "$@"
