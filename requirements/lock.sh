#!/usr/bin/env bash
# Makes the two lock files again from the *.in files. Needs uv, which `bash cmd/setup.sh` puts into .venv, and in
# PIP_FIND_LINKS a folder with the CPU wheel of torch (from PyTorch's own index; the common one has no such build).
# No index address and no path of the machine it runs on goes into a lock.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${PIP_FIND_LINKS:?set it to a folder that holds the CPU wheel of torch}"

lock() {
    local kind=$1
    shift
    .venv/bin/uv pip compile "requirements/$kind.in" requirements/dev.in "$@" \
        --override requirements/overrides.txt \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --no-emit-index-url --no-emit-find-links --no-annotate --quiet \
        --custom-compile-command "bash requirements/lock.sh" \
        --output-file "requirements/$kind.lock"
}

lock cpu --override requirements/overrides_cpu.txt --find-links "$PIP_FIND_LINKS"
lock gpu
