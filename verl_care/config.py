"""Typed config of the top-level ``care:`` node.

One frozen dataclass per YAML node; ``conf/care/base.yaml`` equals the defaults here. Imports neither torch nor verl, so
that a config can be checked anywhere. Constants are those of the published code: arXiv 2606.19927, repository
1Pansy/Video-CARE, ``grpo_trainer.py``, function ``compute_effort_reward``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STAGES = ("explore_hard", "explore", "refine", "concise")
"""Stage names in order of competence; the index is what ``care/stage`` logs."""


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name}: expected {expected}; got {value!r}")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One row of the stage table: slope, amplifier and coefficient of the effort.

    With R the pass rate of the row's group, P the competence, a the anchor, D = R - P and (x)+ = max(x, 0):

    ``lengthen``: k =   slope + slope_pass_rate * (a - R)  + slope_competence * (a - P);   amplifier 1 + c * |D|
    ``shorten``:  k = -(slope + slope_pass_rate * (R - a)+ + slope_competence * (P - a));  amplifier 1 + c * (D)+
    """

    direction: str
    """``lengthen``: longer correct responses earn more; ``shorten``: shorter ones do."""
    slope: float
    """Slope of the logistic at the anchor, per unit of effort ratio."""
    slope_pass_rate: float
    """What the distance of the group's pass rate from the anchor adds to the slope."""
    slope_competence: float
    """What the distance of the competence from the anchor adds to the slope."""
    amplifier: float
    """Weight c of the surprise in the amplifier; 0 switches it off."""
    coefficient: float
    """Weight of the effort in the reward; 0 switches it off."""

    def __post_init__(self) -> None:
        _require(self.direction in ("lengthen", "shorten"), "direction", self.direction, "lengthen or shorten")
        for name in ("slope", "slope_pass_rate", "slope_competence", "amplifier", "coefficient"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, name, value, "a finite number >= 0")


def _stage(direction: str, slope: float, pass_rate: float, competence: float, amplifier: float, coefficient: float):
    return field(
        default_factory=lambda: StageConfig(
            direction=direction,
            slope=slope,
            slope_pass_rate=pass_rate,
            slope_competence=competence,
            amplifier=amplifier,
            coefficient=coefficient,
        )
    )


