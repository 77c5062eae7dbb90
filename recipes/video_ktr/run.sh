#!/usr/bin/env bash
# Further words are Hydra overrides: recipes/video_ktr/run.sh trainer.total_training_steps=1000
set -euo pipefail

exec python -m verl.trainer.main_ppo +recipe@_global_=video_ktr "$@"
