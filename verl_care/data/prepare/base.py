"""What the modules of the data sets share: a published record's fields, checked, and what they turn it into."""

from __future__ import annotations

import difflib
import math
import numbers
import posixpath
import string
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_care.data.records import DataError, RecordError
from verl_care.rewards.multiple_choice import split_option
from verl_care.rewards.spans import Span

LETTERS = string.ascii_uppercase

VIDEO_SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")
"""Where a data set names its clips without one; tried in this order."""

_NONE = object()


class Fields:
    """The fields of one published record; each is checked as it is read.

    Args:
        record: the record.
        where: its file and place, for messages.
        known: names of all fields that the data set is known to have; another one is an error. None: not looked at.

    Raises:
        RecordError: no object, or a field that is not known.
    """

    def __init__(self, record: Any, where: str, known: Collection[str] | None = None) -> None:
        if not isinstance(record, Mapping):
            raise RecordError.at(where, "record", f"expected an object; got {_short(record)}", "mend the file")
        self.record, self.where = record, where
        if known is None:
            return
        for name in record:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, 1)
                hint = f"write {close[0]}" if close else f"drop it, or let it pass with --ignore-column {name}"
                raise self.error(str(name), "unknown column", hint)

    def error(self, name: str, problem: str, remedy: str) -> RecordError:
        """The error of one field."""
        return RecordError.at(self.where, name, problem, remedy)

    def has(self, name: str) -> bool:
        """Whether the field is there and not None."""
        return self.record.get(name) is not None

    def value(self, name: str, default: Any = _NONE) -> Any:
        """The field as it is; None counts as not given."""
        found = self.record.get(name)
        if found is not None:
            return found
        if default is _NONE:
            raise self.error(name, "missing", "mend the record")
        return default

    def text(self, name: str, default: Any = _NONE) -> str:
        """A text that is not empty, stripped."""
        found = self.value(name, default)
        if found is default:
            return found
        if not isinstance(found, str) or not found.strip():
            raise self.error(name, f"expected text; got {_short(found)}", "mend the record")
        return found.strip()

    def name(self, name: str, default: Any = _NONE) -> str:
        """A text or a whole number, as text: ids are published as either."""
        found = self.value(name, default)
        if isinstance(found, numbers.Integral) and not isinstance(found, bool):
            return str(found)
        return self.text(name, default)

    def number(self, name: str, default: Any = _NONE) -> float:
        """A finite number; a text that is one counts too, as in CSV."""
        found = self.value(name, default)
        return found if found is default else self._number(name, found)

    def _number(self, name: str, found: Any) -> float:
        try:
            number = math.nan if isinstance(found, bool) else float(found)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self.error(name, f"expected a finite number; got {_short(found)}", "mend the record")
        return number

    def integer(self, name: str, default: Any = _NONE) -> int:
        """A whole number; a text that is one counts too."""
        found = self.value(name, default)
        if found is default:
            return found
        number = self._number(name, found)
        if number != int(number):
            raise self.error(name, f"expected a whole number; got {_short(found)}", "mend the record")
        return int(number)

    def texts(self, name: str, default: Any = _NONE) -> list[str]:
        """A list of texts."""
        found = self.value(name, default)
        if found is default:
            return found
        if not isinstance(found, list | tuple) or not all(isinstance(entry, str) for entry in found):
            raise self.error(name, f"expected a list of texts; got {_short(found)}", "mend the record")
        return [entry.strip() for entry in found]

    def mapping(self, name: str, default: Any = _NONE) -> Mapping[str, Any]:
        """An object."""
        found = self.value(name, default)
        if not isinstance(found, Mapping):
            raise self.error(name, f"expected an object; got {_short(found)}", "mend the record")
        return found

    def span(self, name: str, default: Any = _NONE) -> Span:
        """A pair of times, start before end."""
        found = self.value(name, default)
        return found if found is default else self._span(name, found)

    def spans(self, name: str, default: Any = _NONE) -> list[Span]:
        """A list of pairs of times."""
        found = self.value(name, default)
        if found is default:
            return found
        if not isinstance(found, list | tuple):
            raise self.error(name, f"expected a list of spans; got {_short(found)}", "mend the record")
        return [self._span(f"{name}[{number}]", entry) for number, entry in enumerate(found)]

    def _span(self, name: str, found: Any) -> Span:
        if not isinstance(found, list | tuple) or len(found) != 2:
            raise self.error(name, f"expected a span [start, end]; got {_short(found)}", "mend the record")
        start, end = (self._number(name, time) for time in found)
        if not 0 <= start < end:
            raise self.error(name, f"expected 0 <= start < end; got {_short(found)}", "mend or drop the record")
        return start, end

    def lettered(self, name: str) -> list[str]:
        """Options as published with their letters, ``A. …`` or ``A) …``."""
        options = self.texts(name)
        for number, option in enumerate(options):
            label = split_option(option)
            if label is None or label[0] != LETTERS[number]:
                raise self.error(
                    f"{name}[{number}]", f"expected {LETTERS[number]}. …; got {_short(option)}", "give it its letter"
                )
        return options

    def add_letters(self, name: str, texts: Sequence[str]) -> list[str]:
        """Letters in front of options that are published without; ``name`` is the field they came from."""
        if not 2 <= len(texts) <= len(LETTERS):
            raise self.error(name, f"expected 2 to 26 options; got {len(texts)}", "mend the record")
        for number, text in enumerate(texts):
            if not str(text).strip():
                raise self.error(f"{name}[{number}]", "the option is empty", "mend the record")
        return [f"{letter}. {str(text).strip()}" for letter, text in zip(LETTERS, texts, strict=False)]

    def letter(self, name: str, options: Sequence[str]) -> str:
        """A letter, checked against the options."""
        letter = self.text(name).rstrip(".").strip()
        if letter not in [option[0] for option in options]:
            raise self.error(
                name, f"{letter!r} is not among the options {', '.join(o[0] for o in options)}", "mend the record"
            )
        return letter

    def letter_of(self, name: str, texts: Sequence[str]) -> str:
        """The letter of the option whose text the field is; the first of several equal ones."""
        answer = self.text(name)
        for letter, text in zip(LETTERS, texts, strict=False):
            if str(text).strip() == answer:
                return letter
        raise self.error(name, f"{_short(answer)} is not among the options", "mend the record")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True, kw_only=True)
