"""Batched sampling against transformers' own generation and against a plain forward pass."""

import pytest
import torch

from verl_care.workers.cpu.generation import (
    MODEL_INPUTS,
    Completion,
    Request,
    Sampling,
    draws,
    generate,
    penalties,
    pick_tokens,
)

KINDS = ("text", "image", "video", "text", "video")
TEXTS = ("Count.", "Which colour is the sign ?", "Which way does the bar go ?", "A longer one, please, with more.", "?")


def run(tiny, requests, banned_ids=(), eos=True) -> list[Completion]:
    tokenizer = tiny.model_config.tokenizer
    return generate(
        tiny.model,
        requests,
        eos_token_ids=[tokenizer.eos_token_id] if eos else [],
        pad_token_id=tokenizer.pad_token_id,
        banned_ids=banned_ids,
    )


def requests_with(tiny, sampling) -> list[Request]:
    """Five prompts of mixed kinds and lengths; `sampling` maps a row number to its settings."""
    rows = enumerate(zip(KINDS, TEXTS, strict=True))
    return [tiny.request(kind, sampling(i), text + " Say it in one word.") for i, (kind, text) in rows]


@torch.no_grad()
def forward_log_probs(tiny, request: Request, token_ids: list[int]) -> torch.Tensor:
    """Log-probabilities of the response from one unbatched pass over prompt and response, positioned as a whole."""
    whole = tiny.preparer._process(request.prompt_ids + token_ids, None, None, None)[0] if not request.vision else None
    length = len(token_ids)
    if whole is None:
        tail = request.position_ids[:, -1:] + torch.arange(1, length + 1)
        whole = torch.cat([request.position_ids, tail], dim=1)
    output = tiny.model(
        input_ids=torch.tensor([request.prompt_ids + token_ids]),
        attention_mask=torch.ones(1, whole.shape[1], dtype=torch.long),
        position_ids=whole[:, None] if whole.shape[0] > 1 else whole,
        **request.vision,
    )
    logits = output.logits[0, -length - 1 : -1].float() / (request.sampling.temperature or 1)
    return logits.log_softmax(-1).gather(-1, torch.tensor(token_ids)[:, None])[:, 0]


def test_greedy_batch_equals_transformers_generate(tiny):
    requests = requests_with(tiny, lambda i: Sampling(max_tokens=10, temperature=0))
    completions = run(tiny, requests)
    tokenizer, config = tiny.model_config.tokenizer, tiny.model_config.hf_config
    for request, completion in zip(requests, completions, strict=True):
        ids = torch.tensor([request.prompt_ids])
        kinds = (ids == config.image_token_id) * 1 + (ids == config.video_token_id) * 2
        expected = tiny.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=kinds,
            do_sample=False,
            max_new_tokens=10,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **request.vision,
        )[0, ids.shape[1] :]
        assert completion.token_ids == expected.tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_equal_a_plain_forward_pass(tiny, temperature):
    requests = requests_with(tiny, lambda i: Sampling(max_tokens=12, temperature=temperature, seed=i))
    # Banning and truncation choose tokens but do not enter the log-probabilities.
    banned = range(0, 60)
    for request, completion in zip(requests, run(tiny, requests, banned, eos=False), strict=True):
        assert len(completion.token_ids) == len(completion.log_probs) == 12
        assert not set(completion.token_ids) & set(banned)
        expected = forward_log_probs(tiny, request, completion.token_ids)
        torch.testing.assert_close(torch.tensor(completion.log_probs), expected, atol=1e-6, rtol=1e-6)


def test_the_picture_moves_the_log_probs(tiny):
    """Otherwise the tests here would pass with the vision inputs left out."""
    request = tiny.request("video", Sampling(max_tokens=1, temperature=0))
    [completion] = run(tiny, [request])
    blank = {name: torch.zeros_like(value) if "pixel" in name else value for name, value in request.vision.items()}
    assert blank and set(request.vision) <= set(MODEL_INPUTS)
    dark = Request(
        prompt_ids=request.prompt_ids, position_ids=request.position_ids, vision=blank, sampling=request.sampling
    )
    difference = forward_log_probs(tiny, request, completion.token_ids) - forward_log_probs(
        tiny, dark, completion.token_ids
    )
    assert difference.abs().item() > 1e-3


