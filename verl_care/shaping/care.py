"""CARE: competence-aware reward shaping. Pure; reads top to bottom in the order of the method.

Source: arXiv 2606.19927; constants from 1Pansy/Video-CARE, ``grpo_trainer.py``, ``compute_effort_reward``.
Shape suffixes: N responses, G prompt groups.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from verl_care.config import STAGES, CareConfig, StageConfig
from verl_care.shaping import groups
from verl_care.shaping.base import Properties, Rule, Shaped, ShapingBatch, register_rule
from verl_care.shaping.competence import CompetenceState, effective_decay, update_competence

__all__ = ["CareConfig", "CareOutput", "CareRule", "shape"]


@dataclass(frozen=True)
class CareOutput:
    """Result of one call of ``shape``."""

    bonus: Tensor
    """Effort term of the reward, (N,); 0 for an accuracy of 0."""
    competence: float
    """Competence after this update; the stage follows from it."""
    pass_rate: Tensor
    """Mean accuracy of each response's group, (N,)."""
    effort_ratio: Tensor
    """z: length over the reference length, (N,)."""
    stage: str
    """Stage that shaped this batch."""
    amplifier: Tensor
    """1 + c * surprise, (N,)."""
    capped: Tensor
    """Where the effort stands at its cap, (N,), bool."""
    bonus_without_amplifier: Tensor
    """What the bonus would have been with an amplifier of 1, (N,)."""


def shape(
    accuracy_N: Tensor,
    length_N: Tensor,
    group_N: Tensor,
    competence: float,
    config: CareConfig | None = None,
    *,
    evicted_pass_rate: Tensor | None = None,
    previous_stage: str | None = None,
) -> CareOutput:
    """Effort of each response at the updated competence.

    effort = coefficient * min(cap, sigmoid(k * z) * amplifier) * accuracy; with ``blend_width`` the mean of the
    stages' efforts, weighted by their shares.

    Args:
        accuracy_N: task accuracy in [0, 1], (N,).
        length_N: response length in tokens, EOS included, (N,), >= 0.
        group_N: prompt group of each response, (N,), integers, any order.
        competence: P_b before this update, in [0, 1].
        config: constants; the published ones by default.
        evicted_pass_rate: pass rates of groups that group filtering removed, (E,); they count in the competence only.
        previous_stage: stage of the update before, for hysteresis; None before the first.

    Returns:
        Tensors of shape (N,), float32 (float64 for float64 input); an empty batch changes nothing.

    Raises:
        ValueError: shapes that differ, an accuracy outside [0, 1] or not finite, a negative length.
    """
    config = CareConfig() if config is None else config
    dtype = torch.float64 if accuracy_N.dtype == torch.float64 else torch.float32
    accuracy_N, length_N = accuracy_N.to(dtype), length_N.to(dtype)
    _check(accuracy_N, length_N, group_N)
    index_N, num_groups = groups.index_groups(group_N)
    pass_rate_G = groups.mean(accuracy_N, index_N, num_groups)
    competence = _next_competence(competence, pass_rate_G, evicted_pass_rate, config)
    stage_name = config.stage_of(competence, previous_stage)
    if accuracy_N.numel() == 0:
        empty = accuracy_N.new_zeros(0)
        return CareOutput(empty, competence, empty, empty, stage_name, empty, empty.bool(), empty)

    pass_rate_N = pass_rate_G[index_N]
    z_N = compute_effort_ratio(accuracy_N, length_N, index_N, num_groups, config)
    zeros_N = torch.zeros_like(accuracy_N)
    bonus_N, without_N, amplifier_N, capped_N = zeros_N, zeros_N, zeros_N, zeros_N.bool()
    for name, share in config.stage_shares(competence, stage_name).items():
        stage: StageConfig = getattr(config, name)
        logistic_N = torch.sigmoid(compute_slope(pass_rate_N, competence, stage, config.anchor) * z_N)
        factor_N = compute_amplifier(pass_rate_N, competence, stage)
        if not config.amplifier:
            factor_N = torch.ones_like(factor_N)
        weight_N = share * stage.coefficient * accuracy_N
        bonus_N = bonus_N + weight_N * (logistic_N * factor_N).clamp(max=config.effort_cap)
        without_N = without_N + weight_N * logistic_N.clamp(max=config.effort_cap)
        amplifier_N = amplifier_N + share * factor_N
        capped_N = capped_N | (logistic_N * factor_N >= config.effort_cap)
    return CareOutput(
        bonus=bonus_N,
        competence=competence,
        pass_rate=pass_rate_N,
        effort_ratio=z_N,
        stage=stage_name,
        amplifier=amplifier_N,
        capped=capped_N,
        bonus_without_amplifier=without_N,
    )


