"""vLLM's logits processor for annealed decoding, driven as vLLM's engine drives it."""

import pytest
import torch

pytestmark = pytest.mark.vllm

SCHEDULE = {"tau_max": 1.2, "tau_min": 0.1, "decay_tokens": 100.0, "warm_up": 2.0}


@pytest.fixture
def processor():
    vllm_config = pytest.importorskip("vllm.config")
    from verl_care.workers.vllm_annealing import AnnealedTemperature

    return AnnealedTemperature(vllm_config.VllmConfig(), torch.device("cpu"), False)


def added(index, schedule, output_ids):
    from vllm import SamplingParams

    from verl_care.shaping.annealing import ANNEALING_COLUMN

    extra = None if schedule is None else {ANNEALING_COLUMN: schedule}
    return (index, SamplingParams(extra_args=extra), [1, 2], output_ids)


def test_rows_are_scaled_by_their_own_tokens_and_schedule(processor):
    from vllm.v1.sample.logits_processor import BatchUpdate

    from verl_care.shaping.annealing import temperature_factor

    young, old = [], list(range(50))
    requests = [added(0, SCHEDULE, old), added(1, None, list(range(50))), added(2, SCHEDULE, young)]
    processor.update_state(BatchUpdate(batch_size=3, removed=[], added=requests, moved=[]))
    logits = torch.tensor([[1.0, 2.0]] * 3)
    out = processor.apply(logits.clone())
    factor = temperature_factor(50, SCHEDULE)
    assert factor < 1 and torch.allclose(out[0], logits[0] / factor)
    assert torch.equal(out[1:], logits[1:])
    # vLLM appends to the list that it gave.
    young += [5, 6, 7]
    processor.update_state(None)
    assert torch.allclose(processor.apply(logits.clone())[2], logits[2] / temperature_factor(3, SCHEDULE))


def test_greedy_choices_do_not_depend_on_it(processor):
    assert processor.is_argmax_invariant()
