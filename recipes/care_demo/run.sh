#!/usr/bin/env bash
# The demo on this machine, without a GPU. Further words are options of `verl-care demo`, after `--` Hydra overrides:
#   recipes/care_demo/run.sh --steps 10 --manager naive
set -euo pipefail

exec verl-care demo "$@"
