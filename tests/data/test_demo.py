"""The demo's folder: what is written, that it is whole, and that the warm-started policy looks at the clips."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from verl_care.data import demo, demo_clips, demo_model
from verl_care.data.records import check_file, strip_none

TINY = demo.Size(train_clips=6, val_clips=4, warm_start_scale=0.01)


def rows_of(folder: Path, name: str) -> list[dict]:
    return [
        {**row, **{key: [strip_none(item) for item in row[key] or []] for key in ("videos", "images")}}
        for row in pq.read_table(folder / f"{name}.parquet").to_pylist()
    ]


def media_of(rows: list[dict]) -> set[str]:
    return {
        item[key] for row in rows for column, key in (("videos", "video"), ("images", "image")) for item in row[column]
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.build_assets(folder=tmp_path_factory.mktemp("tiny") / "demo", size=TINY)


def test_every_problem_type_and_medium_is_asked_about(tiny: Path) -> None:
    rows = rows_of(tiny, "train")
    assert check_file(str(tiny / "train.parquet"), check_media=True) == len(rows)
    assert {row["extra_info"]["problem_type"] for row in rows} == {
        "multiple choice",
        "numerical",
        "OCR",
        "free-form",
        "regression",
    }
    assert {"video" if row["videos"] else "image" if row["images"] else "text" for row in rows} == {
        "video",
        "image",
        "text",
    }


def test_held_out_media_are_not_in_training(tiny: Path) -> None:
    train, val = rows_of(tiny, "train"), rows_of(tiny, "val")
    assert not media_of(train) & media_of(val)
    contents = [{Path(path).read_bytes() for path in media_of(rows) if path.endswith(".mp4")} for rows in (train, val)]
    assert not contents[0] & contents[1]


def test_clips_are_real_mp4_with_a_moving_shape(tiny: Path) -> None:
    for path in sorted((tiny / "clips").glob("*.mp4")):
        with av.open(str(path)) as container:
            assert "mp4" in container.format.name
            frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
        assert len(frames) == demo_clips.CLIP_FRAMES
        assert frames[0].shape == (demo_clips.FRAME_SIZE, demo_clips.FRAME_SIZE, 3)
        assert np.abs(frames[0] - frames[-1]).max() > 60


def test_swapped_records_ask_the_same_about_another_clip(tiny: Path) -> None:
    rows = rows_of(tiny, "val")
    own = {row["extra_info"]["index"]: row for row in rows if row["data_source"] == demo.DATA_SOURCE}
    swapped = [row for row in rows if row["data_source"] == demo.SWAPPED_SOURCE]
    assert swapped
    for row in swapped:
        original = own[row["extra_info"]["index"]]
        assert row["prompt"] == original["prompt"]
        assert row["reward_model"] == original["reward_model"]
        assert row["videos"][0]["video"] != original["videos"][0]["video"]


def test_same_seed_gives_the_same_clips_and_questions(tiny: Path, tmp_path: Path) -> None:
    again = demo.build_assets(folder=tmp_path / "demo", size=TINY)
    other = demo.build_assets(folder=tmp_path / "other", size=TINY, seed=1)

    def made(folder: Path) -> tuple[list, list]:
        clips = [(path.name, path.read_bytes()) for path in sorted((folder / "clips").iterdir())]
        rows = rows_of(folder, "train") + rows_of(folder, "val")
        return clips, [(row["prompt"], row["reward_model"], row["extra_info"]) for row in rows]

    assert made(tiny) == made(again)
    assert made(tiny) != made(other)


def test_prompts_of_all_records_differ_in_length(tiny: Path) -> None:
    prompts = demo_model.encode_records(rows_of(tiny, "train"), demo_model.build_processor())
    assert len({len(prompt.input_ids) for prompt in prompts}) > 8


def test_prompt_tokens_are_those_of_the_processor(tiny: Path) -> None:
    from qwen_vl_utils import process_vision_info

    processor = demo_model.build_processor()
    for row in rows_of(tiny, "train")[:12]:
        (prompt,) = demo_model.encode_records([row], processor)
        messages = demo_model.messages_of(row)
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        media = {}
        if prompt.pixels is not None:
            images, videos = process_vision_info(messages, image_patch_size=14, return_video_metadata=True)
            media = {"images": images}
            if videos:
                frames, metadata = zip(*videos, strict=True)
                media = {"videos": list(frames), "video_metadata": list(metadata), "do_sample_frames": False}
        out = processor(text=[text], return_tensors="pt", **media)
        assert out["input_ids"][0].tolist() == prompt.input_ids.tolist()
        if prompt.pixels is not None:
            pixels = out["pixel_values_videos" if prompt.is_video else "pixel_values"]
            assert pixels.equal(prompt.pixels)


def test_a_response_survives_the_tokenizer() -> None:
    tokenizer = demo_model.build_processor().tokenizer
    ids = demo_model.response_ids(tokenizer, "<think>hmm wait</think><answer>A</answer>")
    assert tokenizer.unk_token_id not in ids.tolist()
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert decoded == "<think> hmm wait </think> <answer> A </answer>"


def test_no_word_of_the_demo_is_unknown(tiny: Path) -> None:
    tokenizer = demo_model.build_processor().tokenizer
    for row in rows_of(tiny, "train"):
        text = row["prompt"][0]["content"].replace("<video>", "").replace("<image>", "")
        assert tokenizer.unk_token_id not in tokenizer(text + row["reward_model"]["ground_truth"])["input_ids"], text


def test_a_standing_build_is_kept_and_another_one_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    demo.build_assets(folder=folder, size=TINY)
    marks = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    demo.build_assets(folder=folder, size=TINY)
    assert marks == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    before = (folder / "clips" / "train0.mp4").read_bytes()
    demo.build_assets(folder=folder, size=TINY, seed=3)
    assert (folder / "clips" / "train0.mp4").read_bytes() != before


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(demo.DemoError, match="VERL_CARE_DEMO_DIR"):
        demo.build_assets(folder=tmp_path, size=TINY)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_broken_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo_model, "warm_start", fail)
        with pytest.raises(KeyboardInterrupt):
            demo.build_assets(folder=tmp_path / "demo", size=TINY)
    assert list(tmp_path.iterdir()) == []


def test_own_videos_become_questions_without_labels(tmp_path: Path) -> None:
    from PIL import Image

    videos = tmp_path / "videos"
    videos.mkdir()
    for name, colours in {"a": ["red"], "b": ["blue", "green"], "c": ["green"], "d": ["blue"]}.items():
        shown = [colours[i * len(colours) // 16] for i in range(16)]
        frames = [Image.new("RGB", (96, 64), demo_clips.RGB[colour]) for colour in shown]
        demo_clips.write_mp4(videos / f"{name}.mp4", frames, fps=8)
    folder = demo.build_assets(folder=tmp_path / "demo", video_dir=videos, size=TINY)
    rows = rows_of(folder, "train") + rows_of(folder, "val")
    found = {(row["extra_info"]["kind"], row["reward_model"]["ground_truth"]) for row in rows}
    letters = dict(zip(demo_clips.COLOURS, demo_clips.LETTERS, strict=True))
    assert {
        ("clip_colour", letters["red"]),
        ("clip_colour", letters["blue"]),
        ("clip_colour", letters["green"]),
    } <= found
    assert {("clip_cuts", "0"), ("clip_cuts", "1")} <= found


def test_a_broken_video_of_ones_own_is_named(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(demo.DemoError, match="broken.mp4"):
        demo.build_assets(folder=tmp_path / "demo", video_dir=videos, size=TINY)


def test_warm_start_answers_by_the_clip_and_leaves_room(demo_assets: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(demo_assets / "model")
    model = AutoModelForImageTextToText.from_pretrained(demo_assets / "model").eval()
    tokenizer = processor.tokenizer
    assert 200_000 < sum(parameter.numel() for parameter in model.parameters()) < 900_000
    assert model.config.text_config.vocab_size == len(tokenizer)
    rows = rows_of(demo_assets, "val")
    own = [row for row in rows if row["data_source"] == demo.DATA_SOURCE]
    right = demo_model.correct_probability(model, tokenizer, demo_model.encode_records(own, processor))
    assert 0.35 < right.mean() < 0.75
    # The same questions about clips with another answer: what was right is now less likely than a blind guess.
    swapped = [
        row for row in rows if row["data_source"] == demo.SWAPPED_SOURCE and not row["extra_info"]["same_answer"]
    ]
    prompts = demo_model.encode_records(swapped, processor)
    blind = np.mean([1 / len(demo_clips.answers_of(prompt.kind)) for prompt in prompts])
    seen = {row["extra_info"]["index"]: float(p) for row, p in zip(own, right, strict=True)}
    unswapped = np.mean([seen[row["extra_info"]["index"]] for row in swapped])
    assert demo_model.correct_probability(model, tokenizer, prompts).mean() < blind < unswapped - 0.05
