"""Curves of a run, from the lines of verl's file logger to a picture."""

import json

import pytest
from PIL import Image

from verl_care.report.curves import draw_curves, moving_mean, read_metrics


def _write(path, steps, competence=True):
    with open(path, "w", encoding="utf-8") as file:
        for step in steps:
            data = {"care/response_length/mean": 20.0 + step, "care/pass_rate": 0.5, "care/response_length/p90": 40.0}
            if competence:
                data |= {"care/competence": 0.6 + 0.02 * step, "care/stage": min(3, step // 3), "name": "text"}
            file.write(json.dumps({"step": step, "data": data}) + "\n")
    return path


def test_a_step_run_again_counts_once_and_half_a_line_is_left_out(tmp_path):
    path = _write(tmp_path / "m.jsonl", [1, 2, 3, 2])
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"step": 4, "da')
    curve = read_metrics(path)
    assert curve.steps == [1, 2, 3]
    assert curve.series("care/competence") == ([1, 2, 3], pytest.approx([0.62, 0.64, 0.66]))
    assert curve.series("name") == ([], [])


def test_a_broken_line_is_named(tmp_path):
    path = _write(tmp_path / "m.jsonl", [1])
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(ValueError, match="m.jsonl, line 1"):
        read_metrics(path)


def test_moving_mean_by_hand():
    assert moving_mean([1.0, 2.0, 6.0, 4.0], 3) == [1.5, 3.0, 4.0, 5.0]
    assert moving_mean([1.0, 2.0], 1) == [1.0, 2.0]


@pytest.mark.parametrize("competence", [True, False])
def test_a_picture_is_drawn_with_and_without_competence(tmp_path, competence):
    path = draw_curves(read_metrics(_write(tmp_path / "m.jsonl", range(1, 12), competence)), tmp_path / "curve.png")
    picture = Image.open(path).convert("RGB")
    assert picture.width > 600 and len(picture.getcolors(10**6)) > 50
    assert [file.name for file in tmp_path.glob("*.png*")] == ["curve.png"]


def test_a_run_without_steps_is_an_error(tmp_path):
    (tmp_path / "m.jsonl").write_text("")
    with pytest.raises(ValueError, match="no step"):
        draw_curves(read_metrics(tmp_path / "m.jsonl"), tmp_path / "curve.png")
