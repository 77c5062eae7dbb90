"""The rules' table: complete, true to the classes, and readable by a program."""

from __future__ import annotations

import json

import pytest

from verl_care.rule_table import describe_rule, main
from verl_care.shaping import get_rule, list_rules


@pytest.mark.parametrize("name", list_rules())
def test_every_constant_has_a_meaning_and_every_rule_a_source(name):
    rule = describe_rule(name)
    assert rule["source"] and rule["formula"] and rule["summary"]
    assert [row["name"] for row in rule["constants"] if not row["meaning"]] == []


@pytest.mark.parametrize("name", list_rules())
def test_the_shown_defaults_build_the_rule(name):
    rule = describe_rule(name)
    constants = {row["name"]: row["default"] for row in rule["constants"] if not row["required"]}
    constants.update(dict.fromkeys(rule["required"], 1.0))
    if name != "care":
        assert get_rule(name, **constants) == get_rule(name, **dict.fromkeys(rule["required"], 1.0))


def test_rules_with_a_memory_are_marked():
    stateful = {name for name in list_rules() if describe_rule(name)["stateful"]}
    assert {"care", "hapo", "short_rl", "a_dlp", "laser_d", "laser_de"} <= stateful
    assert not {"kimi_k1_5", "grpo_lambda", "diet"} & stateful


def test_constants_of_care_show_the_stages():
    constants = {row["name"]: row["default"] for row in describe_rule("care")["constants"]}
    assert constants["concise.slope"] == 3.0 and constants["explore.coefficient"] == 0.25
    assert constants["ema_decay"] == 0.99


def test_json_lists_every_rule(capsys):
    assert main(as_json=True) == 0
    assert [rule["rule"] for rule in json.loads(capsys.readouterr().out)] == list_rules()


def test_one_rule_shows_its_formula_and_constants(capsys):
    assert main("alp") == 0
    shown = capsys.readouterr().out
    assert "max(p, 1 / K)" in shown and "beta" in shown and "required" in shown


def test_an_unknown_rule_fails_and_lists_the_known(capsys):
    assert main("alpp") == 1
    assert "kimi_k1_5" in capsys.readouterr().err
