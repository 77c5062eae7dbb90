"""The report: figures read back from a hand-made log, one self-contained page."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch

from verl_care.replay import ReplayError
from verl_care.report.page import density, draw_figures, main, read_run, summarise, token_reduction
from verl_care.workers.rollout_log import RolloutLog


def write_run(folder, lengths, *, stage="explore", bonuses=(0.0, 0.0, 0.0, 0.0)):
    """Two groups of two an update: the first all right, the second mixed; one answer in four is unparsed."""
    log = RolloutLog(folder, max_bytes=10**9)
    for step, length in enumerate(lengths, start=1):
        columns = {
            "uid": ["a", "b", "a", "b"],
            "acc": [1.0, 0.0, 1.0, 1.0],
            "format": [1.0, 1.0, 1.0, 0.0],
            "unparsed": [0.0, 1.0, 0.0, 0.0],
            "score": [2.0, 1.0, 2.0, 1.0],
            "bonus": list(bonuses),
            "length": [length] * 4,
            "stage": [stage] * 4,
        }
        log.write(step, 0, columns)
    return folder


def test_figures_of_a_hand_made_run(tmp_path):
    # Groups: a has scores 2 and 2 and bonuses 0.1 and 0.2, so its gradient comes from length; b has scores 1 and 1 too.
    run = read_run(write_run(tmp_path, [100] * 5 + [300] * 10 + [50] * 5, bonuses=(0.1, 0.0, 0.2, 0.0)))
    assert run.series["step"] == [float(step) for step in range(1, 21)]
    assert run.series["accuracy"][0] == 0.75
    assert run.series["unparsed"][0] == 0.25
    assert run.series["effort"][0] == pytest.approx(0.075)
    assert run.series["length_only"][0] == 0.5
    (row,) = summarise([run], None)
    assert (row["length_early"], row["length_peak"], row["length_late"]) == (100, 300, 50)
    assert row["rollouts"] == 80 and row["token_reduction"] is None
    assert set(run.lengths["peak"].tolist()) == {300.0}


def test_a_log_that_begins_late_is_shown_as_such(tmp_path, capsys, caplog):
    write_run(tmp_path / "whole", [100, 100])
    write_run(tmp_path / "late", [100, 100, 60])
    (tmp_path / "late" / "care_rollouts" / "1.parquet").unlink()
    assert main([tmp_path / "whole", tmp_path / "late"], out_dir=tmp_path / "report", as_json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(row["first_step"], row["updates"]) for row in shown["runs"]] == [(1, 2), (2, 2)]
    assert "<td>2 from step 2</td>" in (tmp_path / "report" / "report.html").read_text()
    (warning,) = caplog.messages
    assert warning.startswith(f"{tmp_path / 'late'}: the log begins at step 2")


def test_token_reduction_compares_the_ends(tmp_path):
    short = read_run(write_run(tmp_path / "short", [100, 100, 60]))
    long = read_run(write_run(tmp_path / "long", [100, 100, 240]))
    assert token_reduction(short, long) == pytest.approx(0.75)
    assert token_reduction(long, long) == 0


def test_temporal_bonus_is_no_effort(tmp_path):
    columns = {
        "uid": ["a", "a"],
        "acc": [1.0, 0.0],
        "score": [1.0, 0.0],
        "bonus": [0.5, 0.0],
        "temporal_bonus": [0.3, 0.0],
        "length": [10, 20],
    }
    RolloutLog(tmp_path, max_bytes=10**9).write(1, 0, columns)
    run = read_run(tmp_path)
    assert run.series["temporal"] == [pytest.approx(0.15)] and run.series["effort"] == [pytest.approx(0.1)]
    assert math.isnan(run.series["stage"][0])


def test_density_integrates_to_one_and_peaks_at_the_data():
    lengths = torch.tensor([100.0] * 50 + [110.0] * 50)
    grid = torch.linspace(0, 300, 3001)
    values = density(lengths, grid)
    assert float(torch.trapezoid(values, grid)) == pytest.approx(1, abs=1e-3)
    assert 100 <= float(grid[values.argmax()]) <= 110


class Page(HTMLParser):
    """Tags and outside references of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href")]


def test_the_page_is_self_contained_and_has_a_figure_for_each_png(tmp_path):
    first = write_run(tmp_path / "one", [100, 200])
    second = write_run(tmp_path / "two", [100, 50], stage="concise")
    out = tmp_path / "out"
    assert main([first, second], out_dir=out) == 0
    text = (out / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert all(reference.startswith("data:") for reference in page.references)
    assert page.tags.count("img") == len(list(out.glob("*.png"))) == len(draw_figures([read_run(first)] * 2))
    assert 'name="viewport"' in text
    # The second run ends at 50 tokens against the first one's 200.
    assert "+75.0%" in text
    assert [row["run"] for row in json.loads((out / "report.json").read_text())] == ["one", "two"]


def test_names_are_escaped(tmp_path):
    folder = write_run(tmp_path / "<b>bold", [100])
    assert main([folder], out_dir=tmp_path / "out") == 0
    assert not re.search("<b>", (tmp_path / "out" / "report.html").read_text())


def test_runs_of_one_name_are_told_apart(tmp_path, capsys):
    first, second = write_run(tmp_path / "x" / "run", [100]), write_run(tmp_path / "y" / "run", [100])
    assert main([first, second], out_dir=tmp_path / "out", as_json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in shown["runs"]] == ["x/run", "y/run"]


def test_competence_comes_from_the_file_logger(tmp_path):
    write_run(tmp_path, [100, 100])
    lines = [json.dumps({"step": step, "data": {"care/competence": 0.6 + step / 100}}) for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = read_run(tmp_path)
    assert run.competence == ([1, 2], [pytest.approx(0.61), pytest.approx(0.62)])
    assert "competence" in draw_figures([run])


def test_a_run_that_goes_on_can_be_reported(tmp_path):
    write_run(tmp_path, [100])
    (tmp_path / "care_rollouts" / "2.partial77").write_bytes(b"half")
    assert read_run(tmp_path).series["step"] == [1.0]


def test_a_folder_without_a_log_fails_with_one_line(tmp_path, capsys):
    assert main([tmp_path]) == 1
    assert "no rollouts" in capsys.readouterr().err
    with pytest.raises(ReplayError):
        read_run(tmp_path)
