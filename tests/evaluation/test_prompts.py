import copy
import json

import pytest

from verl_care.data.prompts import STYLES, build_prompt
from verl_care.data.records import to_row
from verl_care.evaluation import prompts
from verl_care.evaluation.items import build_item, read_benchmarks

OPTIONS = ["A. cup", "B. pen", "C. key", "D. hat"]


def choice(options=OPTIONS, truth="B", index=0, **changes):
    question = "What is it?\n" + "\n".join(options) + "\nAnswer with a letter."
    values = {"data_source": "video_mme", "index": index, "question": question, "problem_type": "multiple choice",
              "ground_truth": truth, "options": options, "videos": [{"video": "a.mp4", "fps": 2.0}]}  # fmt: skip
    return to_row(**{**values, **changes})


def test_media_stand_where_their_placeholders_stood():
    row = choice(
        question="Look: <video> and <image>.", options=(), images=["b.png"], problem_type="free-form", truth="x"
    )
    (turn,) = prompts.build_messages(row)
    assert turn == {
        "role": "user",
        "content": [
            {"type": "text", "text": "Look: "},
            {"type": "video", "video": "a.mp4", "fps": 2.0},
            {"type": "text", "text": " and "},
            {"type": "image", "image": "b.png"},
            {"type": "text", "text": "."},
        ],
    }
    blind = prompts.without_media([turn])
    assert [part["text"] for part in blind[0]["content"]] == ["Look: ", " and ", "."]


@pytest.mark.parametrize(
    ("video", "budget", "expected"),
    [
        ({"fps": 2.0}, {"max_frames": 16}, {"fps": 2.0, "max_frames": 16, "min_frames": 4}),
        ({"fps": 2.0}, {"max_frames": 2}, {"fps": 2.0, "max_frames": 2, "min_frames": 2}),
        ({"nframes": 8}, {"max_frames": 4}, {"nframes": 4}),
        ({"nframes": 8}, {"fps": 1.0}, {"nframes": 8}),
        ({}, {"fps": 1.0, "max_pixels": 200_704}, {"fps": 1.0, "max_pixels": 200_704}),
        ({"fps": 2.0}, {}, {"fps": 2.0}),
    ],
)
def test_a_budget_replaces_what_it_speaks_of_alone(video, budget, expected):
    messages = prompts.build_messages(choice(videos=[{"video": "a.mp4", **video}]))
    before = copy.deepcopy(messages)
    (part,) = prompts.video_parts(prompts.set_budget(messages, **budget))
    assert part == {"type": "video", "video": "a.mp4", **expected}
    assert messages == before


def test_a_level_of_frames_is_exact():
    messages = prompts.build_messages(choice(videos=[{"video": "a.mp4", "fps": 2.0, "max_frames": 16}]))
    assert prompts.video_parts(prompts.at_frames(messages, 64)) == [{"type": "video", "video": "a.mp4", "nframes": 64}]


def test_parts_of_one_video_share_its_frames():
    """As CG-Bench/CG-Bench, ``run/utils.py``, ``sample_frames_clue_average``: by length, rounded down."""
    ranges = [(10.0, 16.0), (40.0, 43.0), (90.0, 91.0)]
    videos = [{"video": "a.mp4", "video_start": start, "video_end": end} for start, end in ranges]
    row = choice(videos=[*videos, {"video": "b.mp4", "video_start": 0.0, "video_end": 1.0}])
    messages = prompts.build_messages(row)
    # 6, 3 and 1 of ten seconds; a part has at least one patch of two frames; another file has them all.
    exact = [part["nframes"] for part in prompts.video_parts(prompts.at_frames(messages, 16))]
    assert exact == [9, 4, 2, 16]
    capped = prompts.video_parts(prompts.set_budget(messages, max_frames=16))
    assert [(part["max_frames"], part["min_frames"]) for part in capped] == [(9, 4), (4, 4), (2, 2), (16, 4)]