@dataclass(frozen=True, kw_only=True)
class CareConfig:
    """Every constant of CARE's effort; the defaults are the published ones."""

    ema_decay: float = 0.99
    """λ: weight of the old competence in an update."""
    initial_competence: float = 0.60
    """P_b before the first update."""
    anchor: float = 0.70
    """a: pass rate and competence at which the slopes have their base value."""
    explore_threshold: float = 0.65
    """Competence at which explore begins; below it the stage is explore_hard."""
    refine_threshold: float = 0.70
    """Competence at which refine begins."""
    concise_threshold: float = 0.75
    """Competence at which concise begins."""
    correct_threshold: float = 0.1
    """Responses with an accuracy above this count as correct in the length calibration."""
    length_scale: float = 2.5
    """ω: multiple of the mean correct length that is taken as reference length."""
    length_floor_tokens: float = 300.0
    """L_floor: lowest reference length, in tokens; also the reference when no response is correct."""
    length_quantile: float = 0.75
    """Quantile of all lengths that bounds the reference from below (linear interpolation)."""
    length_quantile_weight: float = 0.5
    """Weight of that quantile."""
    eps: float = 1e-6
    """Added to the reference length before dividing."""
    effort_cap: float = 0.95
    """Upper bound of logistic times amplifier."""
    explore_hard: StageConfig = _stage("lengthen", 3.0, 0.2, 0.3, 1.0, 0.30)
    explore: StageConfig = _stage("lengthen", 1.2, 0.2, 0.1, 0.5, 0.25)
    refine: StageConfig = _stage("shorten", 1.2, 0.2, 0.1, 0.2, 0.20)
    concise: StageConfig = _stage("shorten", 3.0, 0.5, 0.3, 0.5, 0.20)
    amplifier: bool = True
    """False: the amplifier is 1 in every stage (ablation)."""
    calibration: bool = True
    """False: the reference length is ``length_floor_tokens`` whatever the batch holds (ablation)."""
    fixed_stage: str | None = None
    """One of the four stages, whatever the competence (ablation: no competence routing); null: by competence."""
    clock_step: int | None = None
    """explore_hard before this optimisation step and concise from it on, whatever the competence (ablation: routing by
    the clock); null: by competence."""
    rise_margin: float = 0.0
    """Hysteresis: how far above its threshold the competence must come before a stage begins."""
    fall_margin: float = 0.0
    """Hysteresis: how far below its threshold the competence must fall before a stage is left for the one before."""
    blend_width: float = 0.0
    """Within this distance of a threshold the efforts of the two stages are mixed, by shares that change evenly with
    the competence; 0 switches at the threshold."""
    advantage: str = "joint"
    """``joint``: correctness and effort are added and normalised together, as published; ``decoupled``: the score is
    normalised by its own deviation in the group, and the effort, less its group mean, is divided by ``effort_std``: a
    group that is all right then does not turn the last digit of its efforts into full-size advantages."""
    effort_std: float = 0.05
    """Divisor of the effort with ``advantage: decoupled``. 0.5, the deviation of a half-right group's accuracy, weighs
    an effort as joint normalisation does in such a group; the default was chosen in the simulator (docs/study.md)."""
    statistics: str = "batch"
    """Where mean correct length and quantile are taken: ``batch`` or ``group`` (one prompt, as published)."""
    ema_per: str = "step"
    """``step``: one λ per update; ``prompt``: λ^(prompts / ema_prompts), a memory that the batch size leaves alone."""
    ema_prompts: int = 8
    """Prompts that one λ stands for with ``ema_per: prompt`` (the published run saw 8 a step, one on each device)."""
    competence_scope: str = "global"
    """``global``: one competence for the run; ``replicas(n)``: n of them, each fed by its share of the prompts (the
    published code keeps one a rank; on a command line ``replicas:8`` needs no quotes); ``data_source``: one for each
    data source, with a length calibration of its own. Batches hold few prompts of each: see ``ema_per: prompt``."""

    def __post_init__(self) -> None:
        for name in ("ema_decay", "initial_competence", "anchor", "length_quantile"):
            value = getattr(self, name)
            _require(0.0 <= value <= 1.0, name, value, "a number in [0, 1]")
        thresholds = (self.explore_threshold, self.refine_threshold, self.concise_threshold)
        _require(
            list(thresholds) == sorted(thresholds),
            "explore_threshold, refine_threshold, concise_threshold",
            thresholds,
            "three numbers in rising order",
        )
        _require(self.length_floor_tokens > 0, "length_floor_tokens", self.length_floor_tokens, "a number > 0")
        _require(self.length_scale > 0, "length_scale", self.length_scale, "a number > 0")
        _require(
            self.length_quantile_weight >= 0, "length_quantile_weight", self.length_quantile_weight, "a number >= 0"
        )
        _require(self.eps >= 0, "eps", self.eps, "a number >= 0")
        _require(self.effort_cap > 0, "effort_cap", self.effort_cap, "a number > 0")
        _require(
            self.fixed_stage is None or self.fixed_stage in STAGES,
            "fixed_stage",
            self.fixed_stage,
            f"null or one of {STAGES}",
        )
        _require(
            self.clock_step is None or (self.clock_step >= 1 and self.fixed_stage is None),
            "clock_step",
            self.clock_step,
            "null or an integer >= 1, without fixed_stage",
        )
        for name in ("rise_margin", "fall_margin", "blend_width"):
            _require(0.0 <= getattr(self, name) <= 1.0, name, getattr(self, name), "a number in [0, 1]")
        _require(
            self.blend_width == 0 or not self.has_hysteresis,
            "blend_width",
            self.blend_width,
            "0 together with rise_margin or fall_margin",
        )
        _require(self.advantage in ("joint", "decoupled"), "advantage", self.advantage, "joint or decoupled")
        _require(self.effort_std > 0, "effort_std", self.effort_std, "a number > 0")
        _require(self.statistics in ("batch", "group"), "statistics", self.statistics, "batch or group")
        _require(self.ema_per in ("step", "prompt"), "ema_per", self.ema_per, "step or prompt")
        _require(self.ema_prompts >= 1, "ema_prompts", self.ema_prompts, "an integer >= 1")
        _require(
            self.num_competences >= 1,
            "competence_scope",
            self.competence_scope,
            "global, data_source, replicas(n) or replicas:n",
        )

    @property
    def num_competences(self) -> int:
        """How many competences the run begins with: 1, or n of ``replicas(n)``; 0 for an unreadable scope."""
        if self.competence_scope in ("global", "data_source"):
            return 1
        match = re.fullmatch(r"replicas(?:\((\d+)\)|:(\d+))", self.competence_scope)
        return int(match.group(1) or match.group(2)) if match else 0

    @property
    def has_hysteresis(self) -> bool:
        """Whether the stage depends on the one before."""
        return self.rise_margin > 0 or self.fall_margin > 0

    @property
    def thresholds(self) -> tuple[float, float, float]:
        """Competences at which the second, third and fourth stage begin."""
        return (self.explore_threshold, self.refine_threshold, self.concise_threshold)

    def stage_of(self, competence: float, previous: str | None = None) -> str:
        """Stage at this competence; a threshold belongs to the stage that begins there.

        Args:
            competence: P_b after the update.
            previous: stage of the update before, for the margins; None: they do not count.
        """
        if self.fixed_stage is not None:
            return self.fixed_stage
        if previous is None or not self.has_hysteresis:
            return STAGES[sum(competence >= threshold for threshold in self.thresholds)]
        index = STAGES.index(previous)
        while index < len(self.thresholds) and competence >= self.thresholds[index] + self.rise_margin:
            index += 1
        while index > 0 and competence < self.thresholds[index - 1] - self.fall_margin:
            index -= 1
        return STAGES[index]

    def stage_shares(self, competence: float, stage: str) -> dict[str, float]:
        """Shares of the stages in the effort, adding up to 1: ``stage`` alone, or those that ``blend_width`` mixes."""
        if self.blend_width == 0 or self.fixed_stage is not None:
            return {stage: 1.0}
        # Share of each threshold that is behind; falls from one to the next as the thresholds rise.
        behind = [min(1.0, max(0.0, (competence - t) / (2 * self.blend_width) + 0.5)) for t in self.thresholds]
        edges = [1.0, *behind, 0.0]
        return {name: high - low for name, high, low in zip(STAGES, edges[:-1], edges[1:], strict=True) if high > low}


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """Temporal contrast of T-GRPO (arXiv 2503.21776; Video-R1 ``grpo_trainer.py``)."""

    enabled: bool = True
    """Generates responses on shuffled frames while training, and adds the bonus where a group has some; a group without
    them (images, text, videos of one frame) gets none."""
    responses: int | None = None
    """Responses on shuffled frames for each prompt with a video, at most ``rollout.n``; null: half of ``rollout.n``."""
    bonus: float = 0.3
    """Added to the reward of each correct response of a group that passes."""
    factor: float = 0.8
    """A group passes when accuracy on ordered frames >= factor * accuracy on shuffled frames (paper 1.0, code 0.8)."""
    margin: float = 0.0
    """Added to the right-hand side: by how much ordered frames must win."""
    correct_threshold: float = 0.1
    """Responses with an accuracy above this earn the bonus."""

    def __post_init__(self) -> None:
        _require(self.responses is None or self.responses >= 0, "responses", self.responses, "null or an integer >= 0")
        _require(self.bonus >= 0, "bonus", self.bonus, "a number >= 0")
        _require(self.factor >= 0, "factor", self.factor, "a number >= 0")

    def num_responses(self, rollout_n: int) -> int:
        """Responses on shuffled frames for a prompt with ``rollout_n`` responses on ordered ones.

        Raises:
            ValueError: more are asked for than there are sessions.
        """
        if not self.enabled:
            return 0
        if self.responses is None:
            return rollout_n // 2
        _require(
            self.responses <= rollout_n,
            "care.contrast.responses",
            self.responses,
            f"at most actor_rollout_ref.rollout.n={rollout_n}: each session gives one at most",
        )
        return self.responses


