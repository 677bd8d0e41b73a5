#!/usr/bin/env bash
# ExSearch's published steps: PROCEDURE=sft|align|inference|entropy|formate|reward bash cmd/exsearch.sh --ARGUMENT VALUE ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash cmd/setup.sh
exec env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m search_agent.exsearch "$@"