def test_seeded_rows_do_not_depend_on_the_rest_of_the_batch(tiny):
    requests = requests_with(tiny, lambda i: Sampling(max_tokens=4 + 2 * i, seed=100 + i))
    together = [c.token_ids for c in run(tiny, requests)]
    alone = [run(tiny, [request])[0].token_ids for request in requests]
    backwards = [c.token_ids for c in run(tiny, requests[::-1])][::-1]
    assert together == alone == backwards
    other_seeds = requests_with(tiny, lambda i: Sampling(max_tokens=4 + 2 * i, seed=200 + i))
    assert [c.token_ids for c in run(tiny, other_seeds)] != together


def test_rows_of_one_prompt_share_its_pass_and_nothing_else(tiny):
    sessions = [tiny.request("video", Sampling(max_tokens=8, seed=i)) for i in range(4)]
    assert len({request.prompt_key for request in sessions}) == 1
    apart = [
        Request(prompt_ids=r.prompt_ids, position_ids=r.position_ids, vision=r.vision, sampling=r.sampling)
        for r in sessions
    ]
    shared = run(tiny, sessions)
    assert [c.token_ids for c in shared] == [c.token_ids for c in run(tiny, apart)]
    assert len({tuple(c.token_ids) for c in shared}) == 4


def test_a_continued_response_goes_on_in_its_stream_of_draws(tiny):
    prompt = tiny.request("text", Sampling(max_tokens=8, seed=5))
    [whole] = run(tiny, [prompt], eos=False)
    ids = prompt.prompt_ids + whole.token_ids[:3]
    rest = tiny.preparer.prepare(ids, None, None, None, Sampling(max_tokens=5, seed=5, first_draw=3))
    assert run(tiny, [rest], eos=False)[0].token_ids == whole.token_ids[3:]


def test_end_tokens_stop_a_row_and_ignore_eos_does_not(tiny):
    greedy = tiny.request("text", Sampling(max_tokens=6, temperature=0))
    [free] = run(tiny, [greedy], eos=False)
    assert free.stop_reason == "length" and len(free.token_ids) == 6
    end = free.token_ids[2]
    first = free.token_ids.index(end)
    stops = Sampling(max_tokens=6, temperature=0, stop_token_ids=(end,))
    [stopped] = run(tiny, [tiny.request("text", stops)], eos=False)
    assert stopped.token_ids == free.token_ids[: first + 1] and stopped.stop_reason == "completed"

    arguments = {"eos_token_ids": [end], "pad_token_id": 0}
    [by_model] = generate(tiny.model, [greedy], **arguments)
    assert by_model.token_ids == stopped.token_ids
    ignoring = tiny.request("text", Sampling(max_tokens=6, temperature=0, ignore_eos=True))
    assert generate(tiny.model, [ignoring], **arguments)[0].token_ids == free.token_ids


def test_no_requests_give_no_completions(tiny):
    assert run(tiny, []) == []


def test_draws_of_a_seed_do_not_depend_on_their_number():
    long = draws(Sampling(max_tokens=9, seed=3))
    assert torch.equal(draws(Sampling(max_tokens=4, seed=3)), long[:4])
    assert torch.equal(draws(Sampling(max_tokens=4, seed=3, first_draw=5)), long[5:])
    assert not torch.equal(draws(Sampling(max_tokens=9)), draws(Sampling(max_tokens=9)))


