#!/usr/bin/env bash
# Curves and every episode with its evidence, as one HTML file: bash cmd/viewer.sh RUN [RUN ...] [--serve]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then exec bash cmd/help.sh viewer; fi
bash cmd/setup.sh
exec env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m search_agent.viewer "$@"
