#!/usr/bin/env bash
# Makes .venv with the pinned dependencies. A second run returns at once; a run that was broken off starts again.
# Where PIP_FIND_LINKS is set, wheels are also looked for there; elsewhere uv picks PyTorch's index for this machine
# (UV_TORCH_BACKEND=cu130, say, picks another). SLEUTH_ACCELERATOR=gpu or cpu decides where no GPU can be seen or used.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv_version=0.13.8

say() { printf '%s\n' "$*" >&2; }

if [ "$(uname -s)" != Linux ] || [ "$(uname -m)" != x86_64 ]; then
    say "Sleuth runs on Linux x86-64 with Python 3.11; this machine is $(uname -s) $(uname -m)."
    exit 2
fi
python=$(command -v python3.11 || true)
if [ -z "$python" ] || ! "$python" -c 'import ensurepip' 2>/dev/null; then
    say "Sleuth needs python3.11 with its venv module on PATH (Debian and Ubuntu: apt install python3.11 python3.11-venv)."
    exit 2
fi

if [ -L .venv ]; then # another checkout's, which may be in use: used as it is, and never cleared or changed from here
    if [ -x .venv/bin/python ]; then exit 0; fi
    say ".venv is a link to $(readlink .venv), which holds no Python: set it up there, or remove the link."
    exit 2
fi

exec 9<cmd/setup.sh # two commands started together set up once
flock 9

if [ -n "${SLEUTH_ACCELERATOR:-}" ]; then
    kind=$SLEUTH_ACCELERATOR
elif nvidia-smi -L >/dev/null 2>&1; then
    kind=gpu
else
    kind=cpu
fi
if [ ! -f "requirements/$kind.lock" ]; then
    say "SLEUTH_ACCELERATOR is $kind; write gpu or cpu."
    exit 2
fi
stamp=.venv/.setup-stamp
wanted="$kind $(cat cmd/setup.sh "requirements/$kind.lock" | sha256sum | cut -d' ' -f1)"
if [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ]; then exit 0; fi

start=$SECONDS
if [ -f "$stamp" ]; then
    say "Set-up: the pinned packages changed; bringing .venv up to date ($kind)."
    rm "$stamp"
else
    say "Set-up: installing the pinned packages into .venv ($kind; about half a minute with a good connection)."
    "$python" -m venv --clear .venv
fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
if [ -n "${PIP_FIND_LINKS:-}" ]; then
    source=(--find-links "$PIP_FIND_LINKS")
else
    source=(--torch-backend="${UV_TORCH_BACKEND:-auto}")
fi
# The lock is complete (requirements/overrides.txt was applied when it was made), so nothing is resolved here. torch
# comes first and alone: with --torch-backend, uv would look for triton and others in PyTorch's index only.
install() { .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps "$@"; }
install "${source[@]}" "$(grep '^torch==' "requirements/$kind.lock")"
install -r "requirements/$kind.lock"
install --no-build-isolation --editable .
printf '%s\n' "$wanted" >"$stamp"
say "Set-up: done in $((SECONDS - start)) s."
