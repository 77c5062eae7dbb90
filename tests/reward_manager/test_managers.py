"""Both halves of the reward managers, on verl's own base and registry."""

import asyncio

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
from verl.trainer.ppo.reward import load_reward_manager

from verl_care.config import load_config
from verl_care.reward_manager.base import EXTRA_KEYS, SHUFFLED_FIELD
from verl_care.shaping import list_rules
from verl_care.shaping.care import CareRule
from verl_care.shaping.contrast import ContrastedRule

SCORER = {"path": "pkg://verl_care.rewards.scorer", "name": "compute_score", "reward_kwargs": {"scoring": "strict"}}


class CharacterTokenizer:
    """A token is a character."""

    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids.tolist()))


def _config(name="care", hook="care_sync", function=SCORER):
    return OmegaConf.create(
        {
            "care": {"hook": hook},
            "trainer": {"v1": {"trainer_mode": "sync"}},
            "reward": {
                "reward_manager": {"name": name, "source": "register"},
                "custom_reward_function": function,
                "reward_kwargs": {},
            },
        }
    )


def _rollout(text, **fields):
    prompt, response = torch.zeros(1, 3, dtype=torch.long), torch.tensor([[ord(c) for c in text]] or [[]])
    batch = {
        "prompts": prompt,
        "responses": response,
        "attention_mask": torch.ones(1, 3 + response.shape[1], dtype=torch.long),
    }
    row = {
        "data_source": "demo",
        "reward_model": {"ground_truth": "A"},
        "extra_info": {"index": 4, "problem_type": "multiple choice", "options": ["A. red", "B. green"]},
        **fields,
    }
    non_tensor = {}
    for name, value in row.items():
        non_tensor[name] = np.empty(1, dtype=object)
        non_tensor[name][0] = value
    return DataProto(batch=TensorDict(batch, batch_size=1), non_tensor_batch=non_tensor)


def _run(manager, data):
    return manager.loop.run_until_complete(manager.run_single(data))


@pytest.fixture(autouse=True)
def event_loop():
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


RIGHT = "<think>so</think><answer>A</answer>"


def test_care_scores_as_naive_does_with_the_same_scorer():
    for text in (RIGHT, "<answer>B</answer>", "A", ""):
        care = _run(load_reward_manager(_config("care"), CharacterTokenizer()), _rollout(text))
        naive = _run(load_reward_manager(_config("naive"), CharacterTokenizer()), _rollout(text))
        assert care["reward_score"] == naive["reward_score"]
        assert tuple(care["reward_extra_info"]) == EXTRA_KEYS
        assert naive["reward_extra_info"].items() <= care["reward_extra_info"].items()


def test_right_answer_in_format_scores_two():
    result = _run(load_reward_manager(_config(), CharacterTokenizer()), _rollout(RIGHT))
    assert result["reward_score"] == 2.0
    info = result["reward_extra_info"]
    assert (info["acc"], info["format"], info["unparsed"], info["reward_error"], info["pred"]) == (1, 1, 0, 0, "A")


def test_the_response_on_shuffled_frames_is_scored_beside():
    data = _rollout(RIGHT, tool_extra_fields={SHUFFLED_FIELD: "<answer>B</answer>"})
    result = _run(load_reward_manager(_config(), CharacterTokenizer()), data)
    assert result["reward_extra_info"]["acc_shuffled"] == 0.0 and result["reward_score"] == 2.0


USER_FUNCTIONS = """
async def number(data_source, solution_str, ground_truth, extra_info):
    return 0.25

def mapping(data_source, solution_str, ground_truth, extra_info, scale):
    return {"acc": 0.5, "score": 0.5 * scale, "mine": 1}

def raises(data_source, solution_str, ground_truth, extra_info):
    raise KeyError("no such rubric")

def no_accuracy(data_source, solution_str, ground_truth, extra_info):
    return {"score": 1.0}
"""


@pytest.mark.parametrize(
    ("name", "kwargs", "score", "accuracy", "error"),
    [
        ("number", {}, 0.25, 0.25, 0),
        ("mapping", {"scale": 3}, 1.5, 0.5, 0),
        ("raises", {}, 0.0, 0.0, 1),
        ("no_accuracy", {}, 0.0, 0.0, 1),
    ],
)
def test_a_users_function_replaces_the_scorer_and_its_errors_are_counted(
    tmp_path, caplog, name, kwargs, score, accuracy, error
):
    path = tmp_path / "mine.py"
    path.write_text(USER_FUNCTIONS)
    function = {"path": str(path), "name": name, "reward_kwargs": kwargs}
    result = _run(load_reward_manager(_config(function=function), CharacterTokenizer()), _rollout(RIGHT))
    info = result["reward_extra_info"]
    assert (result["reward_score"], info["acc"], info["reward_error"]) == (score, accuracy, error)
    assert tuple(info) == EXTRA_KEYS
    assert ("record demo/4" in caplog.text) == bool(error)


@pytest.mark.parametrize("name", ["care", "alp"])
def test_a_manager_without_our_trainer_refuses_to_start(name):
    with pytest.raises(RuntimeError, match="trainer.v1.trainer_mode=care_sync.*found trainer.v1.trainer_mode=sync"):
        load_reward_manager(_config(name, hook=None), CharacterTokenizer())


def test_every_rule_is_a_manager_of_its_name():
    for name in list_rules():
        assert get_reward_manager_cls(name).rule_name == name


def test_the_batch_half_takes_its_constants_from_the_care_node():
    config = load_config({"shaping": {"ema_decay": 0.5}, "contrast": {"enabled": False}})
    shaper = get_reward_manager_cls("care").build_shaper(config)
    assert isinstance(shaper, CareRule) and shaper.config.ema_decay == 0.5
    contrasted = get_reward_manager_cls("care").build_shaper(load_config({}))
    assert isinstance(contrasted, ContrastedRule) and contrasted.name == "care"
    with pytest.raises(ValueError, match="rule alp.*nonsense"):
        get_reward_manager_cls("alp").build_shaper(load_config({"rules": {"alp": {"nonsense": 1}}}))