SIGNALS = ("visual", "temporal", "entropy")
"""Video-KTR's signals of a token: it depends on the picture, on the order of the frames, or was uncertain."""

TOKEN_SELECTIONS = ("video_ktr", "d3s", "capo")
"""Ways to choose the tokens that train."""


@dataclass(frozen=True, kw_only=True)
class VideoKtrConfig:
    """Video-KTR (arXiv 2601.19686; zywang0104/Video-KTR ``grpo_trainer.py``); defaults are the paper's."""

    signals: list[str] = field(default_factory=lambda: list(SIGNALS))
    """Which of visual, temporal and entropy choose tokens."""
    visual_ratio: float = 0.2
    """Share of tokens that the visual signal chooses."""
    temporal_ratio: float = 0.2
    """Share of tokens that the temporal signal chooses."""
    entropy_ratio: float = 0.2
    """Share of tokens that the entropy chooses."""
    difference: str = "absolute"
    """``absolute`` (paper), or ``signed`` (published code): only tokens that vision or order made more likely."""
    scope: str = "response"
    """Where shares are counted: ``response``, or ``group``: over all responses to a prompt (published code)."""
    combine: str = "union"
    """``union`` or ``intersection`` of what the signals choose."""
    random: bool = False
    """Control: as many tokens of each response as would be chosen, drawn at random."""
    seed: int = 0
    """Of frame orders and random draws."""

    def __post_init__(self) -> None:
        _require(
            len(self.signals) > 0 and set(self.signals) <= set(SIGNALS) and len(set(self.signals)) == len(self.signals),
            "signals",
            list(self.signals),
            f"one or more of {', '.join(SIGNALS)}, each once",
        )
        for name in ("visual_ratio", "temporal_ratio", "entropy_ratio"):
            _require(0.0 <= getattr(self, name) <= 1.0, name, getattr(self, name), "a number in [0, 1]")
        _require(self.difference in ("absolute", "signed"), "difference", self.difference, "absolute or signed")
        _require(self.scope in ("response", "group"), "scope", self.scope, "response or group")
        _require(self.combine in ("union", "intersection"), "combine", self.combine, "union or intersection")


