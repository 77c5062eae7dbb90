#!/usr/bin/env bash
# The supervised cold start on one machine; GPUS=4 for fewer than eight. Further words are Hydra overrides:
#   recipes/sft_video_r1/run.sh trainer.total_training_steps=1000
set -euo pipefail

exec torchrun --standalone --nproc_per_node="${GPUS:-8}" -m verl.trainer.sft_trainer \
  +recipe@_global_=sft_video_r1 trainer.n_gpus_per_node="${GPUS:-8}" "$@"
