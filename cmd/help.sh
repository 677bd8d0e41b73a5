#!/usr/bin/env bash
# What `--help` and `-h` run: sources are read only, so it answers before anything is installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
if [ ! -x "$python" ]; then python=$(command -v python3.11 || command -v python3.12 || command -v python3); fi
exec "$python" -m search_agent.console.help "$@"
