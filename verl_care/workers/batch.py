"""Adapter: verl's rows in TransferQueue -> shaping inputs, and bonuses -> token-level rewards.

A row is one output of a session, key ``{uid}_{session}_{index}``. Padding rows carry copies of a real row's fields, so
they are told apart by their tag. Only the last output of a session counts, as in verl's GRPO.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verl_care.data.shuffle import SHUFFLED_DELAY_FIELD, SHUFFLED_SECONDS_FIELD, SHUFFLED_TOKENS_FIELD
from verl_care.shaping.base import ShapingBatch
from verl_care.shaping.extra import collect_extra, is_repetitive, skips_thinking

FIELDS = ["rm_scores", "response_mask", "extra_fields", "data_source", "index"]
"""Columns of TransferQueue that shaping reads; never pixels nor log-probs."""


def columns_for(wanted: Mapping[str, Any]) -> list[str]:
    """Columns of TransferQueue that a rule's wishes for ``extra`` need besides ``FIELDS``."""
    sources = {
        "extra_info": bool(wanted),
        "num_turns": not wanted.keys().isdisjoint({"num_turns", "direct"}),
        "responses": not wanted.keys().isdisjoint({"no_think", "repetitive"}),
    }
    return [name for name, is_needed in sources.items() if is_needed]


@dataclass(frozen=True)
class ShuffledCost:
    """What one response on shuffled frames cost."""

    tokens: int
    seconds: float
    """From its request to its end, beside the response on ordered frames."""
    delay: float
    """Seconds by which it ended after that one."""


@dataclass(frozen=True)
class RolloutRows:
    """The final outputs of a batch, ready to be shaped, and the way back to verl's rows."""

    batch: ShapingBatch
    final_rows: list[int]
    """Row of verl's batch for each of the N responses."""
    session_rows: list[tuple[int, int]]
    """(row of verl's batch, response) for every real row, intermediate outputs included."""
    uids: list[str]
    sessions: list[int]
    data_sources: list[str]
    reward_extra_info: list[dict[str, Any]]
    """What the reward manager's first half gave for each response."""
    shuffled_costs: list[ShuffledCost]
    """What each response on shuffled frames cost; sessions without one are left out."""

    def __len__(self) -> int:
        return len(self.final_rows)


def as_list(column: Any) -> list[Any]:
    """A non-tensor column of TransferQueue as a plain list; it comes back as a list or as a NonTensorStack."""
    values = column.tolist() if hasattr(column, "tolist") else list(column)
    return [getattr(value, "data", value) for value in values]


def final_outputs(keys: Sequence[str], tags: Sequence[dict]) -> tuple[list[int], list[tuple[int, int]]]:
    """Rows of the last output of each session, and for every real row the response it belongs to.

    Args:
        keys: ``{uid}_{session}_{index}`` of each row.
        tags: verl's tags of each row; a true ``is_padding`` takes the row out.
    """
    last: dict[str, tuple[int, int]] = {}
    real = [row for row, tag in enumerate(tags) if not tag.get("is_padding", False)]
    for row in real:
        session, index = keys[row].rsplit("_", 1)
        if session not in last or last[session][0] < int(index):
            last[session] = (int(index), row)
    final_rows = [row for _, row in last.values()]
    response_of = {session: i for i, session in enumerate(last)}
    return final_rows, [(row, response_of[keys[row].rsplit("_", 1)[0]]) for row in real]


