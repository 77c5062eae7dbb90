"""Video-Holmes (Hugging Face ``TencentARC/Video-Holmes``): ``test_Video-Holmes.json`` and ``train_Video-Holmes.json``,
videos as ``videos_cropped/<id>.mp4``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_care.data.prepare.base import Fields, Item, Preparer

QUESTION_TYPES = ("SR", "IMC", "TCI", "TA", "MHR", "PAR", "CTI")

COLUMNS = frozenset(("video ID", "Question ID", "Question Type", "Question", "Options", "Answer", "Explanation"))


def convert(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A question with up to six options."""
    kind = fields.text("Question Type")
    if kind not in QUESTION_TYPES:
        raise fields.error("Question Type", f"got {kind!r}", f"set one of {', '.join(QUESTION_TYPES)}")
    choices = {letter: text for letter, text in fields.mapping("Options").items() if text is not None}
    listed = fields.add_letters("Options", [choices[letter] for letter in sorted(choices)])
    if [option[0] for option in listed] != sorted(choices):
        raise fields.error("Options", f"got the letters {', '.join(sorted(choices))}", "write A, B, C, …")
    video = fields.name("video ID")
    return Item(
        id=f"{video}_{fields.name('Question ID')}",
        question=fields.text("Question"),
        problem_type="multiple choice",
        answer=fields.letter("Answer", listed),
        options=listed,
        video=(video, f"videos_cropped/{video}"),
        video_id=video,
        info={"question_type": kind},
    )


VIDEO_HOLMES = Preparer(
    name="video_holmes",
    title="Video-Holmes: suspense films, seven types; 1,837 questions",
    kind="evaluation",
    files=("{split}_Video-Holmes.json", "**/{split}_Video-Holmes.json"),
    convert=convert,
    columns=COLUMNS,
    options={"split": ("all", "test", "train")},
)
