"""Columns of ShapingBatch.extra: what a record gives, what a response shows, and what is missing."""

import pytest
import torch

from verl_care.shaping import get_rule, list_rules
from verl_care.shaping.extra import RANGES, collect_extra, is_repetitive, skips_thinking

KEYS = ["video_r1/3", "video_r1/3", "cgbench/0"]


def collect(wanted, records, measured=None, keys=KEYS):
    return collect_extra(wanted, records, measured or {}, keys, "l1_exact")


def test_a_record_gives_a_column_to_all_its_responses():
    records = [{"target_length": 120}, {"target_length": 120}, {"target_length": 80.5, "index": 0}]
    columns = collect({"target_length": None}, records)
    torch.testing.assert_close(columns["target_length"], torch.tensor([120.0, 120.0, 80.5]))


def test_a_record_goes_before_what_was_measured_and_before_the_default():
    records = [{"no_think": 1}, {"no_think": None}, {"no_think": False, "uncertainty": 0.25}]
    columns = collect({"no_think": None, "uncertainty": 0.0}, records, {"no_think": [0.0, 1.0, 1.0]})
    assert columns["no_think"].tolist() == [1.0, 1.0, 0.0]
    assert columns["uncertainty"].tolist() == [0.0, 0.0, 0.25]


def test_a_missing_value_names_record_field_and_rule():
    with pytest.raises(ValueError, match=r"record cgbench/0: extra_info\.target_length: missing, and rule l1_exact"):
        collect({"target_length": None}, [{"target_length": 1}, {"target_length": 1}, {"index": 0}])
    with pytest.raises(ValueError, match=r"record video_r1/3: extra_info\.ref_length: missing"):
        collect({"ref_length": None}, [None, None, None])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ref_accuracy", 1.5, r"a number in \[0, 1\]; got 1\.5"),
        ("target_length", -3, "a number >= 0; got -3"),
        ("target_length", "120", "a number >= 0; got '120'"),
        ("ref_length", float("nan"), "a number >= 0; got nan"),
        ("ref_length", float("inf"), "a number >= 0; got inf"),
        ("no_think", [1], r"a number in \[0, 1\]; got \[1\]"),
    ],
)
def test_a_value_that_is_none_names_record_and_field(name, value, expected):
    with pytest.raises(ValueError, match=rf"record a/7: extra_info\.{name}: expected {expected}"):
        collect({name: None}, [{name: value}], keys=["a/7"])


@pytest.mark.parametrize("name", list_rules())
def test_every_column_that_a_rule_wants_is_known(name):
    try:
        rule = get_rule(name)
    except ValueError:
        pytest.skip("needs constants, and reads no extra")
    assert set(rule.wanted_extra) <= set(RANGES)
    assert set(rule.properties.needs) <= {key for key, default in rule.wanted_extra.items() if default is None}


@pytest.mark.parametrize(
    ("text", "skips"),
    [
        ("<think></think><answer>A</answer>", True),
        ("<think>\n\n</think><answer>A</answer>", True),
        ("</think><answer>A</answer>", True),
        ("<answer>A</answer>", True),
        ("<think>red, so A</think><answer>A</answer>", False),
        ("red, so A</think><answer>A</answer>", False),
        ("<think>red, red, red", False),
    ],
)
def test_thinking_is_skipped_where_the_block_is_empty_or_absent(text, skips):
    assert skips_thinking(text) is skips


def test_repetition_needs_the_same_tokens_close_together():
    assert not is_repetitive(range(100))
    # 40 tokens, n = 3: [7, 8, 9] at 10 and 20, 10 < 40 // 3 apart.
    close = [*range(100, 110), 7, 8, 9, *range(200, 207), 7, 8, 9, *range(300, 317)]
    assert len(close) == 40 and is_repetitive(close)
    # The same three 20 apart: too far, and no sequence of six comes twice.
    far = [*range(100, 105), 7, 8, 9, *range(200, 217), 7, 8, 9, *range(300, 312)]
    assert len(far) == 40 and not is_repetitive(far)


def test_long_responses_may_say_something_twice_but_not_three_times():
    filler = list(range(1000, 1300))
    twice = [1, 2, 3, 4, *filler[:20], 1, 2, 3, 4, *filler[20:]]
    assert not is_repetitive(twice)
    assert is_repetitive([1, 2, 3, 4, *filler[300:], *twice])


def test_one_token_over_and_over_is_no_n_gram_but_a_pattern():
    # n = 3 and every trigram is one token; the sequences of six repeat.
    assert is_repetitive([5] * 40)
    assert not is_repetitive([5] * 8)
