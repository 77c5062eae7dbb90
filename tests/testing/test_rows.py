"""Rows of the builders against rows that verl's agent loop writes."""

from __future__ import annotations

import asyncio

import pytest
import torch

from verl_care.testing import ByteTokenizer, add_padding, make_group, put_rows, read_rows


def write_as_verl_does(row):
    """Sends a row's output through verl's own ``_agent_loop_postprocess``, into the partition ``train``."""
    from verl.experimental.agent_loop import AgentLoopOutput
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

    worker_class = AgentLoopWorkerTQ.__ray_metadata__.modified_class
    worker = object.__new__(worker_class)
    worker.processor = None
    worker.reward_loop_worker_handles = None
    worker.distillation_enabled = False
    fields = row.fields
    output = AgentLoopOutput(
        prompt_ids=fields["prompts"].tolist(),
        response_ids=fields["responses"].tolist(),
        response_mask=fields["response_mask"].tolist(),
        response_logprobs=fields["rollout_log_probs"].tolist(),
        reward_score=float(fields["rm_scores"][-1]),
        num_turns=fields["num_turns"],
        metrics={"generate_sequences": 0.0, "tool_calls": 0.0},
        extra_fields=fields["extra_fields"],
    )
    sample = (
        "data_source raw_prompt reward_model extra_info index dummy_tensor tools_kwargs interaction_kwargs uid "
        "session_id global_steps"
    ).split()
    kwargs = {name: fields[name] for name in sample}
    # TransferQueue's asynchronous client belongs to one loop.
    asyncio.run(worker._agent_loop_postprocess(output, False, **kwargs))


def test_a_row_equals_what_verl_writes(train_partition, partition, transfer_queue):
    (row,) = make_group("a", accuracy=[0.5], length=7, modality="text", mrope=False)
    batch = put_rows([row], partition)
    ours = read_rows(batch)["a_0_0"]
    write_as_verl_does(row)
    batch.partition_id = train_partition
    theirs = read_rows(batch)["a_0_0"]
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(ours[name], value) and ours[name].dtype == value.dtype, name
        else:
            assert ours[name] == value, name
    tags = transfer_queue.kv_list()
    assert tags[partition]["a_0_0"] == tags[train_partition]["a_0_0"]


def test_the_reward_stands_on_the_last_token_of_every_output(partition):
    rows = make_group("a", accuracy=[1.0], length=[[3, 5]], format=0)
    out = read_rows(put_rows(rows, partition), "rm_scores")
    assert out["a_0_0"]["rm_scores"].tolist() == [0, 0, 1]
    assert out["a_0_1"]["rm_scores"].tolist() == [0, 0, 0, 0, 1]


def test_video_image_and_text_rows_share_a_batch_with_padding(partition):
    rows = []
    for index, modality in enumerate(("video", "image", "text")):
        rows += make_group(f"u{index}", accuracy=[1], length=4 + index, modality=modality, index=index)
    batch = add_padding(put_rows(rows, partition), 4)
    out = read_rows(batch, "position_ids", "multi_modal_inputs", "input_ids", "response_mask")
    assert set(out["u0_0_0"]["multi_modal_inputs"]) == {"pixel_values_videos", "video_grid_thw"}
    assert set(out["u1_0_0"]["multi_modal_inputs"]) == {"pixel_values", "image_grid_thw", "images_seqlens"}
    assert out["u2_0_0"]["multi_modal_inputs"] == {}
    for key, row in out.items():
        assert row["position_ids"].shape == (4, len(row["input_ids"])), key
    (padding,) = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if tag.get("is_padding")]
    assert out[padding]["response_mask"].tolist() == [0] and out[padding]["multi_modal_inputs"] == {}


def test_a_vision_prompt_has_a_placeholder_for_each_merged_patch():
    (row,) = make_group("a", accuracy=[1], modality="video")
    t, h, w = row.fields["multi_modal_inputs"]["video_grid_thw"][0].tolist()
    assert int((row.fields["prompts"] == 300).sum()) == t * h * w // 4
    assert len(row.fields["multi_modal_inputs"]["pixel_values_videos"]) == t * h * w


def test_response_text_survives_tokens():
    text = "<think>größer</think><answer>B</answer>"
    (row,) = make_group("a", accuracy=[1], responses=[text])
    assert ByteTokenizer().decode(row.fields["responses"]) == text
    assert row.fields["responses"][-1] == ByteTokenizer.eos_token_id


def test_own_reward_keys_replace_ours():
    rows = make_group("a", accuracy=[1, 0], reward_extra_info=[{"acc": 0.25}, {"acc": 0.5, "score": 2.0}])
    assert [float(row.fields["rm_scores"][-1]) for row in rows] == [0.25, 2.0]
    assert rows[0].fields["extra_fields"]["reward_extra_info"] == {"acc": 0.25}


def test_reading_a_missing_row_or_field_is_an_error(partition):
    batch = put_rows(make_group("a", accuracy=[1, 0]), partition)
    with pytest.raises(ValueError, match="advantages"):
        read_rows(batch, "rm_scores", "advantages")
    batch.keys.append("a_9_0")
    with pytest.raises(ValueError, match="2 of 3 rows"):
        read_rows(batch, "rm_scores")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"uid": "a_b", "accuracy": [1]}, "must not contain"),
        ({"accuracy": [1], "modality": "sound"}, "modality"),
        ({"accuracy": [1, 0], "length": [4]}, "length: expected 2"),
        ({"accuracy": [1], "prompt_length": 8}, "prompt_length"),
    ],
)
def test_impossible_groups_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_group(**arguments)


def test_a_batch_without_any_row_is_refused():
    with pytest.raises(ValueError, match="every session failed"):
        put_rows(make_group("a", accuracy=[None, None]), "unused")


def test_a_response_has_the_keys_that_our_managers_give():
    from verl_care.reward_manager.base import EXTRA_KEYS

    (row,) = make_group("a", accuracy=[1])
    assert set(row.fields["extra_fields"]["reward_extra_info"]) == set(EXTRA_KEYS)