def read_rollouts(
    keys: Sequence[str],
    tags: Sequence[dict],
    data: Any,
    step: int,
    *,
    correct_threshold: float,
    evicted_pass_rate: Tensor | None = None,
    require_accuracy: bool = True,
    wanted: Mapping[str, float | None] | None = None,
    rule: str = "",
    decode: Callable[[list[int]], str] | None = None,
    norm_by_std: bool = True,
) -> RolloutRows:
    """Makes the shaping inputs of one update from columns of TransferQueue.

    Args:
        keys: of the rows, in the order of ``data``.
        tags: of the rows.
        data: mapping with the columns ``FIELDS``.
        step: verl's ``global_steps``.
        correct_threshold: accuracies above count as correct.
        evicted_pass_rate: pass rates of groups that group filtering removed, (E,).
        require_accuracy: False, for a manager that is not ours: the score stands in where there is no ``acc``.
        wanted: what the rule reads of ``extra``, ``Rule.wanted_extra``; ``data`` then has ``columns_for(wanted)`` too.
        rule: its name, for messages.
        decode: token ids to text, where ``no_think`` is wanted.
        norm_by_std: verl's ``algorithm.norm_adv_by_std_in_grpo``.

    Raises:
        ValueError: a response without ``acc`` in its ``reward_extra_info``, or a record without a value that the rule
            needs; names the record.
    """
    final_rows, session_rows = final_outputs(keys, tags)
    extra_fields = as_list(data["extra_fields"])
    data_sources = [str(value) for value in as_list(data["data_source"])]
    indices = as_list(data["index"])
    score_sum = row_sums(data["rm_scores"])
    lengths = row_sums(data["response_mask"])
    rows = torch.tensor(final_rows, dtype=torch.int64)
    infos = [extra_fields[row].get("reward_extra_info") or {} for row in final_rows]
    prompt_keys = [f"{data_sources[row]}/{indices[row]}" for row in final_rows]
    scores = score_sum[rows].float()
    for info, prompt_key in zip(infos, prompt_keys, strict=True):
        if require_accuracy and not isinstance(info.get("acc"), int | float):
            raise ValueError(
                f"record {prompt_key}: the reward has no accuracy; a custom_reward_function under a verl_care reward "
                "manager returns a float or a dict with 'acc'"
            )
    accuracy = torch.tensor(
        [float(info.get("acc", score)) for info, score in zip(infos, scores.tolist(), strict=True)], dtype=torch.float32
    )
    names = [keys[row].rsplit("_", 2) for row in final_rows]
    group_of: dict[str, int] = {}
    group = torch.tensor([group_of.setdefault(uid, len(group_of)) for uid, _, _ in names], dtype=torch.int64)
    extra: dict[str, Any] = {}
    if wanted:
        extra_info = as_list(data["extra_info"])
        records = [extra_info[row] for row in final_rows]
        measured = _measure(wanted, data, [tags[row] for row in final_rows], final_rows, decode)
        extra.update(collect_extra(wanted, records, measured, prompt_keys, rule))
    if evicted_pass_rate is not None:
        extra["evicted_pass_rate"] = evicted_pass_rate
    if any(info.get("acc_shuffled") is not None for info in infos):
        shuffled = [math.nan if info.get("acc_shuffled") is None else float(info["acc_shuffled"]) for info in infos]
        extra["shuffled_accuracy"] = torch.tensor(shuffled, dtype=torch.float32)
    return RolloutRows(
        batch=ShapingBatch(
            score=scores,
            accuracy=accuracy,
            correct=accuracy > correct_threshold,
            length=lengths[rows].float(),
            group=group,
            prompt_key=prompt_keys,
            step=step,
            norm_by_std=norm_by_std,
            extra=extra,
        ),
        final_rows=final_rows,
        session_rows=session_rows,
        uids=[uid for uid, _, _ in names],
        sessions=[int(session) for _, session, _ in names],
        data_sources=[data_sources[row] for row in final_rows],
        reward_extra_info=infos,
        shuffled_costs=[
            ShuffledCost(
                tokens=int(extra_fields[row][SHUFFLED_TOKENS_FIELD]),
                seconds=float(extra_fields[row][SHUFFLED_SECONDS_FIELD]),
                delay=float(extra_fields[row][SHUFFLED_DELAY_FIELD]),
            )
            for row in final_rows
            if extra_fields[row].get(SHUFFLED_TOKENS_FIELD)
        ],
    )


def _measure(
    wanted: Mapping[str, Any],
    data: Any,
    tags: Sequence[dict],
    rows: Sequence[int],
    decode: Callable[[list[int]], str] | None,
) -> dict[str, list[float]]:
    """What can be read off the responses themselves, by name of the column."""
    measured: dict[str, list[float]] = {}
    if "input_length" in wanted:
        measured["input_length"] = [float(tag["prompt_len"]) for tag in tags]
    if not wanted.keys().isdisjoint({"num_turns", "direct"}):
        column = as_list(data["num_turns"])
        turns = [float(column[row]) for row in rows]
        # A prompt and its answer are two turns; a tool takes more.
        measured |= {"num_turns": turns, "direct": [float(count <= 2) for count in turns]}
    if not wanted.keys().isdisjoint({"no_think", "repetitive"}):
        responses = data["responses"].unbind()
        tokens = [responses[row].tolist() for row in rows]
        if "repetitive" in wanted:
            measured["repetitive"] = [float(is_repetitive(ids)) for ids in tokens]
        if "no_think" in wanted and decode is not None:
            measured["no_think"] = [float(skips_thinking(decode(ids))) for ids in tokens]
    return measured


def row_sums(nested: Tensor) -> Tensor:
    """Sum of each row of a jagged tensor, (rows,)."""
    values, offsets = nested.values(), nested.offsets()
    running = torch.cat([values.new_zeros(1), values]).cumsum(0, dtype=torch.float64)
    return running[offsets[1:]] - running[offsets[:-1]]


def add_bonus(rm_scores: Tensor, rows: RolloutRows, bonus_N: Tensor) -> Tensor:
    """Token-level rewards: the scores with each response's bonus on the last token of every output of its session.

    Args:
        rm_scores: token-level scores, jagged (rows, response length), float32.
        rows: what ``bonus_N`` belongs to.
        bonus_N: one bonus a response, (N,).

    Returns:
        A new jagged tensor with the offsets of ``rm_scores``; padding rows are unchanged.
    """
    values, offsets = rm_scores.values().clone(), rm_scores.offsets()
    if rows.session_rows:
        row, response = torch.tensor(rows.session_rows, dtype=torch.int64).T
        values[offsets[row + 1] - 1] += bonus_N[response].to(values.dtype)
    return torch.nested.nested_tensor_from_jagged(values, offsets)


def spread_advantage(response_mask: Tensor, rows: RolloutRows, advantage_N: Tensor) -> Tensor:
    """Token-level advantages: each response's on every unmasked token of all outputs of its session, as in GRPO.

    Args:
        response_mask: jagged (rows, response length), 1 where a token was sampled.
        rows: what ``advantage_N`` belongs to.
        advantage_N: one advantage a response, (N,).

    Returns:
        A jagged float32 tensor with the offsets of ``response_mask``; 0 on padding rows.
    """
    offsets = response_mask.offsets()
    per_row = torch.zeros(len(offsets) - 1)
    if rows.session_rows:
        row, response = torch.tensor(rows.session_rows, dtype=torch.int64).T
        per_row[row] = advantage_N[response].float()
    values = per_row.repeat_interleave(offsets.diff()) * response_mask.values()
    return torch.nested.nested_tensor_from_jagged(values, offsets)
