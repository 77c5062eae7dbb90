"""Subtitles of a clip: SubRip files and LongVideoBench's JSON, and the lines that go with sampled frames."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_care.data.records import RecordError

Line = tuple[float, float, str]
"""Start and end in seconds, text."""

NONE_AVAILABLE = "No subtitles available"
"""What lmms-eval's ``videomme`` writes where a clip has none."""

_TIMES = re.compile(r"\s*(\d+):(\d{2}):(\d{2})[,.](\d{1,3})\s*-->\s*(\d+):(\d{2}):(\d{2})[,.](\d{1,3})")
_TAG = re.compile(r"<[^>]{0,200}>")


def read_srt(path: Path) -> list[Line]:
    """Lines of a SubRip file, without its tags (Video-MME's are wrapped in ``<font>``).

    Raises:
        RecordError: no UTF-8, or no subtitles in the file.
    """
    try:
        blocks = re.split(r"\n[ \t]*\n", path.read_text(encoding="utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: subtitles: is not valid UTF-8: {error}; write it as UTF-8") from None
    lines: list[Line] = []
    for block in blocks:
        rows = block.strip().split("\n")
        for number, row in enumerate(rows):
            times = _TIMES.match(row)
            if times:
                start, end = (_seconds(*times.groups()[first : first + 4]) for first in (0, 4))
                text = " ".join(_TAG.sub("", " ".join(rows[number + 1 :])).split())
                if text:
                    lines.append((start, end, text))
                break
    if not lines and any(block.strip() for block in blocks):
        raise RecordError(f"{path}: subtitles: no line with times in the file; write it as SubRip")
    return lines


def _seconds(hours: str, minutes: str, seconds: str, fraction: str) -> float:
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction}")


def read_longvideobench(path: Path, offset: float, duration: float) -> list[Line]:
    """Lines of one of LongVideoBench's JSON files, in the time of the clip.

    As lmms-eval's ``insert_subtitles_into_frames``: two shapes, an open end is the clip's, spans below a second become
    one second around their middle.

    Args:
        path: the file.
        offset: ``starting_timestamp_for_subtitles``, seconds.
        duration: seconds of the clip.

    Raises:
        RecordError: another shape.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [_shift(entry, offset, duration) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{path}: subtitles: expected objects with timestamp and text, or start, end and line: {error!r}; "
            "fetch the file again"
        ) from None


def _shift(entry: Mapping[str, Any], offset: float, duration: float) -> Line:
    if "timestamp" in entry:
        start, end = entry["timestamp"]
        text = entry["text"]
        start, end = float(start), float(duration + offset if end is None else end)
    else:
        start, end = _clock(entry["start"]), _clock(entry["end"])
        text = entry["line"]
    start, end = start - offset, end - offset
    if end - start < 1:
        middle = (start + end) / 2
        start, end = middle - 0.5, middle + 0.5
    return start, end, " ".join(str(text).split())


def _clock(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def pick_lines(lines: Sequence[Line], duration: float | None, num_frames: int) -> str:
    """Text of the lines that are shown at one of the sampled frames, in their order.

    Frames are spread evenly from the first to the last, as lmms-eval does for ``videomme`` and ``videomathqa``.

    Args:
        lines: the clip's subtitles.
        duration: seconds of the clip; None, and ``num_frames`` 0, take all lines.
        num_frames: sampled frames.
    """
    if num_frames and duration is not None:
        times = [duration * number / max(1, num_frames - 1) for number in range(num_frames)]
        lines = [line for line in lines if any(line[0] <= time < line[1] for time in times)]
    return "\n".join(text for _, _, text in lines) or NONE_AVAILABLE
