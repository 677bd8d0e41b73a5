#!/usr/bin/env bash
# Score a model on its test split: model=RUN_FOLDER, model=HUGGING_FACE_FOLDER, or by default the newest finished run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then exec bash cmd/help.sh eval; fi
bash cmd/setup.sh
# Bytecode is kept even where the environment says not to: several processes import the same large libraries.
exec env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m search_agent.evaluate "$@"
