"""NExT-GQA (doc-doc/NExT-GQA, ``datasets/nextgqa``): questions in ``test.csv``, ``val.csv`` and ``train.csv``, spans in
``gsub_test.json`` and ``gsub_val.json`` (seconds; several a question), files of the clips by
``map_vid_vidorID.json`` (NExT-QA's ``NExTVideo`` folder: ``1027/8129290253.mp4``). The train split has no spans.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_care.data.prepare.base import Fields, Item, Preparer
from verl_care.data.prepare.readers import check_text, read_file
from verl_care.data.records import DataError
from verl_care.rewards.scorer import GROUNDED_QA

COLUMNS = frozenset(
    ("video_id", "video", "frame_count", "width", "height", "question", "answer", "qid", "type")
    + ("a0", "a1", "a2", "a3", "a4", "additional_ref_answer", "grounding", "file")
)

MAX_EARLY = 0.5
"""Seconds by which a published span may start before its clip; it starts with it then."""


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError as error:
        raise DataError(f"{path}: cannot read the file: {error}; it lies beside the questions") from None
    except ValueError as error:
        raise DataError(f"{path}: is not JSON: {error}") from None
    check_text(content, str(path))
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: expected an object by video; got a list")
    return content


def read(path: Path, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Questions with the spans and the file of their clips."""
    split = options["split"]
    spans = {} if split == "train" else _json(path.with_name(f"gsub_{split}.json"))
    mapped = path.with_name("map_vid_vidorID.json")
    files = _json(mapped) if mapped.exists() else {}
    for where, row in read_file(path):
        video = str(row.get("video_id") or row.get("video"))
        yield where, {**row, "grounding": spans.get(video), "file": files.get(video)}


def _clip(span: Any) -> Any:
    """The span, starting with its clip: 36 of the test split are published with a start of -0.1 or -0.2 s."""
    if isinstance(span, list) and len(span) == 2 and isinstance(span[0], int | float) and -MAX_EARLY <= span[0] < 0:
        return [0.0, span[1]]
    return span


def convert(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A question, with spans where the split has them."""
    video = fields.name("video_id", None) or fields.name("video")
    texts = [fields.name(f"a{number}") for number in range(5)]
    answer = fields.name("answer")
    # NExT-QA's own files give the number of the option, NExT-GQA's its text.
    number = int(answer) if answer.isdigit() and int(answer) < 5 and answer not in texts else None
    qid = fields.name("qid")
    info: dict[str, Any] = {"type": fields.text("type"), "qid": qid}
    spans = []
    if options["split"] != "train":
        grounding = Fields(fields.mapping("grounding"), fields.where)
        located = grounding.mapping("location").get(qid)
        if not located:
            raise fields.error("grounding", f"no span for question {qid}", "mend gsub")
        name = f"grounding.location.{qid}"
        spans = Fields({name: [_clip(span) for span in located]}, fields.where).spans(name)
        info["duration"] = grounding.number("duration")
    listed = fields.add_letters("a0", texts)
    file = fields.text("file", None)
    return Item(
        id=f"{video}_{qid}",
        question=fields.text("question"),
        problem_type=GROUNDED_QA if spans else "multiple choice",
        answer=fields.letter_of("answer", texts) if number is None else listed[number][0],
        options=listed,
        spans=spans,
        video=(file, video) if file else video,
        video_id=video,
        info=info,
    )


NEXTGQA = Preparer(
    name="nextgqa",
    title="NExT-GQA: an option and the spans that show it; 5,553 test questions",
    kind="evaluation",
    files=("{split}.csv", "datasets/nextgqa/{split}.csv", "**/nextgqa/{split}.csv", "**/{split}.csv"),
    convert=convert,
    columns=COLUMNS,
    read=read,
    prompt="temporal_rlt",
    options={"split": ("all", "test", "val", "train")},
)