def decoupled_advantage(
    score_N: Tensor, effort_N: Tensor, group_N: Tensor, effort_std: float, *, norm_by_std: bool = True
) -> Tensor:
    """Advantage of a score and an effort that are normalised apart, (N,).

    A = (score - mean) / (std + eps) + (effort - mean) / effort_std, means and std over the group; std is the score's
    own. In a group whose scores are equal the first part is 0, and the second no larger than the efforts differ. Not
    from the paper, whose sum of both is divided by its own deviation.

    Args:
        score_N: what correctness, format and temporal contrast give, (N,).
        effort_N: CARE's bonus, (N,).
        group_N: prompt group of each response, (N,), integers.
        effort_std: divisor of the effort, > 0; 1 where advantages are not divided by deviations at all.
        norm_by_std: verl's ``algorithm.norm_adv_by_std_in_grpo``; False divides neither part.
    """
    score_part_N = groups.group_advantage(score_N, group_N, norm_by_std=norm_by_std)
    centred_N = effort_N - groups.group_mean(effort_N, group_N)
    return score_part_N + (centred_N / effort_std if norm_by_std else centred_N)


def compute_effort_ratio(
    accuracy_N: Tensor, length_N: Tensor, index_N: Tensor, num_groups: int, config: CareConfig
) -> Tensor:
    """z = L / (max(T_avg, w * quantile(L)) + eps), T_avg = max(ω * mean correct length, L_floor), (N,)."""
    if not config.calibration:
        return length_N / (config.length_floor_tokens + config.eps)
    correct_N = (accuracy_N > config.correct_threshold).to(length_N.dtype)
    if config.statistics == "batch":
        mean_correct = (length_N * correct_N).sum() / correct_N.sum().clamp(min=1)
        t_avg = (config.length_scale * mean_correct).clamp(min=config.length_floor_tokens)
        quantile = groups.quantile(length_N, config.length_quantile)
        return length_N / (torch.maximum(t_avg, config.length_quantile_weight * quantile) + config.eps)
    sum_G = length_N.new_zeros(num_groups).index_add_(0, index_N, length_N * correct_N)
    count_G = length_N.new_zeros(num_groups).index_add_(0, index_N, correct_N)
    t_avg_G = (config.length_scale * sum_G / count_G.clamp(min=1)).clamp(min=config.length_floor_tokens)
    quantile_G = groups.group_quantile(length_N, config.length_quantile, index_N, num_groups)
    reference_G = torch.maximum(t_avg_G, config.length_quantile_weight * quantile_G) + config.eps
    return length_N / reference_G[index_N]


def compute_slope(pass_rate_N: Tensor, competence: float, stage: StageConfig, anchor: float) -> Tensor:
    """k of the logistic, (N,): positive where longer responses earn more, negative where shorter ones do."""
    if stage.direction == "lengthen":
        return (
            stage.slope
            + stage.slope_pass_rate * (anchor - pass_rate_N)
            + stage.slope_competence * (anchor - competence)
        )
    above_N = (pass_rate_N - anchor).clamp(min=0)
    return -(stage.slope + stage.slope_pass_rate * above_N + stage.slope_competence * (competence - anchor))


def compute_amplifier(pass_rate_N: Tensor, competence: float, stage: StageConfig) -> Tensor:
    """1 + c * |Δ| where the stage lengthens, 1 + c * (Δ)+ where it shortens; Δ = pass rate - competence, (N,)."""
    surprise_N = pass_rate_N - competence
    return 1 + stage.amplifier * (surprise_N.abs() if stage.direction == "lengthen" else surprise_N.clamp(min=0))


def _next_competence(
    competence: float, pass_rate_G: Tensor, evicted_pass_rate: Tensor | None, config: CareConfig
) -> float:
    if evicted_pass_rate is not None and evicted_pass_rate.numel():
        pass_rate_G = torch.cat([pass_rate_G, evicted_pass_rate.to(pass_rate_G)])
    if pass_rate_G.numel() == 0:
        return competence
    decay = effective_decay(config.ema_decay, config.ema_per, pass_rate_G.numel(), config.ema_prompts)
    return update_competence(competence, float(pass_rate_G.mean()), decay)