def test_tokens_follow_the_inverted_distribution():
    # softmax([ln 1, ln 2, ln 5]) = [1/8, 2/8, 5/8]: the draws 0 … 7 sixteenths-offset hit them 1, 2 and 5 times.
    logits = torch.log(torch.tensor([1.0, 2.0, 5.0])).repeat(8, 1)
    draw = (torch.arange(8).double() + 0.5) / 8
    tokens, log_probs = pick_tokens(logits, draw, [Sampling(max_tokens=1)] * 8)
    assert tokens.tolist() == [0, 1, 1, 2, 2, 2, 2, 2]
    torch.testing.assert_close(log_probs.exp(), torch.tensor([1, 2, 2, 5, 5, 5, 5, 5]) / 8)


def test_each_row_keeps_its_own_settings():
    logits = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1])).repeat(5, 1)
    settings = [
        Sampling(max_tokens=1, temperature=0),
        Sampling(max_tokens=1, top_k=2),
        Sampling(max_tokens=1, top_p=0.65),
        Sampling(max_tokens=1, temperature=0.5),
        Sampling(max_tokens=1),
    ]
    tokens, log_probs = pick_tokens(logits, torch.full((5,), 0.95).double(), settings)
    # Greedy; the last of the top two; the last of {0.4, 0.3} ⊇ 65 %; 0.16+0.09+0.04+0.01 sharpened: 0.95 of 0.30 is
    # 0.285 < 0.29, the third; and plain: 0.95 falls in the fourth.
    assert tokens.tolist() == [0, 1, 1, 2, 3]
    # Truncation leaves the log-probability as it is; temperature divides the logits first.
    expected = torch.tensor([0.4, 0.3, 0.3, 0.04 / 0.30, 0.1]).log()
    torch.testing.assert_close(log_probs, expected)


def test_banned_tokens_are_never_picked_yet_count_in_the_log_prob():
    logits = torch.log(torch.tensor([0.7, 0.1, 0.2])).repeat(3, 1)
    settings = [Sampling(max_tokens=1), Sampling(max_tokens=1), Sampling(max_tokens=1, temperature=0)]
    tokens, log_probs = pick_tokens(logits, torch.tensor([0.0, 1 - 1e-16, 0.5]).double(), settings, banned_ids=[0])
    assert tokens.tolist() == [1, 2, 2]
    torch.testing.assert_close(log_probs.exp(), torch.tensor([0.1, 0.2, 0.2]))


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"max_tokens": 1, "temperature": -0.1}, {"max_tokens": 1, "top_p": 0.0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="got"):
        Sampling(**wrong)


def test_penalties_are_those_of_the_openai_interface():
    # Token 1 said twice, token 2 once: presence + count * frequency = 0.5 + 2 * 0.25 and 0.5 + 0.25.
    samplings = [Sampling(max_tokens=9, presence_penalty=0.5, frequency_penalty=0.25), Sampling(max_tokens=9)]
    found = penalties([[1, 2, 1], [1, 1]], samplings, 4)
    assert found.tolist() == [[0.0, 1.0, 0.75, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert penalties([[1]], [Sampling(max_tokens=9)], 4) is None


def test_a_penalty_moves_the_choice_and_not_the_log_probability():
    logits = torch.tensor([[1.0, 0.9, -5.0]])
    cold = [Sampling(max_tokens=1, temperature=0)]
    penalty = torch.tensor([[0.2, 0.0, 0.0]])
    token, log_prob = pick_tokens(logits, torch.zeros(1).double(), cold, penalty=penalty)
    assert token.tolist() == [1]
    assert log_prob.item() == pytest.approx(logits.log_softmax(-1)[0, 1].item(), abs=1e-6)


def test_a_penalty_keeps_a_response_from_repeating_itself(tiny):
    penalised, rewarded = run(
        tiny,
        [tiny.request("video", Sampling(max_tokens=12, temperature=0, presence_penalty=x)) for x in (1e3, -1e3)],
        eos=False,
    )
    assert len(set(penalised.token_ids)) == 12
    assert len(set(rewarded.token_ids)) == 1
