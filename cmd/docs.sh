#!/usr/bin/env bash
# The documentation as a site in build/site (mkdocs-material, in an environment of its own): bash cmd/docs.sh [serve]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then sed -n '2s/^# //p' "${BASH_SOURCE[0]}"; exit 0; fi
python=build/docs-venv/bin/python
if ! cmp -s requirements/docs.txt build/docs-venv/installed.txt; then
    python3.11 -m venv --clear build/docs-venv
    "$python" -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
    cp requirements/docs.txt build/docs-venv/installed.txt
fi
if [ "${1:-}" = serve ]; then exec "$python" -m mkdocs serve; fi
exec "$python" -m mkdocs build --strict --quiet