def _check(accuracy_N: Tensor, length_N: Tensor, group_N: Tensor) -> None:
    shapes = [tuple(t.shape) for t in (accuracy_N, length_N, group_N)]
    if accuracy_N.ndim != 1 or len(set(shapes)) != 1:
        raise ValueError(f"expected accuracy, length and group of one shape (N,); got {shapes}")
    if accuracy_N.numel() == 0:
        return
    low, high = (float(bound) for bound in torch.aminmax(accuracy_N))
    if not (0.0 <= low and high <= 1.0):
        raise ValueError(f"accuracy: expected values in [0, 1]; got {low} to {high}")
    low, high = (float(bound) for bound in torch.aminmax(length_N))
    if not (0.0 <= low and high < float("inf")):
        raise ValueError(f"length: expected finite token counts >= 0; got {low} to {high}")


@register_rule
@dataclass(frozen=True, kw_only=True)
class CareRule(Rule):
    """CARE behind the batch interface: ``shape`` on the whole batch, or on each replica's share of its prompts."""

    name: ClassVar[str] = "care"
    source: ClassVar[str] = "arXiv 2606.19927; 1Pansy/Video-CARE grpo_trainer.py compute_effort_reward"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False
    )

    config: CareConfig = field(default_factory=CareConfig)

    @classmethod
    def from_constants(cls, **constants: Any) -> CareRule:
        return cls(config=CareConfig(**constants))

    def initial_state(self) -> CompetenceState:
        return CompetenceState((self.config.initial_competence,) * self.config.num_competences)

    def state_from_dict(self, data: Mapping[str, Any]) -> CompetenceState:
        state = CompetenceState.from_dict(data)
        by_source = self.config.competence_scope == "data_source"
        if by_source != bool(state.sources) and state.updates:
            raise ValueError(
                f"the saved state has {'one competence a data source' if state.sources else 'no data sources'}, "
                f"competence_scope={self.config.competence_scope} needs it otherwise"
            )
        if not by_source and len(state.competence) != self.config.num_competences:
            raise ValueError(
                f"the saved state has {len(state.competence)} competences, "
                f"competence_scope={self.config.competence_scope} needs {self.config.num_competences}"
            )
        return state

    def shape(self, batch: ShapingBatch, state: CompetenceState) -> tuple[Shaped, CompetenceState]:
        if self.config.competence_scope == "data_source":
            state, rows = self._split_by_source(batch, state)
        elif len(state.competence) > 1:
            replica_N = assign_replicas(batch, len(state.competence))
            rows = [(replica_N == replica).nonzero().squeeze(1) for replica in range(len(state.competence))]
        else:
            rows = [None]
        config, competences = self._config_at(batch.step), list(state.competence)
        stages: list[str | None] = list(state.stages) or [None] * len(competences)
        # Of a filtered group nothing but its pass rate is known, so it counts only where there is one competence.
        evicted = batch.extra.get("evicted_pass_rate") if len(rows) == 1 else None
        outputs = []
        for part, rows_P in enumerate(rows):
            if rows_P is not None and rows_P.numel() == 0 and self.config.competence_scope == "data_source":
                continue
            out = _shape_rows(batch, rows_P, competences[part], config, evicted, stages[part])
            outputs.append((rows_P, out))
            competences[part], stages[part] = out.competence, out.stage
        state = CompetenceState(
            competence=tuple(competences),
            updates=state.updates + 1,
            stages=tuple(stage or config.stage_of(c) for stage, c in zip(stages, competences, strict=True))
            if config.has_hysteresis
            else (),
            sources=state.sources,
        )
        merged = {name: _merge(outputs, name, len(batch)) for name in ("bonus", "pass_rate", "effort_ratio", "capped")}
        stage_index = sum(STAGES.index(out.stage) for _, out in outputs) / len(outputs)
        metrics = {
            "care/stage": stage_index,
            "care/effort_ratio": float(merged["effort_ratio"].mean()),
            "care/effort/capped_share": float(merged["capped"].float().mean()),
        }
        columns = {
            "effort_ratio": merged["effort_ratio"],
            "stage": _stages(outputs, len(batch)),
            "bonus_without_amplifier": _merge(outputs, "bonus_without_amplifier", len(batch)),
        }
        advantage = None
        if config.advantage == "decoupled":
            advantage = decoupled_advantage(
                batch.score, merged["bonus"], batch.group, config.effort_std, norm_by_std=batch.norm_by_std
            )
        return Shaped(bonus=merged["bonus"], metrics=metrics, columns=columns, advantage=advantage), state

    def _config_at(self, step: int) -> CareConfig:
        if self.config.clock_step is None:
            return self.config
        stage = "explore_hard" if step < self.config.clock_step else "concise"
        return replace(self.config, clock_step=None, fixed_stage=stage)

    def _split_by_source(self, batch: ShapingBatch, state: CompetenceState) -> tuple[CompetenceState, list[Tensor]]:
        """The state with a competence for every source of the batch, and the rows of each source of the state."""
        if not batch.prompt_key:
            raise ValueError("competence_scope=data_source: the batch has no prompt keys, which begin with the source")
        source_of_row = [key.rsplit("/", 1)[0] for key in batch.prompt_key]
        known = list(state.sources)
        new = [source for source in sorted(set(source_of_row)) if source not in known]
        start = self.config.initial_competence
        competence = (*state.competence[: len(known)], *[start] * len(new))
        stages = (*state.stages, *[self.config.stage_of(start)] * len(new)) if state.stages else ()
        state = replace(state, competence=competence, stages=stages, sources=(*known, *new))
        place = {source: i for i, source in enumerate(state.sources)}
        part_N = torch.tensor([place[source] for source in source_of_row])
        return state, [(part_N == part).nonzero().squeeze(1) for part in range(len(place))]

    def state_metrics(self, state: CompetenceState) -> dict[str, float]:
        metrics = {"care/competence": state.mean}
        if len(state.competence) > 1:
            metrics["care/competence_spread"] = float(torch.tensor(state.competence).std())
        for source, competence in zip(state.sources, state.competence, strict=False):
            metrics[f"care/competence/{source}"] = competence
        return metrics


