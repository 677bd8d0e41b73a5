#!/usr/bin/env bash
# Results as Markdown and a picture: bash cmd/report.sh RUN [RUN ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then exec bash cmd/help.sh report; fi
bash cmd/setup.sh
exec env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m search_agent.evaluation.report "$@"
