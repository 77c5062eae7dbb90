"""`verl-care eval` from prepared files to results, with a real model on the CPU."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from verl_care.cli import app
from verl_care.data.records import RecordError, write_rows
from verl_care.evaluation import asking, engines, evaluate
from verl_care.evaluation.engines import EngineConfig
from verl_care.evaluation.evaluate import EvalConfig
from verl_care.evaluation.recorded import EvaluationError
from verl_care.evaluation.sparse_to_dense import SparseToDense

OPTIONS = ["A. red", "B. green", "C. blue", "D. yellow"]


@pytest.fixture(scope="module")
def benchmarks(taught, make_row, tmp_path_factory):
    """Five sets in the shape of published ones, in which the model is right as often as it was taught."""
    folder = tmp_path_factory.mktemp("sets")
    clips = taught.clips
    video_mme = [
        make_row(difficulty, n, clip, extra_info={"duration_class": name})
        for n, (difficulty, name, clip) in enumerate(
            (d, name, clip) for d, name in (("easy", "short"), ("hard", "long")) for clip in clips[:4]
        )
    ]
    types = ["object_rel_direction_easy", "object_rel_direction_hard", "route_planning"]
    vsi = [
        make_row(d, n, clips[n], data_source="vsi_bench", extra_info={"question_type": name})
        for n, (d, name) in enumerate(zip(("easy", "hard", "easy"), types, strict=True))
    ]
    number = {"problem_type": "regression", "ground_truth": "3", "options": ()}
    vsi.append(
        make_row(
            "easy", 3, clips[3], data_source="vsi_bench", extra_info={"question_type": "object_counting"}, **number
        )
    )
    span = {"problem_type": "temporal grounding", "ground_truth": "[[0.5, 1.5]]", "options": ()}
    charades = [
        make_row("easy", n, clip, data_source="charades_sta", extra_info={"duration": 2.0}, **span)
        for n, clip in enumerate(clips[:3])
    ]
    tempcompass = [
        make_row(d, n, clips[n], data_source="tempcompass", extra_info={"aspect": aspect, "format": "multi-choice"})
        for n, (d, aspect) in enumerate(zip(("easy", "medium", "hard"), ("action", "order", "speed"), strict=True))
    ]
    mvbench = [
        make_row(d, n, clips[n], data_source="mvbench", extra_info={"task_type": task})
        for n, (d, task) in enumerate(zip(("easy", "easy", "hard"), ("action", "action", "count"), strict=True))
    ]
    paths = []
    for rows in (video_mme, vsi, charades, tempcompass, mvbench):
        paths.append(folder / rows[0]["data_source"] / "test.parquet")
        write_rows(rows, paths[-1])
    return paths


def config_of(taught, benchmarks, out_dir, **changes) -> EvalConfig:
    engine = EngineConfig(model=str(taught.model), max_model_len=512)
    settings = {"data": tuple(map(str, benchmarks)), "out_dir": str(out_dir), "max_tokens": 40, "batch_size": 4}
    return EvalConfig(engine=engine, **{**settings, "resamples": 200, **changes})


@pytest.fixture(scope="module")
def finished(taught, benchmarks, tmp_path_factory):
    """A greedy run over all sets, with blind questions."""
    out_dir = tmp_path_factory.mktemp("run") / "greedy"
    evaluation = evaluate.evaluate(config_of(taught, benchmarks, out_dir, blind=True))
    return out_dir, evaluation


def test_scores_are_what_the_model_was_taught(finished):
    _, evaluation = finished
    found = evaluation.results["benchmarks"]
    assert found["video_mme"]["headline"]["strict"]["mean"] == 0.5
    assert found["video_mme"]["tables"]["strict"]["duration_class"] == {"long": 0.0, "short": 1.0}
    # Directions: (1 + 0) / 2, planning 1, counting 0 (a letter is no number): (0.5 + 1 + 0) / 3.
    assert found["vsi_bench"]["headline"]["strict"]["mean"] == pytest.approx(0.5)
    assert found["vsi_bench"]["figures"]["strict"]["Video-R1 mean_acc"] == pytest.approx(2 / 3)
    assert found["vsi_bench"]["figures"]["strict"]["Video-R1 mean_mra"] == 0.0
    # Two of two right in one task, none of one in the other.
    assert found["mvbench"]["headline"]["strict"]["mean"] == 0.5
    # No answer is a span: wrong, and there.
    assert found["charades_sta"]["headline"]["strict"] == {"mean": 0.0, "std": None, "low": 0.0, "high": 0.0}
    assert found["charades_sta"]["shares"]["unparsed"] == 1.0 and found["charades_sta"]["items"] == 3
    assert found["tempcompass"]["tables"]["strict"]["aspect"]["action"] == 1.0


def test_tokens_shares_and_the_blind_score_are_there(finished):
    entry = finished[1].results["benchmarks"]["video_mme"]
    assert entry["shares"]["tagged"] == 1.0 and entry["shares"]["truncated"] == 0.0 and entry["failed"] == 0
    assert entry["tokens"]["mean"] == pytest.approx((entry["tokens"]["right"] + entry["tokens"]["wrong"]) / 2)
    # What the model says depends on the wording alone.
    assert entry["blind"]["strict"]["mean"] == 0.5


def test_the_run_is_written_as_json_markdown_a_page_and_a_table(finished):
    out_dir, evaluation = finished
    assert json.loads((out_dir / "results.json").read_text()) == evaluation.results
    page, markdown = (out_dir / "results.html").read_text(), (out_dir / "results.md").read_text()
    for name in evaluation.results["benchmarks"]:
        assert name in page and name in markdown
    assert "<script" not in page and "http" not in page
    rows = pq.read_table(out_dir / "items.parquet").to_pylist()
    assert len(rows) == 2 * 21 and {row["blind"] for row in rows} == {True, False}


def test_a_finished_run_is_read_again_without_a_model(finished, taught, benchmarks, monkeypatch):
    out_dir, evaluation = finished
    monkeypatch.setattr(asking, "build_engine", lambda config: pytest.fail("the model was loaded"))
    again = evaluate.evaluate(config_of(taught, benchmarks, out_dir, blind=True))
    assert again.results == evaluation.results


def test_a_run_that_was_killed_asks_only_what_is_missing(finished, taught, benchmarks, tmp_path, monkeypatch):
    out_dir, evaluation = finished
    lines = (out_dir / "answers.jsonl").read_bytes().splitlines(keepends=True)
    # Three whole batches of four, and half a line of the next.
    (tmp_path / "answers.jsonl").write_bytes(b"".join(lines[:12]) + lines[12][:25])
    asked = []

    def counting(config):
        engine = engines.build_engine(config)
        call = engine.__call__

        class Counting:
            describe, prefetch, close = engine.describe, engine.prefetch, engine.close

            def __call__(self, requests):
                asked.extend(requests)
                return call(requests)

        return Counting()

    monkeypatch.setattr(asking, "build_engine", counting)
    resumed = evaluate.evaluate(config_of(taught, benchmarks, tmp_path, blind=True))
    assert len(asked) == len(lines) - 12
    assert resumed.results["benchmarks"] == evaluation.results["benchmarks"]
    assert sorted((tmp_path / "answers.jsonl").read_bytes().splitlines()) == sorted(line.strip() for line in lines)


def test_seeds_give_a_spread_and_a_baseline_is_compared(finished, taught, benchmarks, tmp_path):
    config = config_of(taught, benchmarks[:1], tmp_path, seeds=(0, 1), temperature=0.01, baseline=str(finished[0]))
    entry = evaluate.evaluate(config).results["benchmarks"]["video_mme"]
    assert entry["headline"]["strict"]["mean"] == 0.5 and entry["headline"]["strict"]["std"] == 0.0
    compared = entry["baseline"]
    assert compared["items"] == 8
    assert compared["difference"]["strict"]["verdict"] == "not distinguishable"
    assert compared["mcnemar"] == {"gained": 0, "lost": 0, "p": 1.0}
    assert compared["token_reduction"]["items"] == 8


def test_tokens_are_not_compared_across_budgets_or_prompts(finished, taught, benchmarks, tmp_path):
    longer = config_of(taught, benchmarks[:1], tmp_path / "longer", max_tokens=50, baseline=str(finished[0]))
    found = evaluate.evaluate(longer).results["benchmarks"]["video_mme"]["baseline"]["token_reduction"]
    assert found == {"reason": "not compared: the runs have different budgets"}
    fewer = config_of(taught, benchmarks[:1], tmp_path / "fewer", max_frames=2, baseline=str(finished[0]))
    found = evaluate.evaluate(fewer).results["benchmarks"]["video_mme"]["baseline"]["token_reduction"]
    assert found == {"reason": "not compared: the runs have different prompts"}


def test_a_clip_that_cannot_be_read_stays_in_the_denominator(taught, make_row, tmp_path):
    rows = [make_row("easy", n, clip) for n, clip in enumerate(taught.clips[:3])]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    rows.append(make_row("easy", 3, broken))
    write_rows(rows, tmp_path / "test.parquet")
    results = evaluate.evaluate(config_of(taught, [tmp_path], tmp_path / "run")).results
    entry = results["benchmarks"]["video_mme"]
    assert (entry["items"], entry["failed"], entry["headline"]["strict"]["mean"]) == (4, 1, 0.75)
    (row,) = [row for row in pq.read_table(tmp_path / "run/items.parquet").to_pylist() if row["error"]]
    assert row["key"] == "video_mme/3" and "broken.mp4" in row["error"]
    assert "Failed answers: 1;" in (tmp_path / "run/results.md").read_text()


def test_a_run_in_which_everything_fails_is_an_error(taught, make_row, tmp_path):
    write_rows([make_row("easy", 0, tmp_path / "gone.mp4")], tmp_path / "test.parquet")
    with pytest.raises(EvaluationError, match="all 1 requests of the first batch failed; the first: .*gone.mp4"):
        evaluate.evaluate(config_of(taught, [tmp_path], tmp_path / "run"))


def test_a_folder_of_another_model_is_refused(finished, taught, benchmarks):
    config = config_of(taught, benchmarks, finished[0])
    other = replace(config, engine=replace(config.engine, model="another"))
    with pytest.raises(EvaluationError, match="holds answers of another run"):
        evaluate.evaluate(other)


def test_a_folder_of_other_positions_is_refused(finished, taught, benchmarks):
    config = config_of(taught, benchmarks, finished[0])
    other = replace(config, engine=replace(config.engine, positions="stock"))
    with pytest.raises(EvaluationError, match="of another run .positions: 'seconds', now 'stock'"):
        evaluate.evaluate(other)


def test_options_in_another_order_move_the_right_letter(taught, benchmarks, tmp_path):
    results = evaluate.evaluate(config_of(taught, benchmarks[:1], tmp_path, option_seed=3)).results
    entry = results["benchmarks"]["video_mme"]
    assert entry["reordered"] == {"moved": 8, "left": 0}
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "items.parquet").to_pylist()}
    truths = {item.key: item.ground_truth for item in evaluate.load_benchmarks(
        config_of(taught, benchmarks[:1], tmp_path, option_seed=3))[0].items}  # fmt: skip
    assert len(set(truths.values())) > 1
    # The model still says A to the easy questions: right where red stayed there.
    assert all(rows[f"video_mme/{n}"]["strict"] == float(truths[f"video_mme/{n}"] == "A") for n in range(4))


def test_the_command_prints_the_tables_and_names_what_is_wrong(taught, benchmarks, tmp_path):
    def invoke(*arguments):
        return CliRunner().invoke(app, ["eval", str(taught.model), *arguments, "--max-tokens", "40"])

    done = invoke(str(benchmarks[0].parent), "--out", str(tmp_path / "run"), "--limit", "2", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["benchmarks"]["video_mme"]["items"] == 2
    gone = invoke(str(tmp_path / "gone.parquet"), "--out", str(tmp_path / "other"))
    assert gone.exit_code == 1 and gone.stderr.startswith("error: ") and "gone.parquet" in gone.stderr
    assert len(gone.stderr.strip().splitlines()) == 1
    cold = invoke(str(benchmarks[0]), "--out", str(tmp_path / "cold"), "--seeds", "0,1")
    assert cold.exit_code == 2 and "temperature" in cold.output


def test_a_record_that_is_there_twice_is_named(taught, make_row, tmp_path):
    rows = [make_row("easy", 0, taught.clips[0])] * 2
    write_rows(rows, tmp_path / "test.parquet")
    with pytest.raises(RecordError, match="record 1: video_mme/0 is there twice"):
        evaluate.evaluate(config_of(taught, [tmp_path], tmp_path / "run"))


@pytest.fixture(scope="module")
def strategies(taught, benchmarks, tmp_path_factory):
    """Sparse to dense at 2 and 4 frames, compared, over the sets of one kind of question."""
    out_dir = tmp_path_factory.mktemp("strategies")
    strategy = SparseToDense(frames=(2, 4), samples=3, max_tokens=40)
    config = config_of(taught, [benchmarks[0], benchmarks[3]], out_dir, strategy=strategy)
    return out_dir, config, evaluate.evaluate(config).results


def test_sparse_to_dense_looks_again_at_what_it_is_unsure_of(strategies):
    _, _, results = strategies
    found = results["benchmarks"]
    assert found["video_mme"]["headline"]["strict"]["mean"] == 0.5 and found["video_mme"]["frames"] == 2.0
    course = results["strategies"]["sparse_to_dense"]
    assert course["num_questions"] == 11 and course["num_failed"] == 0
    assert course["decided_share"]["2"] >= 10 / 11
    assert course["decided_share"]["2"] + course["decided_share"]["4"] + course["undecided_share"] == pytest.approx(1)
    # Three answers at two frames, for all but one question at most.
    assert 6 <= course["average_frames_read"] <= (11 * 6 + 12) / 11
    assert results["budget"]["frames"] == [2, 4]


def test_it_is_compared_with_dense_majority_and_greedy(strategies):
    out_dir, _, results = strategies
    names = list(results["strategies"])
    assert names[:2] == ["sparse_to_dense", "always dense: 3 at 4"]
    assert [name.split(":")[0] for name in names[2:]] == [
        "equal compute",
        "equal compute",
        "greedy at 2",
        "greedy at 4",
    ]
    dense = results["strategies"]["always dense: 3 at 4"]
    assert (dense["average_frames"], dense["average_frames_read"]) == (4.0, 12.0)
    assert results["strategies"]["greedy at 4"]["average_frames_read"] == 4.0
    assert dense["difference"]["verdict"] == "not distinguishable"
    for name in names:
        assert name in (out_dir / "results.md").read_text()


def test_a_finished_course_is_read_again_without_a_model(strategies, monkeypatch):
    _, config, results = strategies
    monkeypatch.setattr(asking, "build_engine", lambda config: pytest.fail("the model was loaded"))
    assert evaluate.evaluate(config).results == results


def test_a_clip_with_fewer_frames_than_a_level_ends_there(taught, make_row, tmp_path):
    write_rows([make_row("medium", n, clip) for n, clip in enumerate(taught.clips)], tmp_path / "test.parquet")
    strategy = SparseToDense(frames=(4, 64), samples=4, max_tokens=40)
    results = evaluate.evaluate(config_of(taught, [tmp_path], tmp_path / "run", strategy=strategy)).results
    frames = {row["frames"] for row in pq.read_table(tmp_path / "run/items.parquet").to_pylist()}
    assert frames <= {4.0, 8.0} and results["failed"] == 0


def test_a_broken_clip_of_a_course_stays_in_the_denominator(taught, make_row, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    rows = [make_row("easy", 0, taught.clips[0]), make_row("easy", 1, tmp_path / "broken.mp4")]
    write_rows(rows, tmp_path / "test.parquet")
    strategy = SparseToDense(frames=(2, 4), samples=2, max_tokens=40)
    results = evaluate.evaluate(config_of(taught, [tmp_path], tmp_path / "run", strategy=strategy)).results
    entry = results["benchmarks"]["video_mme"]
    assert (entry["items"], entry["failed"], entry["headline"]["strict"]["mean"]) == (2, 1, 0.5)
    assert results["strategies"]["sparse_to_dense"]["num_failed"] == 1


def test_prepared_benchmarks_are_evaluated_as_they_come(taught, tmp_path):
    clips = tmp_path / "source" / "videos"
    clips.mkdir(parents=True)
    for number, clip in enumerate(taught.clips[:2]):
        (clips / f"v{number}.mp4").write_bytes(clip.read_bytes())
    mme = [
        {"video_id": f"{n:03}", "duration": duration, "domain": "Knowledge", "sub_category": "Law", "url": "u",
         "videoID": f"v{n}", "question_id": f"{n:03}-1", "task_type": "OCR Problems", "question": "Name the colour.",
         "options": OPTIONS, "answer": "A"}
        for n, duration in enumerate(("short", "long"))
    ]  # fmt: skip
    charades = [{"video": f"v{n}.mp4", "caption": "a shape goes by", "timestamp": [0.5, 1.5]} for n in range(2)]
    # Two clues, each of which becomes a video of the prompt.
    cgbench = [
        {"qid": n, "video_uid": f"v{n}", "question": "Name the colour.", "answer": "red", "right_answer": "A",
         "choices": [option[3:] for option in OPTIONS], "clue_intervals": [[0, 0.75], [1, 1.75]]}
        for n in range(2)
    ]  # fmt: skip
    prepared = []
    for name, rows in (
        ("video_mme", mme),
        ("charades_sta", charades),
        *((name, cgbench) for name in ("cgbench", "cgbench_clue", "cgbench_miou")),
    ):
        source = tmp_path / "source" / name / ("cgbench_mini.json" if rows is cgbench else "test-0-of-1.parquet")
        source.parent.mkdir()
        if rows is cgbench:
            source.write_text(json.dumps(rows), encoding="utf-8")
        else:
            pq.write_table(pa.Table.from_pylist(rows), source)
        call = ["prepare", name, "--source", str(source.parent), "--videos", str(clips), "--out", str(tmp_path / name)]
        done = CliRunner().invoke(app, call + (["--set", "split=test"] if name == "cgbench" else []))
        assert done.exit_code == 0, done.output
        prepared.append(str(tmp_path / name))
    size = ["--frames", "4", "--min-pixels", "3136", "--max-pixels", "3136", "--max-tokens", "12", "--option-seed", "1"]
    call = ["eval", str(taught.model), *prepared, "--out", str(tmp_path / "run"), *size, "--json"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["benchmarks"]
    assert set(found["video_mme"]["tables"]["strict"]["duration_class"]) == {"short", "long"}
    assert found["video_mme"]["reordered"] == {"moved": 2, "left": 0} and found["video_mme"]["videos"] == 2
    assert set(found["charades_sta"]["figures"]["strict"]) == {"R@1 IoU=0.3", "R@1 IoU=0.5", "R@1 IoU=0.7", "mIoU"}
    assert all(entry["failed"] == 0 for entry in found.values())
    assert found["cgbench"]["figures"]["strict"].keys() == {"clue-acc", "CRR", "acc@IoU"}
    assert found["cgbench_miou"]["figures"]["strict"].keys() == {"mIoU", "rec@IoU"}
