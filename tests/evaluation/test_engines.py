"""Engines against transformers' own generation, on the model of this folder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from verl_care.evaluation.engines import EngineConfig, build_engine
from verl_care.evaluation.interface import Completion, Question, Request
from verl_care.evaluation.items import build_item
from verl_care.evaluation.sparse_to_dense import SparseToDense
from verl_care.testing import clips, tiny_models
from verl_care.workers.cpu import generation

plain_generate = generation.generate

GREEDY = {"temperature": 0.0, "max_tokens": 40}


@pytest.fixture(scope="module", params=["hf", pytest.param("vllm", marks=pytest.mark.vllm)])
def engine(request, taught):
    built = build_engine(EngineConfig(model=str(taught.model), name=request.param, max_model_len=512, num_workers=2))
    yield built
    built.close()


@pytest.fixture(scope="module")
def questions(taught, make_row):
    rows = [
        make_row(d, n, clip) for n, (d, clip) in enumerate(zip(("easy", "medium", "hard"), taught.clips, strict=False))
    ]
    return [Question(key=item.key, prompt=item.messages, options=item.options, ground_truth="A")
            for item in map(build_item, rows)]  # fmt: skip


@torch.no_grad()
def plain_greedy(folder, messages, num_frames=None) -> str:
    """What ``model.generate`` says, by the processor's own chat interface."""
    from qwen_vl_utils import process_vision_info
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from verl_care.data.video import register_pyav_reader

    register_pyav_reader()
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    if num_frames is not None:
        messages = [{**turn, "content": [{**part, "nframes": num_frames} if part["type"] == "video" else part
                                         for part in turn["content"]]} for turn in messages]  # fmt: skip
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    _, videos = process_vision_info(messages, image_patch_size=14, return_video_metadata=True)
    frames, metadata = zip(*videos, strict=True)
    inputs = processor(
        text=[text], videos=list(frames), video_metadata=list(metadata), do_sample_frames=False, return_tensors="pt"
    )
    inputs.pop("video_metadata", None)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=40)
    return processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_greedy_answers_are_those_of_transformers(engine, taught, questions):
    requests = [Request(question=question, sampling=GREEDY) for question in questions]
    requests.append(Request(question=questions[0], num_frames=8, sampling=GREEDY))
    answers = engine(requests)
    expected = [plain_greedy(taught.model, question.prompt) for question in questions]
    expected.append(plain_greedy(taught.model, questions[0].prompt, num_frames=8))
    assert [answer.text.split() for answer in answers] == [text.split() for text in expected]
    for answer in answers:
        assert answer.finish_reason == "stop" and answer.num_tokens > 4
    # Four frames are two pairs, eight are four; 2 x 2 tokens each.
    assert answers[3].num_prompt_tokens - answers[0].num_prompt_tokens == 8


def test_a_seed_gives_the_same_answer_in_any_company(engine, questions):
    drawn = [
        Request(question=questions[1], sampling={"temperature": 1.0, "max_tokens": 40, "seed": n}) for n in range(6)
    ]
    together = [answer.text for answer in engine(drawn)]
    alone = [engine([request])[0].text for request in drawn]
    assert together == alone and len(set(together)) > 1


def test_an_answer_ends_at_a_stop_string_and_at_its_longest_length(engine, questions):
    whole, stopped, cut = engine(
        [
            Request(question=questions[0], sampling={**GREEDY, **more})
            for more in ({}, {"stop": ["</answer>"]}, {"max_tokens": 2})
        ]
    )
    assert whole.text.rstrip().endswith("</answer>")
    assert stopped.text.rstrip() == whole.text.rpartition("</answer>")[0].rstrip() and stopped.finish_reason == "stop"
    assert stopped.num_tokens < whole.num_tokens
    assert (cut.finish_reason, cut.num_tokens) == ("length", 2)


def test_what_fails_fails_alone(engine, questions, tmp_path):
    gone = [{"role": "user", "content": [{"type": "video", "video": str(tmp_path / "gone.mp4"), "nframes": 4},
                                         {"type": "text", "text": "What is it?"}]}]  # fmt: skip
    long = [{"role": "user", "content": [{"type": "text", "text": "clip " * 600}]}]
    asked = [questions[0], Question(key="gone", prompt=gone), Question(key="long", prompt=long), questions[2]]
    answers = engine([Request(question=question, sampling=GREEDY) for question in asked])
    assert isinstance(answers[0], Completion) and isinstance(answers[3], Completion)
    assert isinstance(answers[1], Exception) and "gone.mp4" in str(answers[1])
    assert isinstance(answers[2], Exception) and "512" in str(answers[2])


