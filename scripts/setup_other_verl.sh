#!/usr/bin/env bash
# Makes an environment with another version of verl, for `make test-verl`: a virtual environment on top of the ordinary
# one, whose other packages it sees. What the other version asks for besides is printed, not installed.
#
#   BASE=.venv VENV=.venv-verl-0.9.0 scripts/setup_other_verl.sh 0.9.0
set -euo pipefail
cd "$(dirname "$0")/.."

VERSION=$1
BASE_SITE=$("$BASE/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$BASE/bin/python" -m venv --clear --without-pip "$VENV"
SITE=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# A plain path: what is installed here comes first.
echo "$BASE_SITE" > "$SITE/base_environment.pth"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check -qq "$@"; }
pip install --no-deps --ignore-installed "verl==$VERSION"
# What a build left in the clone would be found first, and hide the entry points of what is installed now.
rm -rf verl_care.egg-info
pip install --no-deps --no-build-isolation --ignore-installed -e .
pip check || true
