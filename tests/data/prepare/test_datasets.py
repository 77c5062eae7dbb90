"""Each data set in its published shape: where the answer, the options, the clip and what the scorers need end up."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from verl_care.data.prepare.run import MANIFEST
from verl_care.data.prepare.table import PREPARERS
from verl_care.data.records import check_record
from verl_care.evaluation.items import read_benchmarks


def only(rows):
    assert len(rows) == 1
    check_record(rows[0])
    return rows[0]


def gold(row):
    return row["reward_model"]["ground_truth"]


def test_video_r1(world, video_r1_record):
    world.clip("CLEVRER/train/video_0.mp4")
    (world.videos / "Math").mkdir()
    Image.new("RGB", (40, 30)).save(world.videos / "Math" / "a.png")
    numeric = video_r1_record(
        1, problem="Sum?", data_type="image", problem_type="numerical", options=[], solution="<answer>3.5</answer>"
    )
    world.json("Video-R1-260k.json", [video_r1_record(), {**numeric, "path": "./Math/a.png", "data_source": "GeoQA"}])
    world.prepare("video_r1", dev=0)
    video, image = world.rows("video_r1", "train")
    assert video["prompt"][0]["content"].startswith(
        "<video>What appears first in clip 0?Options:\nA. cup\nB. pen\n\nPl"
    )
    assert video["prompt"][0]["content"].endswith("single option letter (e.g., A, B, C, D, etc.) within the <answer> "
                                                  "</answer> tags.")  # fmt: skip
    assert (gold(video), gold(image)) == ("A", "3.5")
    assert video["videos"][0]["video"] == str(world.videos / "CLEVRER/train/video_0.mp4")
    assert image["images"][0]["image"] == str(world.videos / "Math/a.png")
    info = video["extra_info"]
    assert (info["source"], info["video_id"], info["split"]) == ("CLEVRER", "CLEVRER/train/video_0", "train")
    assert info["duration"] == pytest.approx(4.0)
    assert image["extra_info"]["duration"] is None
    assert info["media_hash"] != image["extra_info"]["media_hash"]


def test_video_r1_cot_is_what_the_supervised_trainer_reads(world, video_r1_record):
    world.clip("CLEVRER/train/video_0.mp4")
    (world.videos / "a.png").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(world.videos / "a.png")
    image = video_r1_record(1, data_type="image", path="./a.png", process="<think>so</think>")
    world.json("Video-R1-COT-165k.json", [video_r1_record(process="<think>hm\nwait</think>"), image])
    world.prepare("video_r1_cot", dev=0)
    row, other = world.rows("video_r1_cot", "train")
    user, assistant = row["messages"]
    assert user["content"].startswith("<video>What appears")
    assert assistant == {"role": "assistant", "content": "<think>hm\nwait</think>\n<answer>A</answer>"}
    # Stock verl hands the dicts on as they are: a None in one of them is an error of qwen-vl-utils.
    assert None not in row["videos"][0].values() and None not in other["images"][0].values()
    assert row["videos"][0]["max_frames"] == 16
    assert (row["images"], other["videos"]) == ([], [])

    world.json("Video-R1-COT-165k.json", [video_r1_record(process="hm")])
    with pytest.raises(ValueError, match="record 0: process: expected <think>"):
        world.prepare("video_r1_cot", dev=0)


def test_video_holmes_mix(world, video_r1_record):
    world.clip("CLEVRER/train/video_0.mp4")
    world.json(
        "Video-R1-Holmes-16k.json", [video_r1_record(options=["A) cup", "(B) pen"], solution="<answer>B</answer>")]
    )
    world.prepare("video_holmes_mix")
    assert gold(only(world.rows("video_holmes_mix", "train"))) == "B"


def test_cgbench_from_video_rts_list(world):
    world.clip("3ZpmN3-2-Zo.mp4")
    row = {
        "problem": "What color is the car?\nA. red\nB. blue\nC. Pale. blue\n",
        "solution": "<answer>C.</answer>",
        "video": "/nas/videos/3ZpmN3-2-Zo.mp4",
        "clue_intervals": [],
        "qid": 14,
        "duration": None,
        "original_answer": "Pale. blue",
    }
    world.jsonl("cgbench_selected_training_samples.jsonl", [row])
    world.prepare("cgbench")
    row = only(world.rows("cgbench", "train"))
    assert gold(row) == "C"
    assert row["extra_info"]["options"] == ["A. red", "B. blue", "C. Pale. blue"]
    assert row["extra_info"]["question"] == "What color is the car?"
    assert row["prompt"][0]["content"].startswith("<video>A conversation between User and Assistant.")
    assert row["extra_info"]["video_id"] == "3ZpmN3-2-Zo"
    assert any("known: cgbench and cgbench" in line for line in world.told)


def test_cgbench_of_its_own(world):
    world.clip("BV1.mp4")
    row = {
        "qid": 19,
        "video_uid": "BV1",
        "question": "Color?",
        "answer": "jade",
        "choices": ["aqua", "mint", "jade"],
        "right_answer": "C",
        "clue_intervals": [[1, 2.5]],
        "domain": "Life Record",
        "sub_category": "Entity Perception",
        "duration": 611,
    }
    world.json("cgbench_mini.json", [row])
    world.prepare("cgbench")
    assert len(world.rows("cgbench", "train")) == 1
    # As a test set: what was trained on is found in it.
    world.prepare("cgbench", options={"split": "test"})
    assert "cgbench overlaps cgbench: 1 training records (1 by video id, 1 by file, 1 by question)" in world.told[-1]
    row = only(world.rows("cgbench"))
    assert gold(row) == "C"
    assert row["extra_info"]["clue_intervals"] == [[1, 2.5]]
    assert row["extra_info"]["duration"] == 611


def cgbench_row(**changes):
    return {
        "qid": 19,
        "video_uid": "BV1",
        "question": "Color?",
        "answer": "jade",
        "choices": ["aqua", "mint", "jade"],
        "right_answer": "C",
        "clue_intervals": [[2, 3], [0.5, 1], [1, 1.5]],
        "domain": "Life Record",
        "sub_category": "Entity Perception",
        "duration": 611,
        **changes,
    }


def test_cgbench_over_its_clues_and_for_them(world):
    world.clip("BV1.mp4")
    world.json("cgbench_mini.json", [cgbench_row()])
    world.prepare("cgbench_clue")
    row = only(world.rows("cgbench_clue"))
    # Clues in order; those that touch are one.
    assert [(part["video_start"], part["video_end"]) for part in row["videos"]] == [(0.5, 1.5), (2.0, 3.0)]
    assert row["prompt"][0]["content"].startswith("<video><video>")
    assert (gold(row), row["extra_info"]["id"]) == ("C", "19")

    world.prepare("cgbench_miou")
    row = only(world.rows("cgbench_miou"))
    assert json.loads(gold(row)) == [[0.5, 1.5], [2.0, 3.0]]
    assert (row["extra_info"]["problem_type"], row["extra_info"]["id"]) == ("temporal grounding", "19")
    question = row["prompt"][0]["content"]
    assert "Color?" in question and "C. jade" in question and '{"spans": [[3.2, 7.0], [15.0, 18.5]]}' in question
    assert "start_time" not in question

    # A clue behind the end of the file; no clue at all.
    world.json("cgbench_mini.json", [cgbench_row(clue_intervals=[[1, 2], [30, 40]])])
    with pytest.raises(ValueError, match="1 with clips that cannot be used"):
        world.prepare("cgbench_clue")
    world.json("cgbench_mini.json", [cgbench_row(clue_intervals=[])])
    with pytest.raises(ValueError, match="clue_intervals: expected at least one"):
        world.prepare("cgbench_miou")


def test_temporal_rlt_shares_become_seconds(world):
    world.clip("AO8RW.mp4", "v_1.mp4")
    charades = {"dataset": "charades_train", "video": "AO8RW.mp4", "problem": "When?", "solution": [0.25, 0.5]}
    other = {"dataset": "anet", "video": "v_1.mp4", "problem": "When?", "solution": [0, 0.5], "video_length": 100}
    world.json("charades_train.json", [charades, other])
    world.prepare("temporal_rlt", dev=0)
    first, second = world.rows("temporal_rlt", "train")
    # The first has no length: its clip is four seconds long.
    assert json.loads(gold(first)) == [[1.0, 2.0]]
    assert json.loads(gold(second)) == [[0.0, 50.0]]
    assert first["prompt"][0]["role"] == "system"
    assert (first["extra_info"]["duration"], second["extra_info"]["duration"]) == (pytest.approx(4.0), 100)


def test_charades_sta(world):
    world.clip("AO8RW.mp4")
    rows = [{"video": "AO8RW.mp4", "caption": "a person sits down.", "timestamp": [1.5, 33.0]}]
    world.parquet("data/test-00000-of-00001.parquet", rows)
    world.text("charades_sta_train.txt", "AO8RW 0.0 2.9##a person is putting a book on a shelf.\n")
    manifest = world.prepare("charades_sta", dev=0)
    assert list(manifest["splits"]) == ["train", "test"]
    row = only(world.rows("charades_sta"))
    # Longer than the file: published so, and scored so.
    assert json.loads(gold(row)) == [[1.5, 33.0]]
    assert row["extra_info"]["query"] == "a person sits down."
    assert '"a person sits down.", when does' in row["prompt"][-1]["content"]
    assert json.loads(gold(only(world.rows("charades_sta", "train")))) == [[0.0, 2.9]]


def test_activitynet_tvg_in_both_shapes(world):
    world.clip("v_a.mp4")
    world.json("test.json", [{"video": "v_a.mp4", "caption": "A man.", "timestamp": [0, 2]}])
    world.prepare("activitynet_tvg")
    assert json.loads(gold(only(world.rows("activitynet_tvg")))) == [[0.0, 2.0]]
    captions = {"v_a": {"duration": 4.0, "timestamps": [[0, 2], [1, 4.02]], "sentences": ["A man.", "He sits."]}}
    world.prepare("activitynet_tvg", source=world.json("val_2.json", captions))
    first, second = world.rows("activitynet_tvg")
    assert second["extra_info"]["query"] == "He sits."
    assert json.loads(gold(second)) == [[1.0, 4.02]]


def nextgqa(**changes):
    row = {
        "video_id": "812",
        "frame_count": 9,
        "width": 320,
        "height": 240,
        "question": "why did he sit",
        "answer": "tired",
    }
    row |= {"qid": 8, "type": "CW", "a0": "happy", "a1": "tired", "a2": "told", "a3": "fell", "a4": "song", **changes}
    return row


def test_nextgqa(world):
    world.clip("1027/812.mp4")
    world.csv("test.csv", [nextgqa()])
    world.json("gsub_test.json", {"812": {"duration": 40, "location": {"8": [[-0.1, 2.5], [30.0, 38.2]]}, "fps": 25.0}})
    world.json("map_vid_vidorID.json", {"812": "1027/812"})
    world.csv("train.csv", [nextgqa(answer=3)])
    world.prepare("nextgqa", dev=0)
    row = only(world.rows("nextgqa"))
    assert json.loads(gold(row)) == {"answer": "B", "spans": [[0.0, 2.5], [30.0, 38.2]]}
    assert row["videos"][0]["video"].endswith("1027/812.mp4")
    info = row["extra_info"]
    assert (info["type"], info["qid"], info["duration"], info["video_id"]) == ("CW", "8", 40, "812")
    assert info["problem_type"] == "grounded QA"
    train = only(world.rows("nextgqa", "train"))
    assert (gold(train), train["extra_info"]["problem_type"]) == ("D", "multiple choice")
    # Times are asked for as JSON, a letter is not.
    assert [len(entry["prompt"]) for entry in (row, train)] == [2, 1]


def test_vsi_bench(world):
    world.clip("scannet/scene0011_00.mp4")
    common = {"dataset": "scannet", "scene_name": "scene0011_00", "question": "How?"}
    choice = {"options": ["A. left", "B. right"], "ground_truth": "B", "question_type": "object_rel_direction_hard"}
    number = {"options": None, "ground_truth": "4.5", "question_type": "room_size_estimation"}
    world.jsonl("test.jsonl", [{"id": 0, **common, **choice}, {"id": 1, **common, **number}])
    world.prepare("vsi_bench")
    first, second = world.rows("vsi_bench")
    assert (gold(first), first["extra_info"]["problem_type"]) == ("B", "multiple choice")
    assert (gold(second), second["extra_info"]["problem_type"]) == ("4.5", "regression")
    assert second["extra_info"]["question_type"] == "room_size_estimation"
    assert second["extra_info"]["video_id"] == "scannet/scene0011_00"


def test_video_mmmu(world):
    world.clip("Art/validation_Art_Theory_2.mp4")
    row = {"id": "validation_Art_Theory_2", "question": "Which?", "options": ["x", "y"], "answer": "B"}
    world.parquet("Perception/test-00000.parquet", [{**row, "question_type": "perception"}])
    world.parquet("Adaptation/test-00000.parquet", [{**row, "options": [], "answer": "12", "question_type": "open"}])
    world.prepare("video_mmmu")
    adaptation, perception = world.rows("video_mmmu")
    assert adaptation["extra_info"]["track"] == "Adaptation"
    assert (gold(adaptation), adaptation["extra_info"]["problem_type"]) == ("12", "free-form")
    assert "The image for this question is at the end" in adaptation["prompt"][0]["content"]
    assert (gold(perception), perception["extra_info"]["options"]) == ("B", ["A. x", "B. y"])
    assert (perception["extra_info"]["subject"], perception["extra_info"]["category"]) == ("Art_Theory", "Art")
    assert "ignore the Quiz question" in perception["prompt"][0]["content"]

    # Before the lecture: Adaptation alone, over the picture, without a word about a lecture.
    world.clip("question_only/validation_Art_Theory_2_image.mp4")
    world.prepare("video_mmmu_question_only")
    before = only(world.rows("video_mmmu_question_only"))
    assert before["videos"][0]["video"] == str(world.videos / "question_only/validation_Art_Theory_2_image.mp4")
    assert before["extra_info"]["id"] == adaptation["extra_info"]["id"]
    assert "watch and learn" not in before["prompt"][0]["content"]


def test_mmvu_takes_multiple_choice_alone(world):
    world.clip("Art/0.mp4")
    url = "https://huggingface.co/datasets/yale-nlp/MMVU/resolve/main/videos/Art/0.mp4"
    row = {"id": "validation_0", "video": url, "youtube_url": "", "question": "Which?", "metadata": {"subject": "Art"}}
    empty = dict.fromkeys("ABCDE", "")
    world.json(
        "validation.json",
        [
            {**row, "question_type": "open-ended", "choices": empty, "answer": "Dolly Zoom"},
            {**row, "id": "validation_1", "question_type": "multiple-choice", "answer": "E"}
            | {"choices": {letter: f"text {letter}" for letter in "ABCDE"}},
        ],
    )
    manifest = world.prepare("mmvu")
    row = only(world.rows("mmvu"))
    assert (gold(row), row["extra_info"]["subject"], row["extra_info"]["video_id"]) == ("E", "Art", "Art/0")
    # The place in the published file, also where a record in front was left out.
    assert row["extra_info"]["index"] == 1
    assert manifest["splits"]["test"]["counts"]["left out by options"] == 1
    world.prepare("mmvu", options={"open": "yes"})
    assert [gold(row) for row in world.rows("mmvu")] == ["Dolly Zoom", "E"]


def test_mvbench_whole_videos_segments_and_frames(world):
    question = {"question": "Why?", "candidates": ["to eat", "to go"], "answer": "to go"}
    part = {"start": 1.0, "end": 3.0}
    world.json("json/action_sequence.json", [{"video": "Q1.mp4", **question, **part}])
    world.json("json/action_prediction.json", [{"video": "Q2_1.0_3.0.mp4", **question, **part}])
    world.json("json/episodic_reasoning.json", [{"video": "friends/a", **question}])
    world.clip("star/Charades_v1_480/Q1.mp4", "star/Charades_segment/Q2_1.0_3.0.mp4")
    folder = world.videos / "tvqa/video_fps3_hq_segment/friends/a"
    folder.mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (33, 20), (40 * number,) * 3).save(folder / f"{number:05d}.jpg")
    world.prepare("mvbench")
    by_task = {row["extra_info"]["task_type"]: row for row in world.rows("mvbench")}
    whole = by_task["action_sequence"]["videos"][0]
    assert (whole["video_start"], whole["video_end"]) == (1.0, 3.0)
    segment = by_task["action_prediction"]["videos"][0]
    assert segment["video_start"] is None and "segment" in segment["video"]
    frames = by_task["episodic_reasoning"]
    assert frames["videos"][0]["video"].endswith("clips/tvqa/video_fps3_hq_segment/friends/a.mp4")
    assert frames["extra_info"]["duration"] == pytest.approx(2.0)
    assert {gold(row) for row in by_task.values()} == {"B"}


def test_tempcompass(world):
    world.clip("1034.mp4")
    questions = {
        "multi-choice": ("What?\nA. dunking\nB. passing\nC.Both", "B. passing"),
        "yes_no": ("Is he dunking?", "yes"),
        "caption_matching": ("Which?\nSentence A: He dunks.\nSentence B: He: passes.", "Sentence B: He: passes."),
        "captioning": ("Write.\nInformation A: x", "B. dunking"),
    }
    for name, (question, answer) in questions.items():
        world.json(f"questions/{name}.json", {"1034": {"speed": [{"question": question, "answer": answer}]}})
    world.prepare("tempcompass")
    row = only(world.rows("tempcompass"))
    assert (gold(row), row["extra_info"]["aspect"], row["extra_info"]["format"]) == ("B", "speed", "multi-choice")
    assert row["extra_info"]["options"] == ["A. dunking", "B. passing", "C. Both"]
    world.prepare("tempcompass", options={"formats": "all"})
    by_format = {row["extra_info"]["format"]: row for row in world.rows("tempcompass")}
    assert {name: gold(row) for name, row in by_format.items()} == {
        "multi-choice": "B",
        "yes_no": "yes",
        "caption_matching": "B",
        "captioning": "B. dunking",
    }
    assert by_format["caption_matching"]["extra_info"]["options"] == ["A. He dunks.", "B. He: passes."]


def video_mme(**changes):
    row = {"video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "Law", "url": "u"}
    row |= {"videoID": "fFjv93ACGo8", "question_id": "001-1", "task_type": "OCR Problems", "question": "Which?"}
    return row | {"options": ["A. Apples.", "B. Candles.", "C. Berries.", "D. All."], "answer": "C", **changes}


def test_video_mme_with_and_without_subtitles(world):
    world.clip("fFjv93ACGo8.mp4")
    world.parquet("videomme/test-00000-of-00001.parquet", [video_mme()])
    # Frames at 0, 2 and 4 s: the first and the last line are seen, the middle one is not.
    font = '<font color="white" size=".72c">{}</font>'
    times = (("00:00:00,000", "00:00:01,000"), ("00:00:02,500", "00:00:03,500"), ("00:00:03,900", "00:00:09,000"))
    blocks = [f"{n}\n{start} --> {end}\n{font.format('line ' + str(n))}\n" for n, (start, end) in enumerate(times)]
    world.text("subtitle/fFjv93ACGo8.srt", "\n".join(blocks))
    world.prepare("video_mme")
    row = only(world.rows("video_mme"))
    assert (gold(row), row["extra_info"]["duration_class"]) == ("C", "short")
    assert row["extra_info"]["task_type"] == "OCR Problems"
    assert "subtitles" not in row["prompt"][0]["content"]
    world.prepare("video_mme_subtitles", options={"subtitle_frames": "3"})
    row = only(world.rows("video_mme_subtitles"))
    assert row["extra_info"]["subtitles"] == "line 0\nline 2"
    assert "subtitles are listed below:\nline 0\nline 2\nWhich?" in row["prompt"][0]["content"]
    with pytest.raises(ValueError, match="--set subtitles: no such folder: '/none'"):
        world.prepare("video_mme_subtitles", options={"subtitles": "/none"})
    shutil.rmtree(world.source / "subtitle")
    with pytest.raises(ValueError, match="--set subtitles: no such folder"):
        world.prepare("video_mme_subtitles")


def test_video_holmes(world):
    world.clip("videos_cropped/RSmjq.mp4", "videos_cropped/other.mp4")
    row = {"video ID": "RSmjq", "Question ID": 1, "Question Type": "SR", "Question": "Who?", "Answer": "F"}
    row |= {"Options": {letter: f"text {letter}" for letter in "FEDCBA"}, "Explanation": "so"}
    world.json("test_Video-Holmes.json", [row])
    world.json("train_Video-Holmes.json", [{**row, "video ID": "other", "Question": "Who was it?"}])
    world.prepare("video_holmes", dev=0)
    row = only(world.rows("video_holmes"))
    assert (gold(row), row["extra_info"]["question_type"]) == ("F", "SR")
    assert row["extra_info"]["options"][5] == "F. text F"
    assert row["videos"][0]["video"].endswith("videos_cropped/RSmjq.mp4")
    assert only(world.rows("video_holmes", "train"))["extra_info"]["video_id"] == "other"


def test_longvideobench_in_both_shapes(world):
    world.clip("videos/86Cx.mp4")
    row = {"id": "86Cx_0", "video_id": "86Cx", "video_path": "86Cx.mp4", "subtitle_path": "86Cx_en.json"}
    row |= {"question": "Which?", "correct_choice": 1, "question_category": "T2A", "duration_group": 15}
    row |= {"duration": 4.0, "starting_timestamp_for_subtitles": 100}
    world.json("lvb_val.json", [{**row, "candidates": ["x", "y"]}])
    world.json(
        "subtitles/86Cx_en.json",
        [
            {"start": "00:01:40.000", "end": "00:01:40.400", "line": "first"},
            {"timestamp": [101.9, 103.0], "text": "middle"},
            {"timestamp": [103.2, None], "text": "last"},
        ],
    )
    options = {"subtitles": str(world.source / "subtitles"), "subtitle_frames": "2"}
    world.prepare("longvideobench", options=options)
    first = only(world.rows("longvideobench"))
    assert first["extra_info"]["subtitles"] == "first\nlast"
    filler = {f"option{number}": text for number, text in enumerate(("x", "y", "N/A", "N/A", "N/A"))}
    source = world.parquet("validation-00000-of-00001.parquet", [{**row, **filler}])
    world.prepare("longvideobench", source=source)
    second = only(world.rows("longvideobench"))
    for row in (first, second):
        assert (gold(row), row["extra_info"]["options"]) == ("B", ["A. x", "B. y"])
        assert (row["extra_info"]["duration_group"], row["extra_info"]["split"]) == (15, "validation")
    assert second["extra_info"].get("subtitles") is None


def test_lvbench_in_both_shapes(world):
    world.clip("Cm73.mp4")
    question = "What year?\n(A) 1636\n(B) 1366\n(C) 1363\n(D) 1633"
    qa = {"uid": "4", "question": question, "answer": "D", "question_type": ["key information retrieval"]}
    qa |= {"time_reference": "00:15-00:19"}
    video = {"key": "Cm73", "type": "cartoon", "video_info": {"duration_minutes": 45}, "qa": [qa]}
    world.jsonl("video_info.meta.jsonl", [video])
    world.prepare("lvbench")
    first = only(world.rows("lvbench"))
    row = {"video_path": "Cm73.mp4", "question": question, "answer": "D", "type": "cartoon"}
    world.prepare("lvbench", source=world.parquet("train-00000.parquet", [row]))
    second = only(world.rows("lvbench"))
    for row in (first, second):
        assert (gold(row), row["extra_info"]["options"][3], row["extra_info"]["video_id"]) == ("D", "D. 1633", "Cm73")
        assert row["extra_info"]["question"] == "What year?"
    assert first["extra_info"]["question_type"] == ["key information retrieval"]


def test_videomathqa_configs(world):
    world.clip("videos/abc.mp4")
    row = {
        "question_id": "7",
        "videoID": "abc",
        "question": "Angle?",
        "answer": "B",
        "category": "Chart",
        "length": "long",
    }
    world.parquet("mcq/test-00000.parquet", [{**row, "options": ["A. 1", "B. 2", "C. 3"]}])
    pairs = [{**row, "options": ["A. 1", "B. 2"]}, {**row, "options": ["A. 3", "B. 2"]}]
    world.parquet("multi_binary/test-00000.parquet", pairs)
    world.prepare("videomathqa")
    row = only(world.rows("videomathqa"))
    assert (gold(row), row["extra_info"]["duration_class"], row["extra_info"]["config"]) == ("B", "long", "mcq")
    world.prepare("videomathqa", source=world.source / "multi_binary", options={"config": "multi_binary"})
    assert [row["extra_info"]["question_id"] for row in world.rows("videomathqa")] == ["7", "7"]


def test_a_benchmark_as_video_r1_records(world, video_r1_record):
    world.clip("MVBench/a.mp4", "VSI/b.mp4")
    row = video_r1_record(5, path="./MVBench/a.mp4", data_source="MVBench")
    world.prepare("mvbench", source=world.json("eval_mvbench.json", [row]))
    row = only(world.rows("mvbench"))
    assert (row["data_source"], gold(row), row["extra_info"]["split"]) == ("mvbench", "A", "test")
    number = {"problem_type": "regression", "options": [], "solution": "<answer>2.5</answer>", "path": "./VSI/b.mp4"}
    world.prepare("vsi_bench", source=world.json("eval_vsibench.json", [video_r1_record(6, **number)]))
    assert only(world.rows("vsi_bench"))["extra_info"]["problem_type"] == "regression"


def test_a_folder_saved_by_datasets_is_read(world):
    datasets = pytest.importorskip("datasets")
    world.clip("fFjv93ACGo8.mp4")
    saved = datasets.DatasetDict({"test": datasets.Dataset.from_list([video_mme()])})
    saved.save_to_disk(str(world.source / "saved"))
    world.prepare("video_mme", source=world.source / "saved")
    assert gold(only(world.rows("video_mme"))) == "C"


def test_every_data_set_has_its_test():
    text = Path(__file__).read_text(encoding="utf-8")
    for name in PREPARERS:
        assert f'world.prepare("{name}"' in text, name


def test_the_manifest_says_what_was_read_and_what_came_of_it(world):
    world.clip("fFjv93ACGo8.mp4")
    path = world.parquet("videomme/test-00000-of-00001.parquet", [video_mme()])
    manifest = world.prepare("video_mme")
    assert json.loads((world.out / "video_mme" / MANIFEST).read_text()) == manifest
    entry = manifest["splits"]["test"]
    assert entry["sources"] == [{"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}]
    assert entry["counts"] == {"published": 1, "left out by options": 0, "faulty": 0, "quarantined": {}, "test": 1}
    written = world.out / "video_mme" / "test.parquet"
    assert entry["files"]["test.parquet"] == {
        "records": 1,
        "sha256": hashlib.sha256(written.read_bytes()).hexdigest(),
    }


def test_evaluation_reads_what_was_prepared(world):
    world.clip("fFjv93ACGo8.mp4", "812.mp4")
    world.parquet("videomme/test-00000-of-00001.parquet", [video_mme()])
    world.csv("test.csv", [nextgqa()])
    world.json("gsub_test.json", {"812": {"duration": 40, "location": {"8": [[1.0, 2.5]]}, "fps": 25.0}})
    world.prepare("video_mme")
    world.prepare("nextgqa")
    mme, gqa = read_benchmarks([world.out / "video_mme", world.out / "nextgqa"])
    assert (mme.name, mme.items[0].video, mme.items[0].options[2]) == ("video_mme", "fFjv93ACGo8", "C. Berries.")
    assert mme.items[0].messages[0]["content"][0] == {"type": "video", "video": str(world.videos / "fFjv93ACGo8.mp4")}
    assert (gqa.items[0].video, gqa.items[0].problem_type) == ("812", "grounded QA")