@dataclass(frozen=True, kw_only=True)
class D3sConfig:
    """D3S (arXiv 2509.22115). The paper's constants could not be read; these make fewer than 20 % of the tokens train
    over most of a run, its headline."""

    responses_initial: float = 0.25
    """Share of the responses that train at the first step."""
    responses_final: float = 0.5
    """Share of the responses that train at the last step."""
    tokens_initial: float = 0.1
    """Share of those responses' tokens that train at the first step."""
    tokens_final: float = 0.3
    """Share of those responses' tokens that train at the last step."""
    choose_from: str = "batch"
    """Where the responses of largest variance are sought: ``batch``, over all prompts, or in each ``group``."""

    def __post_init__(self) -> None:
        for name in ("responses_initial", "responses_final", "tokens_initial", "tokens_final"):
            _require(0.0 <= getattr(self, name) <= 1.0, name, getattr(self, name), "a number in [0, 1]")
        _require(self.choose_from in ("batch", "group"), "choose_from", self.choose_from, "batch or group")


@dataclass(frozen=True, kw_only=True)
class CapoConfig:
    """CAPO (arXiv 2510.00819; luckeciano/stable-pg-llm). Thresholds are the recipe's, which are for a model of Adam's
    steps; here steps are plain gradients, so tune them by ``care/tokens/capo_…`` and with the learning rate."""

    fisher_threshold: float = 1e-4
    """Predicted shifts of the policy from here on reject a token; 0 switches the test off."""
    hessian_threshold: float = 0.01
    """Predicted changes of the objective of this size on reject a token; 0 switches the test off."""
    hidden_norm_squared: float | None = None
    """Squared norm of the last hidden state; null: the hidden size, that of a normalised state with unit weights."""

    def __post_init__(self) -> None:
        for name in ("fisher_threshold", "hessian_threshold"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "a number >= 0")
        norm = self.hidden_norm_squared
        _require(norm is None or norm > 0, "hidden_norm_squared", norm, "null or a number > 0")


SCHEDULES = ("cosine", "stair", "stair_cosine")


