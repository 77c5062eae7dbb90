"""Adapter: prompts' lifecycles between verl's data loader, its rewards and its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from verl_care.config import Config
from verl_care.shaping.base import ShapingBatch
from verl_care.shaping.lifecycle import STAGES, Lifecycle, group_utilities
from verl_care.workers.batch import as_list
from verl_care.workers.state import resume_state, save_state
from verl_care.workers.trainer_part import TrainerPart

STATE_FILE = "care_lifecycle.json"
RULE = "favchat"


class PromptLifecycleMixin(TrainerPart):
    """Draws prompts by their utility, where ``care.favchat.enabled`` asks for it."""

    care_config: Config
    lifecycle: Lifecycle = Lifecycle()
    _waiting: TensorDict | None = None
    """Drawn prompts that the last batch had no room for."""
    _passed_over: int = 0

    def _fetch_one_gen_batch(self) -> TensorDict:
        if not self.care_config.favchat.enabled:
            return super()._fetch_one_gen_batch()
        size = self.config.data.get("gen_batch_size", None) or self.config.data.train_batch_size
        parts = [] if self._waiting is None else [self._waiting]
        # One pass over the data at most: what was passed over then comes up again, and is drawn some time.
        for _ in range(max(1, len(self.train_dataloader)) * self.care_config.favchat.revisit_every):
            if sum(map(len, parts)) >= size:
                break
            batch = super()._fetch_one_gen_batch()
            sources, indices = (as_list(batch[name]) for name in ("data_source", "index"))
            keys = [f"{source}/{index}" for source, index in zip(sources, indices, strict=True)]
            drawn, self.lifecycle = self.lifecycle.draw(keys, self.care_config.favchat)
            self._passed_over += len(drawn) - sum(drawn)
            if any(drawn):
                parts.append(_rows(batch, [row for row, take in enumerate(drawn) if take]))
        batch = parts[0] if len(parts) == 1 else tu.concat_tensordict(parts)
        self._waiting = _rows(batch, range(size, len(batch))) if len(batch) > size else None
        return _rows(batch, range(size)) if len(batch) > size else batch

    def observe_prompts(self, batch: ShapingBatch, metrics: dict) -> None:
        """Takes the utilities of an update's prompts into account, and says so in ``metrics``."""
        config = self.care_config.favchat
        utilities = group_utilities(batch.accuracy, batch.group, list(batch.prompt_key))
        self.lifecycle = self.lifecycle.observe(utilities, utilities.values(), config)
        metrics["care/favchat/utility"] = float(torch.tensor(list(utilities.values())).mean())
        # verl sums a key with "total" over the updates of a step.
        metrics["care/favchat/passed_over_total"] = float(self._passed_over)
        self._passed_over = 0
        stages = [self.lifecycle.stage(key, config) for key in self.lifecycle.prompts]
        for stage in STAGES:
            metrics[f"care/favchat/{stage}_share"] = stages.count(stage) / len(stages)

    def _save_checkpoint(self) -> None:
        if self.care_config.favchat.enabled:
            folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
            save_state(folder, RULE, self.global_steps, self.lifecycle.to_dict(), file=STATE_FILE)
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if not self.care_config.favchat.enabled or self.global_steps == 0:
            return
        saved = resume_state(
            self.config.trainer,
            RULE,
            self.global_steps,
            Lifecycle.from_dict,
            on_missing=self.care_config.on_missing_state,
            file=STATE_FILE,
        )
        self.lifecycle = self.lifecycle if saved is None else saved


def _rows(batch: TensorDict, rows: Any) -> TensorDict:
    return batch[torch.tensor(list(rows))]
