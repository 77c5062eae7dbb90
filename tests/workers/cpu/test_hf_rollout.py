"""The rollout server's parts without Ray, and the server itself as a plain object on an event loop."""

import asyncio

import pytest
import torch
from verl.workers.config import RolloutConfig

from verl_care.workers.cpu.hf_rollout import (
    HFServer,
    PromptPreparer,
    WeightLoader,
    banned_token_ids,
    parse_sampling_params,
)

CONFIG = RolloutConfig(
    name="hf",
    prompt_length=200,
    response_length=12,
    dtype="float32",
    load_format="auto",
    tensor_model_parallel_size=1,
    max_num_seqs=8,
    custom={"batch_window_ms": 5},
)
# What verl's agent loop sends.
PARAMS = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}


@pytest.fixture
def server(tiny_qwen25) -> HFServer:
    return HFServer(CONFIG, tiny_qwen25.model_config, replica_rank=0)


def ask(server, tiny, kind="video", text="Which way ?", **params):
    ids, images, videos = tiny.prompt(kind, text)
    return server.generate(ids, PARAMS | params, "id", image_data=images, video_data=videos)


@pytest.mark.parametrize(
    ("params", "prompt_length", "max_tokens", "first_draw"),
    [
        ({}, 50, 12, 0),
        ({}, 205, 7, 5),  # the prompt took 5 tokens of the response's room
        ({"max_tokens": 5}, 50, 5, 7),  # 7 of 12 tokens were made before: go on at the eighth draw
        ({"max_new_tokens": 12}, 50, 12, 0),
    ],
)
def test_room_for_the_response(params, prompt_length, max_tokens, first_draw):
    sampling = parse_sampling_params(PARAMS | params, prompt_length=prompt_length, config=CONFIG)
    assert (sampling.max_tokens, sampling.first_draw) == (max_tokens, first_draw)


def test_unknown_sampling_parameters_are_refused_by_name():
    with pytest.raises(ValueError, match=r"\['min_p'\]"):
        parse_sampling_params(PARAMS | {"min_p": 0.1}, prompt_length=5, config=CONFIG)
    with pytest.raises(ValueError, match="repetition penalty, got 1.1"):
        parse_sampling_params(PARAMS | {"repetition_penalty": 1.1}, prompt_length=5, config=CONFIG)


def test_vision_tokens_and_ids_beyond_the_tokenizer_are_banned(tiny):
    banned = banned_token_ids(tiny.model_config)
    named = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    assert banned == set(tiny.model_config.tokenizer.convert_tokens_to_ids(named))
    text_config = tiny.model_config.hf_config.get_text_config()
    length = text_config.vocab_size
    text_config.vocab_size = length + 2
    try:
        assert banned_token_ids(tiny.model_config) == banned | {length, length + 1}
    finally:
        text_config.vocab_size = length


def test_prompts_are_positioned_and_processed_as_for_training(tiny):
    """Position ids of prompt and response together, as the agent loop stores them, begin with the rollout's."""
    ids, images, videos = tiny.prompt("video", "Which way does it go ?")
    request = tiny.preparer.prepare(ids, images, videos, None, None)
    whole, inputs = tiny.preparer._process(ids + [70, 71, 72], images, videos, None)
    assert request.position_ids.shape == (4, len(ids))
    assert torch.equal(whole[:, : len(ids)], request.position_ids)
    assert torch.equal(whole[:, len(ids) :], request.position_ids[:, -1:] + torch.tensor([1, 2, 3]))
    assert torch.equal(inputs["pixel_values_videos"], request.vision["pixel_values_videos"])
    merged = int(request.vision["video_grid_thw"].prod()) // 4
    assert ids.count(tiny.model_config.hf_config.video_token_id) == merged


def test_a_prompt_is_processed_once_and_told_apart_by_its_frames(tiny_qwen25, monkeypatch):
    preparer = PromptPreparer(tiny_qwen25.model_config)
    processed = []
    process = preparer._process
    monkeypatch.setattr(preparer, "_process", lambda *a: processed.append(1) or process(*a))
    ids, images, videos = tiny_qwen25.prompt("video", "Which way ?")
    first = preparer.prepare(ids, images, videos, None, None)
    again = preparer.prepare(list(ids), images, [(videos[0][0].clone(), dict(videos[0][1]))], None, None)
    other_frames = [(videos[0][0].flip(0), videos[0][1])]
    other = preparer.prepare(ids, images, other_frames, None, None)
    assert first.prompt_key == again.prompt_key != other.prompt_key
    assert len(processed) == 2
    assert not torch.equal(first.vision["pixel_values_videos"], other.vision["pixel_values_videos"])


