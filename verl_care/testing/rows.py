"""Rows in a real TransferQueue, field by field as verl's agent loop writes them.

Follows ``AgentLoopWorkerTQ._agent_loop_postprocess`` of verl 0.9.1 (``trainer/ppo/v1/agent_loop_tq.py``): one row for
each output of a session, keyed ``{uid}_{session}_{index}``, the reward on the last response token of every output.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.experimental.agent_loop import AgentLoopOutput
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_care.rewards.scorer import normalise_result
from verl_care.testing.worker_group import ByteTokenizer

MODALITIES = ("video", "image", "text")
PLACEHOLDER_TOKEN_ID = 300
"""Stands for one vision token in a prompt; outside of what ``ByteTokenizer`` makes of text."""
_GRID_THW = (2, 4, 4)
_PATCH_SIZE = 2 * 3 * 14 * 14


@dataclass(frozen=True)
class Row:
    """One row: its key, its fields and its tag."""

    key: str
    fields: dict[str, Any]
    tag: dict[str, Any]


def make_group(
    uid: str | None = None,
    *,
    accuracy: Sequence[float | None],
    length: int | Sequence[int | Sequence[int]] = 16,
    format: float | Sequence[float] = 1.0,
    reward_extra_info: Sequence[Mapping[str, Any]] | None = None,
    extra_fields: Sequence[Mapping[str, Any]] | None = None,
    responses: Sequence[str] | None = None,
    modality: str = "video",
    data_source: str = "toy",
    index: int = 0,
    problem_type: str = "multiple choice",
    extra_info: Mapping[str, Any] | None = None,
    prompt_length: int = 24,
    global_steps: int = 1,
    mrope: bool = True,
) -> list[Row]:
    """The rows of one prompt's sessions.

    Args:
        uid: id of the prompt in this step, without ``_``; a fresh one by default.
        accuracy: task accuracy of each session in [0, 1]; None is a session that failed and left no row.
        length: response tokens of each session, EOS included; a sequence inside gives a session several outputs, the
            last of which is its final one.
        format: 1 for a well-formed response, 0 otherwise, for all sessions or each.
        reward_extra_info: what the reward manager returned for each session, in place of our scorer's keys; its
            ``score`` (else ``acc``) is the reward.
        extra_fields: more entries for the field ``extra_fields`` of each session.
        responses: text of each session's final output in place of random letters; ``length`` is then ignored for it.
        modality: ``video``, ``image`` or ``text``.
        data_source: name of the data set.
        index: ``extra_info.index``, the record's number in its data set.
        problem_type: ``extra_info.problem_type``.
        extra_info: more entries of ``extra_info``.
        prompt_length: prompt tokens, vision placeholders included.
        global_steps: step in which the prompt was drawn and its responses were sampled.
        mrope: position ids of a vision model, (4, tokens); False gives (tokens,), for text models.

    Raises:
        ValueError: a uid with ``_``, an unknown modality, or sequences of different lengths.
    """
    uid = uuid.uuid4().hex if uid is None else uid
    if "_" in uid:
        raise ValueError(f"uid {uid!r}: verl splits row keys at '_', so that a uid must not contain one")
    if modality not in MODALITIES:
        raise ValueError(f"modality: expected one of {MODALITIES}; got {modality!r}")
    n = len(accuracy)
    lengths = [length] * n if isinstance(length, int) else list(length)
    formats = [float(format)] * n if isinstance(format, int | float) else [float(value) for value in format]
    for name, values in (
        ("length", lengths),
        ("format", formats),
        ("reward_extra_info", reward_extra_info),
        ("extra_fields", extra_fields),
        ("responses", responses),
    ):
        if values is not None and len(values) != n:
            raise ValueError(f"{name}: expected {n} values, one for each session; got {len(values)}")

    tokenizer = ByteTokenizer()
    prompt_ids, multi_modal_inputs = _make_prompt(modality, prompt_length, seed=f"{data_source}/{index}")
    record = {
        "data_source": data_source,
        "raw_prompt": [{"role": "user", "content": [{"type": "text", "text": f"question {index}"}]}],
        "reward_model": {"style": "rule", "ground_truth": "A"},
        "extra_info": {"index": index, "problem_type": problem_type, **(extra_info or {})},
        "index": index,
        "dummy_tensor": torch.tensor([0], dtype=torch.uint8),
        "tools_kwargs": {},
        "interaction_kwargs": {},
    }
    rows = []
    for session, acc in enumerate(accuracy):
        if acc is None:
            continue
        info = (
            dict(reward_extra_info[session])
            if reward_extra_info is not None
            else _score_info(float(acc), formats[session])
        )
        length = lengths[session]
        output_lengths = [length] if isinstance(length, int) else length
        texts = [_random_text(num - 1, f"{uid}/{session}/{i}") for i, num in enumerate(output_lengths)]
        if responses is not None:
            texts[-1] = responses[session]
        for i, text in enumerate(texts):
            response_ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
            output = AgentLoopOutput(
                prompt_ids=prompt_ids,
                response_ids=response_ids,
                response_mask=[1] * len(response_ids),
                response_logprobs=[-0.5] * len(response_ids),
                reward_score=float(info["score"] if "score" in info else info["acc"]),
                num_turns=2,
                metrics={"generate_sequences": 0.0, "tool_calls": 0.0},
                extra_fields={
                    "min_global_steps": global_steps,
                    "max_global_steps": global_steps,
                    "turn_scores": [],
                    "tool_rewards": [],
                    "reward_extra_info": dict(info),
                    **(extra_fields[session] if extra_fields is not None else {}),
                },
            )
            fields = output.as_dict()
            fields |= {**record, "uid": uid, "session_id": session, "global_steps": global_steps}
            fields["loss_mask"] = fields["response_mask"]
            fields["input_ids"] = torch.cat([fields["prompts"], fields["responses"]])
            num_tokens = fields["input_ids"].shape[0]
            position_ids = torch.arange(num_tokens)
            fields["position_ids"] = position_ids.expand(4, -1).clone() if mrope else position_ids
            fields["multi_modal_inputs"] = multi_modal_inputs
            tag = {
                "status": "success",
                "prompt_len": len(prompt_ids),
                "response_len": len(response_ids),
                "seq_len": num_tokens,
                "global_steps": global_steps,
                "min_global_steps": global_steps,
                "max_global_steps": global_steps,
            }
            rows.append(Row(key=f"{uid}_{session}_{i}", fields=fields, tag=tag))
    return rows


def put_rows(rows: Sequence[Row], partition_id: str) -> KVBatchMeta:
    """Puts rows into TransferQueue and gives the batch that verl's replay buffer would give for them.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no rows to put: every session failed")
    # One put for each session, as the agent loop does: rows of one put must have the same fields, others need not.
    for session in sorted({row.key.rsplit("_", 1)[0] for row in rows}):
        part = [row for row in rows if row.key.rsplit("_", 1)[0] == session]
        tq.kv_batch_put(
            keys=[row.key for row in part],
            partition_id=partition_id,
            fields=list_of_dict_to_tensordict([row.fields for row in part]),
            tags=[row.tag for row in part],
        )
    return KVBatchMeta(partition_id=partition_id, keys=[row.key for row in rows], tags=[dict(row.tag) for row in rows])


