"""Replay: reads our log and verl's dumps, and counts what a hand-made run says it must."""

from __future__ import annotations

import json
import math

import pytest
import torch

from verl_care.replay import (
    LENGTH_EDGES,
    NoShaping,
    ReplayError,
    default_rules,
    main,
    open_run,
    parse_assignments,
    parse_rule,
    read_batches,
    replay,
    run_replay,
)
from verl_care.shaping import get_rule
from verl_care.shaping.base import ShapingBatch
from verl_care.workers.rollout_log import RolloutLog


def write_run(folder, num_steps=12, num_prompts=8, group_size=4, seed=0):
    """A run of CARE on random rollouts, written by the log that our trainers use."""
    generator = torch.Generator().manual_seed(seed)
    log = RolloutLog(folder, max_bytes=10**9)
    rule, state = get_rule("care"), None
    size = num_prompts * group_size
    group = torch.arange(num_prompts).repeat_interleave(group_size)
    for step in range(1, num_steps + 1):
        accuracy = (torch.rand(size, generator=generator) < torch.rand(num_prompts, generator=generator)[group]).float()
        length = (200 * torch.exp(0.5 * torch.randn(size, generator=generator))).round().clamp(1, 768)
        keys = [f"demo/{g}" for g in group.tolist()]
        batch = ShapingBatch(
            score=accuracy + 1,
            accuracy=accuracy,
            correct=accuracy > 0.1,
            length=length,
            group=group,
            prompt_key=keys,
            step=step,
        )
        shaped, state = rule(batch, state)
        order = torch.randperm(size, generator=generator).tolist()
        columns = {
            "uid": [f"{step}-{g}" for g in group.tolist()],
            "prompt_key": keys,
            "acc": accuracy.tolist(),
            "score": batch.score.tolist(),
            "bonus": shaped.bonus.tolist(),
            "length": length.long().tolist(),
            "response": ["text"] * size,
        }
        log.write(step, 0, {name: [values[i] for i in order] for name, values in columns.items()})
    return state


def totals(results, label):
    return next(result.totals for result in results if result.label == label)


def test_replaying_the_rule_of_the_run_gives_the_logged_bonus(tmp_path):
    state = write_run(tmp_path)
    results = replay(read_batches(open_run(tmp_path)), {"logged": parse_rule("logged"), "care": parse_rule("care")})
    assert totals(results, "care") == pytest.approx(totals(results, "logged"), abs=1e-6)
    assert results[1].series[-1]["care/competence"] == pytest.approx(state.mean)
    assert [row["step"] for row in results[0].series] == list(range(1, 13))


def test_a_hand_made_batch_gives_the_figures_worked_by_hand():
    # Two groups of two: all right with lengths 100 and 300, all wrong with lengths 100 and 300.
    batch = ShapingBatch(
        score=torch.tensor([1.0, 1.0, 0.0, 0.0]),
        accuracy=torch.tensor([1.0, 1.0, 0.0, 0.0]),
        correct=torch.tensor([True, True, False, False]),
        length=torch.tensor([100.0, 300.0, 100.0, 300.0]),
        group=torch.tensor([0, 0, 1, 1]),
        step=1,
    )
    rules = {"none": NoShaping(), "kimi": get_rule("kimi_k1_5"), "band": get_rule("video_r1_band", min_length=200)}
    results = replay([batch], rules)
    assert totals(results, "none")["length_only_groups"] == 0
    assert math.isnan(totals(results, "none")["right_below_wrong_groups"])
    # Kimi: bonuses 0.5, -0.5 and 0, -0.5; both groups live on length alone.
    kimi = totals(results, "kimi")
    assert kimi["bonus_right"] == 0
    assert kimi["bonus_wrong"] == pytest.approx(-0.25)
    assert kimi["length_only_groups"] == kimi["length_only_of_all_wrong"] == kimi["length_only_of_all_right"] == 1
    # Advantages of two are +-1/sqrt(2), relative lengths -0.5 and 0.5.
    assert kimi["length_push"] == pytest.approx(-0.5 / math.sqrt(2), rel=1e-4)
    assert kimi["advantage_change"] == pytest.approx(1 / math.sqrt(2), rel=1e-4)
    # The band pays the right answer of 300 tokens, so it lengthens, in half of the groups.
    band = totals(results, "band")
    assert band["length_only_groups"] == 0.5
    assert band["length_push"] == pytest.approx(0.25 / math.sqrt(2), rel=1e-4)
    shown = {(row["right"], round(row["length"])): row["bonus"] for row in results[2].curve}
    assert sorted(shown.values()) == pytest.approx([0, 0, 0, 0.2])