def _shape_rows(
    batch: ShapingBatch,
    rows: Tensor | None,
    competence: float,
    config: CareConfig,
    evicted: Tensor | None,
    previous_stage: str | None,
) -> CareOutput:
    """``shape`` on some rows of a batch; None: on all of them."""
    accuracy, length, group = batch.accuracy, batch.length, batch.group
    if rows is not None:
        accuracy, length, group = accuracy[rows], length[rows], group[rows]
    return shape(accuracy, length, group, competence, config, evicted_pass_rate=evicted, previous_stage=previous_stage)


def assign_replicas(batch: ShapingBatch, num_replicas: int) -> Tensor:
    """Deals the batch's prompts out to replicas, (N,), int64, as evenly as they go.

    By a hash of step and prompt key, so that neither row order nor a resume changes it and no data source sticks to one
    replica; the published sampler shuffles too.
    """
    index_N, num_groups = groups.index_groups(batch.group)
    first_G = torch.zeros(num_groups, dtype=torch.int64).scatter_reduce_(
        0, index_N, torch.arange(len(batch)), "amin", include_self=False
    )
    names = [batch.prompt_key[i] if batch.prompt_key else str(int(batch.group[i])) for i in first_G.tolist()]
    order = sorted(range(num_groups), key=lambda g: (zlib.crc32(f"{batch.step}/{names[g]}".encode()), names[g]))
    replica_G = torch.empty(num_groups, dtype=torch.int64)
    replica_G[torch.tensor(order, dtype=torch.int64)] = torch.arange(num_groups) % num_replicas
    return replica_G[index_N]


def _merge(outputs: list[tuple[Tensor | None, CareOutput]], name: str, num_rows: int) -> Tensor:
    if outputs[0][0] is None:
        return getattr(outputs[0][1], name)
    merged = getattr(outputs[0][1], name).new_empty(num_rows)
    for rows, out in outputs:
        merged[rows] = getattr(out, name)
    return merged


def _stages(outputs: list[tuple[Tensor | None, CareOutput]], num_rows: int) -> list[str]:
    stages = [outputs[0][1].stage] * num_rows
    for rows, out in outputs:
        for row in [] if rows is None else rows.tolist():
            stages[row] = out.stage
    return stages