def test_questions_without_media_mix_with_the_others(engine, questions):
    text = [{"role": "user", "content": questions[0].prompt[0]["content"][1:]}]
    blind, seeing = engine(
        [
            Request(question=Question(key="b", prompt=text), sampling=GREEDY),
            Request(question=questions[0], sampling=GREEDY),
        ]
    )
    assert "A" in blind.text.split() and "A" in seeing.text.split()
    assert blind.num_prompt_tokens < seeing.num_prompt_tokens


def test_sparse_to_dense_drives_it(engine, questions):
    strategy = SparseToDense(frames=(2, 4), samples=3, max_tokens=40)
    outcome = strategy.run([replace(question, available_frames=8) for question in questions], engine)
    easy, _, hard = outcome.results
    assert (easy.answer, easy.acc_strict, hard.answer, hard.acc_strict) == ("A", 1.0, "B", 0.0)
    assert easy.decided and easy.num_frames == 2


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    """A model whose positions count seconds, and a question about 16 frames of 40 seconds."""
    folder = tmp_path_factory.mktemp("positions")
    model = tiny_models.save(folder / "model", "qwen2_5_vl")
    path = clips.write_clip(folder / "clip.mp4", seconds=40, seed=0)
    size = {"min_pixels": 56 * 56, "max_pixels": 56 * 56}
    asked = [
        {"type": "video", "video": str(path), "nframes": 16, **size},
        {"type": "text", "text": "What colour is it?"},
    ]
    return model, Question(key="long", prompt=[{"role": "user", "content": asked}])


def ask_long(name, long_clip, **options):
    model, question = long_clip
    engine = build_engine(EngineConfig(model=str(model), name=name, max_model_len=512, num_workers=1, **options))
    try:
        return engine([Request(question=question, sampling={"temperature": 0.0, "max_tokens": 12})])[0].text
    finally:
        engine.close()


@pytest.mark.parametrize(("word", "after_video"), [("seconds", 71), ("stock", 2)])
def test_videos_stand_where_training_has_them(word, after_video, long_clip, monkeypatch):
    rows = []
    monkeypatch.setattr(
        generation,
        "generate",
        lambda model, requests, **options: rows.extend(requests) or plain_generate(model, requests, **options),
    )
    ask_long("hf", long_clip, positions=word)
    (row,) = rows
    times = row.position_ids[0].tolist()
    tokenizer = tiny_models.build_processor("qwen2_5_vl").tokenizer
    places = [i for i, token in enumerate(row.prompt_ids) if token == tokenizer.convert_tokens_to_ids("<|video_pad|>")]
    assert len(places) == 8 * 2
    # Eight pairs, five seconds apart, two positions a second.
    first = times[places[0]]
    assert [times[place] - first for place in places[::2]] == [10 * pair for pair in range(8)]
    # Text goes on after the largest position; transformers 5.9 counts height and width alone.
    assert times[places[-1] + 1] - first == after_video


@pytest.mark.vllm
def test_engines_place_videos_alike(long_clip):
    there, here = (ask_long(name, long_clip).split() for name in ("vllm", "hf"))
    assert there == here != ask_long("hf", long_clip, positions="stock").split()


def test_an_unknown_engine_and_an_unknown_parameter_are_named(taught, questions):
    with pytest.raises(ValueError, match="engine: expected hf or vllm; got 'sglang'"):
        build_engine(EngineConfig(model=str(taught.model), name="sglang"))
    with pytest.raises(ValueError, match="positions: expected seconds or stock; got 'second'"):
        build_engine(EngineConfig(model=str(taught.model), positions="second"))
    engine = build_engine(EngineConfig(model=str(taught.model), max_model_len=512))
    with pytest.raises(ValueError, match=r"does not know the sampling parameters \['beams'\]"):
        engine([Request(question=questions[0], sampling={"beams": 3})])
    engine.close()
