#!/usr/bin/env bash
# bash cmd/test.sh [pytest arguments]       set up, check style and types, run the tests (minutes)
# bash cmd/test.sh slow [pytest arguments]  run the long tests only
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash cmd/setup.sh

selection="not slow"
checks=(".venv/bin/ruff check ." ".venv/bin/ruff format --check ." ".venv/bin/mypy")
if [ "${1:-}" = slow ]; then
    selection="slow"
    checks=()
    shift
fi

failed=0
for check in "${checks[@]}"; do
    echo "== $check"
    $check || failed=1
done
echo "== pytest -m '$selection'"
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m pytest --verbose -m "$selection" "$@" || failed=1
exit $failed
