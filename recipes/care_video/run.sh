#!/usr/bin/env bash
# The published run on one machine with eight GPUs. Further words are Hydra overrides:
#   recipes/care_video/run.sh care=no_amplifier trainer.total_training_steps=1000
set -euo pipefail

# `+recipe@_global_=`, not `+recipe=`: fails where verl_care is not installed, instead of training plain verl.
exec python -m verl.trainer.main_ppo +recipe@_global_=care_video "$@"
