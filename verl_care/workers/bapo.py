"""BAPO inside the actor's worker: bounds are sought once a mini-batch, on all ranks together.

A loss sees one micro-batch, and ranks may have different numbers of them, so that a search inside it deadlocks. Here
each mini-batch begins with a forward pass without gradient; what it gives is added up over the ranks in one collective,
and the bounds go to the loss through verl's ``set_loss_fn``.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.padding import response_from_nested

from verl_care.config import BapoConfig
from verl_care.shaping.bapo import Bounds, contributions, search_bounds

CONFIG_KEY = "care_bapo"
"""Key under ``actor_rollout_ref`` that carries ``care.bapo`` to the workers, which see nothing else of the config."""


class BapoTrainingWorker(TrainingWorker):
    """verl's training worker with bounds of its own for each mini-batch."""

    bapo: BapoConfig

    def train_batch(self, data: TensorDict) -> TensorDict:
        """One update under the bounds that this mini-batch asks for."""
        bounds = self._search_bounds(data)
        actor = copy.copy(self.loss_fn.keywords["config"])
        # verl freezes the fields of a config; this is a copy.
        vars(actor).update(clip_ratio_low=1 - bounds.low, clip_ratio_high=bounds.high - 1)
        keywords = {**self.loss_fn.keywords, "config": actor}
        self.set_loss_fn(partial(self.loss_fn.func, *self.loss_fn.args, **keywords))
        output = super().train_batch(data)
        if output is not None:
            metrics = tu.get(output, "metrics")
            metrics |= {"bapo/clip_low": bounds.low, "bapo/clip_high": bounds.high}
            if bounds.positive_share == bounds.positive_share:
                metrics["bapo/positive_share"] = bounds.positive_share
        return output

    def _search_bounds(self, data: TensorDict) -> Bounds:
        inputs = data.copy()
        defaults = {
            "use_remove_padding": self.model_config.get("use_remove_padding", False),
            "use_dynamic_bsz": self.engine_config.use_dynamic_bsz,
            "max_token_len_per_gpu": self.engine_config.max_token_len_per_gpu,
            "micro_batch_size_per_gpu": self.engine_config.micro_batch_size_per_gpu,
            "use_fused_kernels": self.engine_config.use_fused_kernels,
        }
        tu.assign_non_tensor(inputs, **{key: value for key, value in defaults.items() if key not in inputs.keys()})
        tu.assign_non_tensor(inputs, calculate_entropy=False)
        output = self.engine.infer_batch(inputs)
        bounds_config = self.bapo
        nothing = torch.zeros(0)
        parts = contributions(nothing, nothing, nothing, nothing.bool(), bounds_config)
        if self.engine.is_mp_src_rank_with_outputs():
            mask = data["response_mask"]
            log_prob = response_from_nested(output["model_output"]["log_probs"], mask).values().cpu()
            old = data["old_log_probs"].values().cpu()
            weight = old.exp() if bounds_config.weight == "probability" else torch.ones_like(old)
            # As verl's loss bounds it.
            ratio = (log_prob - old).clamp(-20, 20).exp()
            parts = contributions(
                ratio, data["advantages"].values().cpu(), weight, mask.values().cpu().bool(), self.bapo
            )
        summed = torch.cat(parts).to(self.device_name)
        group = self.engine.get_data_parallel_group()
        if group is not None:
            torch.distributed.all_reduce(summed, group=group)
        positive, negative = summed.cpu().split([len(part) for part in parts])
        return search_bounds(positive, negative, bounds_config)


class BapoMixin:
    """Gives verl's actor worker the training worker above, where the config asks for it."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> Any:
        """verl's own, with the training worker that seeks bounds."""
        worker: Any = self
        constants = worker.config.get(CONFIG_KEY)
        if constants is not None:
            worker.actor_worker_cls = BapoTrainingWorker
        super().init_model()  # type: ignore[misc]
        if constants is not None and worker.actor is not None:
            worker.actor.bapo = BapoConfig(**constants)