def test_options_move_under_their_letters_and_the_right_one_is_followed():
    seen = set()
    for seed in range(30):
        row = prompts.reorder_options(choice(), seed)
        letters = [option[:3] for option in row["extra_info"]["options"]]
        texts = [option[3:] for option in row["extra_info"]["options"]]
        assert letters == ["A. ", "B. ", "C. ", "D. "] and sorted(texts) == ["cup", "hat", "key", "pen"]
        assert texts["ABCD".index(row["reward_model"]["ground_truth"])] == "pen"
        shown = row["prompt"][0]["content"].split("\n")
        assert shown[1:5] == row["extra_info"]["options"] and shown[5] == "Answer with a letter."
        seen.add(tuple(texts))
    assert len(seen) > 10
    assert prompts.reorder_options(choice(), 7) == prompts.reorder_options(choice(), 7)


def test_the_span_of_a_grounded_answer_stays_where_it_is():
    gold = json.dumps({"answer": "B", "spans": [[1, 2]]})
    row = prompts.reorder_options(choice(problem_type="grounded QA", truth=gold), 1)
    answer = json.loads(row["reward_model"]["ground_truth"])
    assert answer["spans"] == [[1, 2]]
    assert row["extra_info"]["options"]["ABCD".index(answer["answer"])].endswith("pen")


@pytest.mark.parametrize(
    "options",
    [
        ["A. cup", "B. pen", "C. all of the above"],
        ["A. cup", "B. pen", "C. Both A and B"],
        ["A. cup", "B. pen", "C. None of these"],
    ],
)
def test_options_that_speak_of_others_stay(options):
    assert prompts.reorder_options(choice(options), 1) is None
    assert build_item(choice(options), 1).reordered is False


def test_options_that_are_no_lines_of_the_prompt_stay():
    row = choice(question="<video>What is it, a cup, a pen, a key or a hat?")
    assert prompts.reorder_options(row, 1) is None


def test_an_option_that_begins_like_another_is_found():
    options = ["A. cup", "B. cupboard", "C. c"]
    row = prompts.reorder_options(choice(options), 4)
    assert sorted(option[3:] for option in row["extra_info"]["options"]) == ["c", "cup", "cupboard"]
    assert row["prompt"][0]["content"].split("\n")[1:4] == row["extra_info"]["options"]


def test_options_are_read_from_the_prompt_where_the_record_lists_none():
    row = choice()
    row["extra_info"].pop("options")
    assert prompts.options_of(row) == OPTIONS
    assert build_item(row).options == tuple(OPTIONS)


def test_items_know_their_clip(tmp_path):
    assert build_item(choice(extra_info={"video_id": "v7"})).video == "v7"
    assert build_item(choice()).video == "a.mp4"
    assert build_item(choice(videos=())).video == "video_mme/0"


def test_a_file_of_several_sources_gives_several_benchmarks(tmp_path):
    from verl_care.data.records import DataError, write_rows

    rows = [choice(index=n, data_source=name) for name in ("mmvu", "lvbench") for n in range(3)]
    write_rows(rows, tmp_path / "test.parquet")
    found = read_benchmarks([tmp_path], limit=2)
    assert [(benchmark.name, len(benchmark.items)) for benchmark in found] == [("mmvu", 2), ("lvbench", 2)]
    with pytest.raises(DataError, match="no such data file"):
        read_benchmarks([tmp_path / "other.parquet"])


@pytest.mark.parametrize("style", sorted(STYLES))
def test_options_are_found_in_prepared_prompts_of_every_style(style):
    system, user = build_prompt(style, "What is it?", "multiple choice", OPTIONS)
    moved = prompts.reorder_options(choice(question=f"<video>{user}", system=system), 3)
    assert moved is not None and moved["prompt"][-1]["content"] != f"<video>{user}"
    for option in moved["extra_info"]["options"]:
        assert option in moved["prompt"][-1]["content"].split("\n")