def put_groups(groups: Sequence[Sequence[Row]], partition_id: str = "train", *, n: int) -> None:
    """Puts whole groups together with their prompts' status, so that a replay buffer can sample them.

    Args:
        groups: rows of one prompt each, at least one row.
        partition_id: verl's trainers sample from ``train``.
        n: sessions started for each prompt (``rollout.n``); a prompt with fewer counts as ``failure``, as in verl.
    """
    for rows in groups:
        put_rows(rows, partition_id)
        sessions = {row.key.rsplit("_", 2)[1] for row in rows}
        tag = {
            "is_prompt": True,
            "status": "finished" if len(sessions) == n else "failure",
            "global_steps": rows[0].tag["global_steps"],
        }
        tq.kv_batch_put(keys=[rows[0].fields["uid"]], partition_id=partition_id, tags=[tag])


def add_padding(batch: KVBatchMeta, multiple: int) -> KVBatchMeta:
    """Adds verl's own padding rows until the number of rows is a multiple."""
    return upsample_batch_to_divisible_size(batch, multiple, ByteTokenizer().eos_token_id)


def read_rows(batch: KVBatchMeta, *fields: str) -> dict[str, dict[str, Any]]:
    """What TransferQueue holds: ``{row key: {field: value}}``, for all fields by default.

    Raises:
        ValueError: TransferQueue lacks a row or a field; it would leave either out without a word.
    """
    data = tq.kv_batch_get(
        keys=list(batch.keys), partition_id=batch.partition_id, select_fields=list(fields) if fields else None
    )
    missing = set(fields) - set(data.keys())
    if len(data) != len(batch.keys) or missing:
        raise ValueError(
            f"partition {batch.partition_id}: {len(data)} of {len(batch.keys)} rows; missing fields {sorted(missing)}"
        )
    columns = {name: data[name] for name in data.keys()}
    columns = {name: value.unbind(0) if isinstance(value, torch.Tensor) else value for name, value in columns.items()}
    return {key: {name: _plain(column[i]) for name, column in columns.items()} for i, key in enumerate(batch.keys)}


def _plain(value: Any) -> Any:
    return value if isinstance(value, torch.Tensor) else getattr(value, "data", value)


def _score_info(acc: float, format: float) -> dict[str, Any]:
    # As a verl_care manager gives it (reward_manager/base.py, EXTRA_KEYS), for a question that is not about times.
    result = {"score": acc + format, "acc": acc, "acc_answer": acc, "format": format, "pred": "A" if acc > 0 else "B"}
    return {**normalise_result(result), "reward_error": 0.0, "acc_shuffled": None}


def _random_text(num_tokens: int, seed: str) -> str:
    letters = random.Random(seed)
    return "".join(letters.choice("abcdefghij") for _ in range(num_tokens))


def _make_prompt(modality: str, prompt_length: int, seed: str) -> tuple[list[int], dict[str, torch.Tensor]]:
    t, h, w = _GRID_THW if modality == "video" else (1, *_GRID_THW[1:])
    num_vision = 0 if modality == "text" else t * h * w // 4
    if prompt_length <= num_vision:
        raise ValueError(f"prompt_length: expected more than {num_vision} for {modality}; got {prompt_length}")
    text_ids = ByteTokenizer().encode(_random_text(prompt_length - num_vision, seed))
    prompt_ids = [*[PLACEHOLDER_TOKEN_ID] * num_vision, *text_ids]
    if modality == "text":
        return prompt_ids, {}
    generator = torch.Generator().manual_seed(random.Random(seed).getrandbits(32))
    pixels = torch.rand(t * h * w, _PATCH_SIZE, generator=generator)
    grid = torch.tensor([[t, h, w]])
    if modality == "video":
        return prompt_ids, {"pixel_values_videos": pixels, "video_grid_thw": grid}
    return prompt_ids, {"pixel_values": pixels, "image_grid_thw": grid, "images_seqlens": torch.tensor([h * w])}