def test_a_right_answer_below_a_wrong_one_is_counted_in_mixed_groups():
    batch = ShapingBatch(
        score=torch.tensor([1.0, 0.0, 1.0, 0.0]),
        accuracy=torch.tensor([1.0, 0.0, 1.0, 0.0]),
        correct=torch.tensor([True, False, True, False]),
        length=torch.tensor([3000.0, 100.0, 300.0, 100.0]),
        group=torch.tensor([0, 0, 1, 1]),
    )
    results = replay([batch], {"a_dlp": get_rule("a_dlp")})
    # 1 - 3 < 0 - 0.1 in the first group, 1 - 0.3 > 0 - 0.1 in the second.
    assert totals(results, "a_dlp")["right_below_wrong_groups"] == 0.5


def test_temporal_bonus_counts_as_score_for_every_rule(tmp_path):
    columns = {
        "uid": ["a", "a"],
        "acc": [1.0, 1.0],
        "score": [2.0, 2.0],
        "bonus": [0.5, 0.4],
        "temporal_bonus": [0.3, 0.3],
        "length": [10, 20],
    }
    RolloutLog(tmp_path, max_bytes=10**9).write(1, 0, columns)
    (batch,) = read_batches(open_run(tmp_path))
    torch.testing.assert_close(batch.score, torch.tensor([2.3, 2.3]))
    torch.testing.assert_close(batch.extra["logged_bonus"], torch.tensor([0.2, 0.1]))


def test_evicted_groups_reach_the_competence(tmp_path):
    columns = {
        "uid": ["a", "a"],
        "acc": [1.0, 0.0],
        "score": [1.0, 0.0],
        "bonus": [0.0, 0.0],
        "length": [10, 20],
        "evicted_pass_rate": [[1.0, 1.0, 0.0]] * 2,
    }
    RolloutLog(tmp_path, max_bytes=10**9).write(1, 0, columns)
    (result,) = replay(read_batches(open_run(tmp_path)), {"care": parse_rule("care")})
    # Mean over four prompts: (0.5 + 1 + 1 + 0) / 4.
    assert result.series[0]["care/competence"] == pytest.approx(0.99 * 0.6 + 0.01 * 0.625)


def dump(folder, rows):
    folder.mkdir(exist_ok=True)
    with open(folder / "3.jsonl", "w") as file:
        for row in rows:
            file.write(json.dumps({"input": "user\nhow many?", "gts": "4", "step": 3, **row}) + "\n")
    return folder


def test_verl_dumps_are_grouped_by_sample_and_keep_the_last_output_of_a_session(tmp_path):
    good = "<think>one two</think><answer>4</answer>"
    rows = [
        {"output": good, "score": 2.0, "uid": "s1_0_0"},
        {"output": "ignored", "score": 0.0, "uid": "s1_1_0"},
        {"output": "three words here", "score": 1.0, "uid": "s1_1_1"},
        {"output": "word", "score": 0.0, "uid": "s2_0_0"},
    ]
    (batch,) = read_batches(open_run(dump(tmp_path, rows)), length_unit="words")
    assert batch.length.tolist() == [2, 3, 1]
    assert batch.group.tolist() == [0, 0, 1]
    assert batch.step == 3
    # Scores hold a format reward of 1 for the first output; without it they are accuracies.
    assert batch.accuracy.tolist() == [1, 1, 0]


def test_verl_dumps_without_lengths_name_the_remedy(tmp_path):
    run = open_run(dump(tmp_path, [{"output": "x", "score": 1.0, "uid": "s_0_0"}]))
    with pytest.raises(ReplayError, match="--tokenizer"):
        list(read_batches(run))


