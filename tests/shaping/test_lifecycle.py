"""Utilities by hand, and the life of prompts over visits."""

import json

import pytest
import torch

from verl_care.config import FavchatConfig
from verl_care.shaping.lifecycle import Lifecycle, PromptLife, compute_utility, group_utilities

CONFIG = FavchatConfig()


def test_utility_is_four_times_the_variance_of_the_group():
    accuracy = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5, 0.5, 1.0, 0.0])
    group = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    group = group[[0, 2, 1, 3, 4, 5, 6, 7]]
    # Groups: {1, 1}, {0, 1}, {.5, .5}, {1, 0}
    assert compute_utility(accuracy, group).tolist() == [0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    quarter = compute_utility(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64))
    assert quarter.tolist() == [0.75] * 4  # 4 p (1 - p)


def test_the_first_visit_sets_the_utility_and_later_ones_smooth_it():
    life = Lifecycle().observe(["a"], [0.5], CONFIG)
    assert life.prompts["a"] == PromptLife(0.5, 1)
    life = life.observe(["a"], [1.0], CONFIG)
    assert life.prompts["a"].utility == pytest.approx(0.8 * 0.5 + 0.2) and life.prompts["a"].visits == 2


def test_stages_at_the_thresholds():
    life = Lifecycle({"low": PromptLife(0.19, 1), "edge": PromptLife(0.2, 1), "top": PromptLife(0.81, 1)})
    stages = {key: life.stage(key, CONFIG) for key in ("low", "edge", "top", "new")}
    assert stages == {"low": "remove", "edge": "keep", "top": "cool", "new": "keep"}
    assert life.stage("top", FavchatConfig(cool_above=1.0)) == "keep"


def test_how_often_prompts_are_drawn():
    life = Lifecycle({"low": PromptLife(0.0, 1), "mid": PromptLife(0.5, 1), "top": PromptLife(1.0, 1)})
    drawn = {"low": "", "mid": "", "top": "", "new": ""}
    for _ in range(8):
        taken, life = life.draw(drawn, CONFIG)
        for key, take in zip(drawn, taken, strict=True):
            drawn[key] += "#" if take else "."
    assert drawn == {"low": "...#...#", "mid": "########", "top": ".#.#.#.#", "new": "########"}


def test_smoothing_thresholds_and_frequencies_are_options():
    config = FavchatConfig(smoothing=0.5, remove_below=0.3, cool_above=0.6, cool_every=3, revisit_every=2)
    life = Lifecycle({"a": PromptLife(0.2, 1), "b": PromptLife(0.7, 1)}).observe(["a", "b"], [0.3, 0.6], config)
    assert [life.prompts[key].utility for key in "ab"] == pytest.approx([0.25, 0.65])
    assert [life.stage(key, config) for key in "ab"] == ["remove", "cool"]
    assert [life.stage(key, CONFIG) for key in "ab"] == ["keep", "keep"]
    drawn = []
    for _ in range(6):
        taken, life = life.draw("ab", config)
        drawn.append(taken)
    assert [sum(taken) for taken in zip(*drawn, strict=True)] == [3, 2]


@pytest.mark.parametrize(
    "wrong", [{"smoothing": 1.0}, {"remove_below": 0.9}, {"cool_above": 1.1}, {"cool_every": 0}, {"revisit_every": 0}]
)
def test_impossible_constants_are_errors(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FavchatConfig(**wrong)


def test_a_removed_prompt_comes_back_when_its_responses_disagree_again():
    life = Lifecycle({"low": PromptLife(0.1, 1)})
    for _ in range(4):
        _, life = life.draw(["low"], CONFIG)
    life = life.observe(["low"], [0.9], CONFIG)
    assert life.stage("low", CONFIG) == "keep"


def test_state_survives_json_and_another_is_refused():
    life = Lifecycle({"toy/1": PromptLife(0.25, 3, 2), "toy/2": PromptLife(1.0, 1)})
    assert Lifecycle.from_dict(json.loads(json.dumps(life.to_dict()))) == life
    with pytest.raises(ValueError, match="lifecycles"):
        Lifecycle.from_dict({"toy/1": 3})


def test_a_prompt_that_stands_twice_in_a_batch_counts_by_its_mean():
    accuracy = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    assert group_utilities(accuracy, group, ["a", "a", "a", "a", "b", "b"]) == {"a": 0.5, "b": 1.0}