@dataclass(frozen=True, kw_only=True)
class SiriConfig:
    """SIRI (arXiv 2509.25176): a response budget in cycles. Published: 16,384 and 8,192 tokens, cosine, three cycles of
    640 steps, for mathematics."""

    enabled: bool = False
    """Ends sampling at the budget of the step, in training alone."""
    schedule: str = "cosine"
    """``cosine`` (best as published), ``stair`` or ``stair_cosine``."""
    max_tokens: int | None = None
    """Largest budget; null: ``data.max_response_length``."""
    min_tokens: int | None = None
    """Smallest budget; null: half of the largest."""
    period: int | None = None
    """Steps of a cycle; null: a third of the run."""

    def __post_init__(self) -> None:
        _require(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {', '.join(SCHEDULES)}")
        for name, least in (("max_tokens", 1), ("min_tokens", 1), ("period", 2)):
            value = getattr(self, name)
            _require(value is None or value >= least, name, value, f"null or an integer >= {least}")
        _require(
            self.max_tokens is None or self.min_tokens is None or self.min_tokens <= self.max_tokens,
            "min_tokens",
            self.min_tokens,
            f"at most max_tokens={self.max_tokens}",
        )


@dataclass(frozen=True, kw_only=True)
class FavchatConfig:
    """Lifecycles of prompts (heavenhellchen/FaVChat), mended; thresholds are the published ones."""

    enabled: bool = False
    """Passes over prompts of low and of high utility, before anything is generated for them."""
    smoothing: float = 0.8
    """Weight of the old utility."""
    remove_below: float = 0.2
    """Prompts of a lower utility are removed: drawn once in ``revisit_every`` times."""
    cool_above: float = 0.8
    """Prompts of a higher utility are cooled down: drawn once in ``cool_every`` times; 1 cools none."""
    cool_every: int = 2
    """Published: half the weight."""
    revisit_every: int = 4
    """Published: never again."""

    def __post_init__(self) -> None:
        _require(0.0 <= self.smoothing < 1.0, "smoothing", self.smoothing, "a number in [0, 1)")
        _require(
            0.0 <= self.remove_below <= self.cool_above <= 1.0,
            "remove_below, cool_above",
            (self.remove_below, self.cool_above),
            "two numbers in [0, 1] in rising order",
        )
        for name in ("cool_every", "revisit_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "an integer >= 1")


@dataclass(frozen=True, kw_only=True)
class AnnealingConfig:
    """Exploratory annealed decoding (arXiv 2510.05251; yangalan123/ead_rlvr); constants of its scripts."""

    enabled: bool = False
    """Samples training responses at a temperature that falls from token to token."""
    tau_max: float = 1.2
    """Temperature at the beginning, a multiple of ``rollout.temperature``."""
    tau_min: float = 0.1
    """Lowest temperature."""
    decay: float = 50.0
    """How slowly it falls at the first step, in units of 20 tokens."""
    decay_growth: float = 5.0
    """What a step adds to ``decay``, since responses grow longer in training."""
    decay_max: float = 40000.0
    """Largest ``decay``."""
    warm_up: int = 10
    """First tokens, those of a template, which are sampled at ``rollout.temperature``."""

    def __post_init__(self) -> None:
        _require(
            0.0 < self.tau_min <= self.tau_max, "tau_min", self.tau_min, f"a number in (0, tau_max={self.tau_max}]"
        )
        _require(0.0 < self.decay <= self.decay_max, "decay", self.decay, f"a number in (0, {self.decay_max}]")
        _require(self.decay_growth >= 0, "decay_growth", self.decay_growth, "a number >= 0")
        _require(self.warm_up >= 0, "warm_up", self.warm_up, "an integer >= 0")


@dataclass(frozen=True, kw_only=True)
class BapoConfig:
    """BAPO's adaptive clip bounds (arXiv 2510.18927); constants are the paper's."""

    enabled: bool = False
    """Seeks the bounds of the ratio anew for each mini-batch; costs one forward pass each."""
    target_share: float = 0.4
    """Share of the loss that tokens of positive advantage are to carry (the code's README has 0.5)."""
    low_start: float = 0.6
    """First lower bound of the ratio."""
    low_max: float = 0.9
    """Last lower bound."""
    low_step: float = 0.02
    """What it rises by."""
    high_start: float = 1.2
    """First upper bound."""
    high_max: float = 3.0
    """Last upper bound."""
    high_step: float = 0.05
    """What it rises by."""
    order: str = "high_first"
    """``high_first`` (paper): the upper bound to its end, then the lower one; ``low_first`` (code)."""
    weight: str = "probability"
    """A token counts by its ``probability`` under the rollout policy (paper), or each the same: ``none`` (code)."""
    contribution: str = "surrogate"
    """``surrogate`` (published): clipped terms keep their value; ``gradient``: they count nothing."""

    def __post_init__(self) -> None:
        _require(0.0 < self.target_share < 1.0, "target_share", self.target_share, "a number in (0, 1)")
        _require(
            0.0 < self.low_start <= self.low_max <= 1.0 <= self.high_start <= self.high_max,
            "low_start, low_max, high_start, high_max",
            (self.low_start, self.low_max, self.high_start, self.high_max),
            "four numbers in rising order, two of them up to 1 and two from 1 on",
        )
        for name in ("low_step", "high_step"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number > 0")
        _require(self.order in ("high_first", "low_first"), "order", self.order, "high_first or low_first")
        _require(self.weight in ("probability", "none"), "weight", self.weight, "probability or none")
        _require(
            self.contribution in ("surrogate", "gradient"), "contribution", self.contribution, "surrogate or gradient"
        )


@dataclass(frozen=True, kw_only=True)
class SelectedTokensConfig:
    """What a selection of tokens does to the loss, whichever way they are chosen."""

    normalise_by: str = "all"
    """The policy loss is a mean over ``all`` tokens (paper of Video-KTR), or over the ``selected`` ones (its code)."""
    kl: str = "all"
    """The KL loss, and an entropy bonus, are taken over ``all`` tokens, or over the ``selected`` ones (its code)."""
    keep_eos: bool = False
    """The token that ends a response always trains."""
    keep_answer: bool = False
    """The tokens of the answer block, tags included, always train."""

    def __post_init__(self) -> None:
        _require(self.normalise_by in ("all", "selected"), "normalise_by", self.normalise_by, "all or selected")
        _require(self.kl in ("all", "selected"), "kl", self.kl, "all or selected")


@dataclass(frozen=True, kw_only=True)
class RolloutLogConfig:
    """The per-rollout log under ``<trainer.default_local_dir>/care_rollouts``."""

    enabled: bool = True
    """Writes one Parquet file a step."""
    max_gib: float = 20.0
    """Size of the folder that ``when_full`` speaks of, in GiB."""
    when_full: str = "no_texts"
    """``no_texts``: response texts are no longer written, numbers always are; ``remove_oldest``: the files of the
    oldest steps are removed, so that the folder never grows beyond it."""
    token_samples: int = 8
    """Responses of an update, evenly spaced, whose tokens are written with what selected them; 0 writes none."""

    def __post_init__(self) -> None:
        _require(self.max_gib >= 0, "max_gib", self.max_gib, "a number >= 0")
        _require(
            self.when_full in ("no_texts", "remove_oldest"), "when_full", self.when_full, "no_texts or remove_oldest"
        )
        _require(self.token_samples >= 0, "token_samples", self.token_samples, "an integer >= 0")


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """How the agent loop's workers treat the media of a prompt."""

    once: bool = True
    """Media are decoded, processed and stored once for all responses of a prompt; false: once each, as in verl."""
    threads: int = 2
    """Prompts that one agent loop worker decodes and processes at the same time: bounds its memory."""
    positions: str = "seconds"
    """``seconds``: real seconds between frames in actor and rollout engine alike; ``stock``: what verl and the engine
    take, which differs with Qwen2.5-VL. The recipes hand it to the engine as ``VERL_CARE_POSITIONS``."""

    def __post_init__(self) -> None:
        _require(self.threads >= 1, "threads", self.threads, "an integer >= 1")
        _require(self.positions in ("seconds", "stock"), "positions", self.positions, "seconds or stock")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole ``care:`` node."""

    hook: str | None = None
    """Written by our trainers when they start; a verl_care reward manager that finds null refuses to run."""
    on_missing_state: str = "refuse"
    """On resume without ``care_state.json``: ``refuse``, or ``fresh`` to begin anew with a warning."""
    token_selection: str = "none"
    """Which tokens train: ``none`` trains all of them; ``video_ktr``, ``d3s``, ``capo``; several names joined by ``+``
    train what all of them select."""
    video_ktr: VideoKtrConfig = field(default_factory=VideoKtrConfig)
    d3s: D3sConfig = field(default_factory=D3sConfig)
    capo: CapoConfig = field(default_factory=CapoConfig)
    siri: SiriConfig = field(default_factory=SiriConfig)
    favchat: FavchatConfig = field(default_factory=FavchatConfig)
    bapo: BapoConfig = field(default_factory=BapoConfig)
    annealing: AnnealingConfig = field(default_factory=AnnealingConfig)
    selected_tokens: SelectedTokensConfig = field(default_factory=SelectedTokensConfig)
    scoring: str = "strict"
    """Which accuracy trains: ``strict`` as published, or ``lenient`` answer extraction. Both are logged."""
    poll_interval: float = 0.1
    """Seconds between two looks of the synchronous replay buffer at finished rollouts (verl: 2.0)."""
    session_timeout_seconds: float | None = None
    """Seconds, waiting for its turn included, after which a session fails as one that raises does; null: never."""
    test_sets_at_steps: list[Any] = field(default_factory=lambda: ["last"])
    """Steps at which validation also reads the test sets among ``data.val_files``: numbers, 0 for before training, or
    ``last``. At all other steps it reads the rest, the development split."""
    shaping: CareConfig = field(default_factory=CareConfig)
    """Constants of CARE's effort."""
    rules: dict[str, Any] = field(default_factory=dict)
    """Constants of the other length rules, ``care.rules.<rule>.<constant>``."""
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    rollout_log: RolloutLogConfig = field(default_factory=RolloutLogConfig)
    video: VideoConfig = field(default_factory=VideoConfig)

    def __post_init__(self) -> None:
        _require(
            self.on_missing_state in ("refuse", "fresh"), "on_missing_state", self.on_missing_state, "refuse or fresh"
        )
        _require(self.scoring in ("strict", "lenient"), "scoring", self.scoring, "strict or lenient")
        _require(
            self.token_selection == "none"
            or (
                set(self.token_selections) <= set(TOKEN_SELECTIONS)
                and len(set(self.token_selections)) == len(self.token_selections)
            ),
            "token_selection",
            self.token_selection,
            f"none, or one or more of {', '.join(TOKEN_SELECTIONS)} joined by +",
        )
        _require(self.poll_interval > 0, "poll_interval", self.poll_interval, "a number > 0")
        _require(
            self.session_timeout_seconds is None or self.session_timeout_seconds > 0,
            "session_timeout_seconds",
            self.session_timeout_seconds,
            "a number > 0, or null",
        )
        for step in self.test_sets_at_steps:
            is_number = isinstance(step, int) and not isinstance(step, bool) and step >= 0
            _require(is_number or step == "last", "test_sets_at_steps", step, "numbers of steps, or last")

    @property
    def token_selections(self) -> tuple[str, ...]:
        """Names of the selections that are on."""
        return () if self.token_selection == "none" else tuple(self.token_selection.split("+"))


def load_config(node: Mapping[str, Any] | None) -> Config:
    """Makes the typed config from the composed ``care:`` node.

    Args:
        node: the node as OmegaConf or plain mapping; None gives the defaults.

    Raises:
        ValueError: an unknown key, a wrong type or a value out of range, in one line that names the key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    schema = OmegaConf.structured(Config)
    _clear_readonly(schema)
    try:
        plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node or {})
        return OmegaConf.to_object(OmegaConf.merge(schema, plain))
    except (OmegaConfBaseException, ValueError) as error:
        key = getattr(error, "full_key", None)
        where = f"care.{key}: " if key else "care: "
        raise ValueError(where + str(error).splitlines()[0]) from None


def _clear_readonly(node: Any) -> None:
    # A frozen dataclass makes a read-only schema node, onto which OmegaConf refuses to merge.
    from omegaconf import DictConfig, OmegaConf

    OmegaConf.set_readonly(node, False)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _clear_readonly(child)