class Item:
    """What a published record says, before its clip was looked at."""

    id: str
    question: str
    problem_type: str
    answer: str = ""
    """Letter, number or text; empty where ``spans`` alone are the answer."""
    options: Sequence[str] = ()
    spans: Sequence[Span] = ()
    """Gold spans of grounding and grounded QA."""
    spans_normalised: bool = False
    """Whether ``spans`` are shares of the clip; they become seconds."""
    video: str | Sequence[str] | None = None
    """Path below the videos' folder, or several of which the first that is there counts; a suffix may be left out."""
    image: str | None = None
    video_id: str | None = None
    """The clip's published name; None takes the path without its suffix."""
    start: float | None = None
    """Seconds into the file where the clip begins, if it is a part of it."""
    end: float | None = None
    parts: Sequence[Span] = ()
    """Seconds of the file to look at, where it is more than one part; each becomes a video of the prompt."""
    source: str | None = None
    process: str | None = None
    """Chain of thought of the supervised set, with its tags."""
    preamble: str = ""
    """Instruction that stands in front of the question."""
    form: str | None = None
    """Instruction on the answer's form; None takes that of the prompt's style."""
    subtitles: Sequence[tuple[float, float, str]] | None = None
    """Lines of which those at the sampled frames go in front of the question; None without."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """More keys of ``extra_info``."""

    @property
    def ranges(self) -> Sequence[tuple[float | None, float | None]]:
        """Seconds of the file to look at; (None, None) for all of it."""
        return self.parts or [(self.start, self.end)]


Convert = Callable[[Fields, Mapping[str, Any]], Item | None]
"""A record's fields and the preparer's options -> item, or None for a record that the options leave out."""


@dataclass(frozen=True, kw_only=True)
class Preparer:
    """How one data set is read."""

    name: str
    title: str
    """What it is, in a few words, for the table."""
    kind: str
    """``train``, ``evaluation`` or ``supervised``."""
    files: tuple[str, ...]
    """Patterns of its file below ``--source``."""
    convert: Convert
    columns: frozenset[str] | None = None
    """Fields that records are known to have."""
    prompt: str = "video_r1"
    split: str = "test"
    """Which split its records are, where the options do not say so."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of ``--set`` with their defaults; a tuple lists the choices, the first of which is the default."""
    read: Callable[[Path, Mapping[str, Any]], Iterator[tuple[str, Any]]] | None = None
    """Reads a file whose records do not lie in a row; None takes ``readers.read_file``."""
    media: Mapping[str, Any] = field(default_factory=dict)
    """Sampling keys written into each video dict."""

    def read_options(self, given: Mapping[str, str]) -> dict[str, Any]:
        """``--set`` on top of the defaults.

        Raises:
            DataError: an option that the data set does not have, or a value that it does not take.
        """
        chosen = {key: value[0] if isinstance(value, tuple) else value for key, value in self.options.items()}
        for key, value in given.items():
            if key not in self.options:
                known = ", ".join(self.options) or "none"
                raise DataError(f"--set {key}: {self.name} has no such option; it has {known}")
            default = self.options[key]
            if isinstance(default, tuple):
                if value not in default:
                    raise DataError(f"--set {key}: expected {' or '.join(default)}; got {value!r}")
                chosen[key] = value
            elif isinstance(default, int):
                if not value.isdigit():
                    raise DataError(f"--set {key}: expected a number >= 0; got {value!r}")
                chosen[key] = int(value)
            else:
                chosen[key] = value
        return chosen


def find_media(root: Path, name: str, where: str, column: str) -> Path:
    """The path of a record's medium below the videos' folder; whether the file is there is not looked at.

    Args:
        root: the folder.
        name: path as published; without a suffix the one that is there, else ``.mp4``.
        where: file and record, for messages.
        column: field, for messages.

    Raises:
        RecordError: a path that leaves the folder.
    """
    path = posixpath.normpath(name.replace("\\", "/"))
    if posixpath.isabs(path) or path.startswith("..") or path == "." or "\0" in path or ":" in path.split("/")[0]:
        raise RecordError.at(where, column, f"{_short(name)} leaves the video folder", "write a path below it")
    if posixpath.splitext(path)[1].lower() in {suffix.lower() for suffix in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)}:
        return root / path
    candidates = [root / f"{path}{suffix}" for suffix in VIDEO_SUFFIXES]
    if (root / path).exists():
        return root / path
    return next((candidate for candidate in candidates if candidate.exists()), candidates[0])


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
"""Pictures, and frames of a clip that is published as a folder of them."""
