"""Annealed decoding in the CPU's rollout engine: it moves what is sampled, never the log-probabilities."""

import torch

from verl_care.workers.cpu.generation import Sampling, pick_tokens

COLD = {"tau_max": 1.0, "tau_min": 1e-6, "decay_tokens": 1e-3, "warm_up": 4.0}
"""The policy's own temperature for four tokens, then none."""


def generate(tiny, annealing, seed=0):
    sampling = Sampling(max_tokens=12, seed=seed, ignore_eos=True, annealing=annealing)
    request = tiny.request("text", sampling)
    from verl_care.workers.cpu import generation

    (out,) = generation.generate(tiny.model, [request], eos_token_ids=(), pad_token_id=0)
    return request, out


def test_tokens_after_the_warm_up_are_greedy_and_log_probs_those_of_the_policy(tiny_qwen25):
    request, out = generate(tiny_qwen25, COLD)
    ids = torch.tensor([[*request.prompt_ids, *out.token_ids]])
    with torch.no_grad():
        logits = tiny_qwen25.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    logits = logits[len(request.prompt_ids) - 1 : -1].float()
    assert out.token_ids[4:] == logits.argmax(-1)[4:].tolist()
    assert out.token_ids[:4] != logits.argmax(-1)[:4].tolist()
    expected = logits.log_softmax(-1).gather(1, torch.tensor(out.token_ids)[:, None])[:, 0]
    assert (torch.tensor(out.log_probs) - expected).abs().max() < 1e-4


def test_the_warm_up_samples_as_without_a_schedule(tiny_qwen25):
    _, annealed = generate(tiny_qwen25, COLD)
    _, plain = generate(tiny_qwen25, None)
    assert annealed.token_ids[:4] == plain.token_ids[:4] and annealed.token_ids != plain.token_ids


def test_a_factor_multiplies_the_temperature_of_the_choice_alone():
    logits = torch.tensor([[0.0, 1.0, 2.0]] * 2)
    samplings = [Sampling(max_tokens=1)] * 2
    draw = torch.tensor([0.05, 0.05], dtype=torch.float64)
    tokens, log_probs = pick_tokens(logits, draw, samplings, factor=torch.tensor([1.0, 0.1]))
    # softmax of (0, 1, 2) begins with .09; of ten times that with 2e-9.
    assert tokens.tolist() == [0, 2]
    assert torch.allclose(log_probs, logits[0].log_softmax(-1)[tokens])