def test_scores_that_are_no_accuracies_are_refused(tmp_path):
    run = open_run(dump(tmp_path, [{"output": "x", "score": 7.0, "uid": "s_0_0"}]))
    with pytest.raises(ReplayError, match=r"3\.jsonl.*no column acc"):
        list(read_batches(run, length_unit="words"))


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "1.jsonl").write_text('{"output": "x", "score": 1.0}\n{"output": \n')
    with pytest.raises(ReplayError, match=r"1\.jsonl, line 2"):
        list(read_batches(open_run(tmp_path), length_unit="words"))


def test_a_folder_without_rollouts_is_named(tmp_path):
    with pytest.raises(ReplayError, match="no rollouts.*care_rollouts"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("alp", "alp.*beta"),
        ("nosuch", "no rule 'nosuch'"),
        ("hapo:weight", "expected name=value"),
        ("hapo:colour=red", "colour"),
    ],
)
def test_a_rule_that_cannot_be_built_is_named(spec, message):
    with pytest.raises(ReplayError, match=message):
        parse_rule(spec)


def test_constants_are_read_as_numbers_where_they_are():
    assert parse_assignments(["beta=1e-4", "gate=right_only", "floor=false"]) == {
        "beta": 1e-4,
        "gate": "right_only",
        "floor": False,
    }
    assert parse_rule("alp:beta=1e-4,gate=right_only").beta == 1e-4


def test_fill_lets_a_rule_run_that_needs_a_column(tmp_path):
    write_run(tmp_path, num_steps=2)
    run = open_run(tmp_path)
    with pytest.raises(ReplayError, match="l1_exact, step 1.*target_length"):
        replay(read_batches(run), {"l1_exact": parse_rule("l1_exact")})
    (result,) = replay(read_batches(run, fill={"target_length": 1.0}), {"l1_exact": parse_rule("l1_exact")})
    assert result.totals["bonus_right"] < 0


def test_a_log_that_begins_late_is_replayed_from_there_with_a_warning(tmp_path, caplog):
    write_run(tmp_path, num_steps=3)
    (tmp_path / "care_rollouts" / "1.parquet").unlink()
    (result,) = replay(read_batches(open_run(tmp_path)), {"care": parse_rule("care")})
    assert [row["step"] for row in result.series] == [2, 3]
    (warning,) = caplog.messages
    assert warning.startswith(f"{tmp_path}: the log begins at step 2") and "\n" not in warning


def test_rules_left_out_by_default_say_why():
    rules, left_out = default_rules()
    assert {"care", "kimi_k1_5", "none"} <= set(rules)
    assert "target_length" in left_out["l1_exact"] and "constant" in left_out["alp"]
    rules, _ = default_rules(["target_length"])
    assert "l1_exact" in rules


def test_length_bins_hold_every_length_once():
    lengths = torch.arange(1, 5000).float()
    cells = torch.bucketize(lengths, LENGTH_EDGES)
    edges = torch.cat([torch.zeros(1), LENGTH_EDGES])
    assert bool(((edges[cells] < lengths) & (lengths <= edges[cells + 1])).all())


def test_json_and_plots(tmp_path, capsys):
    write_run(tmp_path / "run", num_steps=3)
    run_replay(tmp_path / "run", rules=["care", "kimi_k1_5"], out=tmp_path / "plots", as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert [row["rule"] for row in shown["rules"]] == ["care", "kimi_k1_5"]
    assert {path.rsplit("/", 1)[1] for path in shown["plots"]} == {
        "bonus_by_length.png",
        "advantage_by_length.png",
        "stage.png",
    }
    for path in shown["plots"]:
        with open(path, "rb") as file:
            assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_the_table_names_every_rule_and_what_was_left_out(tmp_path, capsys):
    write_run(tmp_path, num_steps=2)
    run_replay(tmp_path)
    shown = capsys.readouterr().out
    assert "kimi_k1_5" in shown and "left out: alp" in shown


def test_the_command_fails_with_one_line(tmp_path, capsys):
    assert main(tmp_path) == 1
    assert capsys.readouterr().err.startswith("error: ")
    write_run(tmp_path, num_steps=1)
    assert main(tmp_path, rules=["care"]) == 0