def test_an_update_must_bring_every_weight(tiny):
    weights = list(tiny.model.state_dict().items())
    loader = WeightLoader(tiny.model)
    loader.load(weights)
    loader.finish()
    loader.load(weights[:-1])
    with pytest.raises(ValueError, match=rf"1 of {len(weights)} weights did not arrive.*{weights[-1][0]}"):
        loader.finish()
    with pytest.raises(ValueError, match="'model.nothing'"):
        loader.load([("model.nothing", torch.zeros(1))])
    name, weight = weights[0]
    with pytest.raises(ValueError, match="shape"):
        loader.load([(name, weight[..., :-1])])


def test_tied_weights_may_come_once():
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(4, 3), "head": torch.nn.Linear(3, 4, bias=False)})
    model["head"].weight = model["embed"].weight
    loader = WeightLoader(model)
    loader.load([("embed.weight", torch.ones(4, 3))])
    loader.finish()
    assert torch.equal(model["head"].weight, torch.ones(4, 3))


def test_concurrent_requests_share_batches_and_come_back_in_order(server, tiny_qwen25):
    async def run():
        texts = ["Which way ?", "Which colour, if any ?", "How many ?"]
        asks = [
            ask(server, tiny_qwen25, kind, text, seed=seed)
            for seed, (kind, text) in enumerate((k, t) for t in texts for k in ("text", "image", "video"))
        ]
        together = await asyncio.gather(*asks)
        sizes = await server.batch_sizes()
        alone = [
            await ask(server, tiny_qwen25, kind, text, seed=seed)
            for seed, (kind, text) in enumerate((k, t) for t in texts for k in ("text", "image", "video"))
        ]
        return together, sizes, alone

    together, sizes, alone = asyncio.run(run())
    assert [o.token_ids for o in together] == [o.token_ids for o in alone]
    assert sum(sizes) == 9 and len(sizes) < 9 and max(sizes) <= CONFIG.max_num_seqs
    assert {o.stop_reason for o in together} == {"completed"}
    assert all(len(o.log_probs) == len(o.token_ids) <= CONFIG.response_length for o in together)


def test_new_weights_change_what_is_generated_and_its_step(server, tiny_qwen25):
    async def run():
        before = await ask(server, tiny_qwen25, temperature=0)
        digest = await server.weight_digest()
        weights = [(n, w.flip(-1) if "lm_head" in n else w) for n, w in tiny_qwen25.model.state_dict().items()]
        await server.load_weights(weights)
        await server.finish_weights(7)
        after = await ask(server, tiny_qwen25, temperature=0)
        return before, after, digest != await server.weight_digest()

    before, after, changed = asyncio.run(run())
    assert changed and before.token_ids != after.token_ids
    assert (before.extra_fields["global_steps"], after.extra_fields["global_steps"]) == (None, 7)


def test_requests_wait_while_generation_is_held(server, tiny_qwen25):
    async def run():
        await server.abort_all_requests()
        task = asyncio.create_task(ask(server, tiny_qwen25, seed=1))
        while not server._waiting:
            await asyncio.sleep(0.001)
        for _ in range(50):
            await asyncio.sleep(0)
        held = not task.done() and await server.batch_sizes() == []
        await server.resume_generation()
        return held, await task

    held, output = asyncio.run(run())
    assert held and output.token_ids


def test_a_failing_batch_reaches_its_requests_and_the_next_is_served(server, tiny_qwen25, monkeypatch):
    async def run():
        with monkeypatch.context() as patch:
            patch.setattr(server, "_generate", lambda requests: 1 / 0)
            failed = await asyncio.gather(*(ask(server, tiny_qwen25, seed=i) for i in range(3)), return_exceptions=True)
        return failed, await ask(server, tiny_qwen25, seed=1)

    failed, output = asyncio.run(run())
    assert [type(f) for f in failed] == [ZeroDivisionError] * 3 and output.token_ids


def test_nothing_is_generated_from_weights_that_never_came(tiny_qwen25):
    from dataclasses import replace

    server = HFServer(replace(CONFIG, load_format="dummy"), tiny_qwen25.model_config, replica_rank=0)
    with pytest.raises(ValueError, match="load_format=dummy"):
        asyncio.run(ask(server, tiny_qwen25))
    with pytest.raises(ValueError, match="no audio"):
        asyncio.run(server.generate([1], PARAMS, "id", audio_data=[object()]))
