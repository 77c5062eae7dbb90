"""Responses that a policy may well produce and a parser must survive: made by grammar and seed, without end. Pure.

For tests of a reward function: it should neither raise nor hang on any of them, and give the same result twice. Among
them are nested, repeated and unclosed tags, 100 KB without a closing tag, ``<answer>`` ten thousand times, numbers
beyond floats, LaTeX that expands, JSON thousands of levels deep, lone surrogates, NUL, and right-to-left scripts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

CORPUS = (
    "",
    " ",
    "\0",
    "\ud800",
    "<think></think><answer></answer>",
    "<think>so</think>\n<answer>A</answer>",
    "<answer>" * 10_000,
    "<answer>" * 10_000 + "A</answer>",
    "<think>" * 10_000 + "</think>" * 10_000 + "<answer>A</answer>",
    "<think>" + "</think> " * 10_000 + "<answer>A</answer>",
    "<think>" + "x" * 100_000,
    "<answer>" + "x" * 100_000,
    "<answer>" + " " * 100_000 + "</answer>",
    "<answer>" + "9" * 100_000 + "</answer>",
    "<answer>" + "y" * 16_000 + "</answer>",
    "<answer>" + "a " * 8_000 + "</answer>",
    "<answer>1e999999</answer>",
    "<answer>-1e-999999</answer>",
    "<answer>9^{9^{9^{9}}}</answer>",
    "<answer>$9^{99}$</answer>",
    "<answer>\\frac{" * 2_000 + "1" + "}{2}" * 2_000 + "</answer>",
    "<answer>\\sqrt{\\sqrt{\\sqrt{2}}}</answer>",
    "<answer>" + "[" * 5_000 + "]" * 5_000 + "</answer>",
    '<answer>{"start_time": ' + "9" * 5_000 + ', "end_time": 1}</answer>',
    '<answer>{"start_time": NaN, "end_time": Infinity}</answer>',
    "<answer>" + "3 to 5, " * 2_000 + "</answer>",
    "<answer>" + "1 to " * 3_000 + "</answer>",
    "<answer>" + "```" * 5_000 + "</answer>",
    "<answer>" + "[1" * 8_000 + "</answer>",
    "<answer>" + "1:" * 8_000 + "</answer>",
    "<answer>" + "A. " * 5_000 + "</answer>",
    "<answer>" + "(A)" * 5_000 + "</answer>",
    "<answer>\u202eA\u202c</answer>",
    "<answer>الجواب هو أ</answer>",
    "<answer>\u0661\u0662\u0663</answer>",
    "<answer>Ａ</answer>",
    "<ANSWER>A</ANSWER>",
    "< answer >A</ answer >",
    "<answer><answer>A</answer></answer>",
    "<answer>A</answer><answer>B</answer>",
    "<answer>\x1b[31mA\x1b[0m</answer>",
    "<answer><script>alert(1)</script></answer>",
    "<answer>__import__('os').system('true')</answer>",
)
"""Responses that once were, or easily could be, the undoing of a parser; every run of the tests has them."""

GOLD = {
    "multiple choice": "B",
    "numerical": "42",
    "OCR": "the red cup",
    "free-form": "a red cup stands on the table",
    "regression": "3.5",
    "temporal grounding": "[[3.2, 7.0]]",
    "grounded QA": '{"answer": "B", "spans": [[3.2, 7.0]]}',
}
"""A right answer of each problem type, to score them against."""

_TAGS = (
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<answer",
    "answer>",
    "</",
    "<think>\n",
    "</think>\n",
    "```json",
)
_SPACE = (" ", "\n", "\t", "\r\n", "\u00a0", "\u2028", "\u3000", "\x0b", "\x1f")
_STRANGE = (
    "\0",
    "\ud83d",
    "\udc00",
    "\u202e",
    "\u200f",
    "\u200b",
    "\ufeff",
    "e\u0301" * 3,
    "\U0001f600",
    "\u0130",
    "ß",
    "ﬁ",
    "ا",
    "中",
    "\x7f",
    "\x1b[2J",
    "%s",
    "{0}",
    "\\",
    "\\\\",
    "'",
    '"',
    "`",
    "<",
    ">",
    "&amp;",
)
_LETTERS = ("A", "B", "(C)", "[D]", "E.", "a", "b)", "**B**", "Answer: A", "A or B", "the answer is", "option", "A cup")
_NUMBERS = (
    "0",
    "-0",
    "42",
    "3.14",
    "1,234.5",
    "1e308",
    "1e309",
    "1e999999",
    "-1e-400",
    "nan",
    "inf",
    "-Infinity",
    "0x1F",
    "1_000",
    "٣",
    "½",
    "−5",
    "1.2.3",
    "3/4",
    "1/0",
    "0/0",
    "50%",
    "$5",
    "1e",
    "e5",
    "99999999999999999999999999999999",
)
_LATEX = (
    "$x$",
    "\\frac{1}{2}",
    "\\frac{1}{0}",
    "\\sqrt{-1}",
    "\\pi",
    "10^{5}",
    "9^{99}",
    "9^{9^9}",
    "\\times",
    "\\boxed{3}",
    "\\def\\a{\\a\\a}",
    "\\left(",
    "\\int",
    "\\text{A}",
    "^",
    "_{",
    "}",
)
_TIMES = (
    "3 to 5",
    "3.5 - 7.25 s",
    "00:03 to 00:07",
    "1:00:05 - 1:00:09",
    "0:75 to 0:80",
    "5 to 3",
    "from 3 until",
    "between 3 and 5",
    "[3, 7]",
    "[[0, 2], [3, 7]]",
    '{"start_time": "3.2", "end_time": "7"}',
    '{"answer": "B", "spans": [[1, 2]]}',
    '{"spans": []}',
    "[3,",
    "{",
    "}",
    "1e9 to 1e10",
)
_WORDS = ("cup", "pen", "is", "so", "wait", "yyyyyyyyyyyy", "Hmm", "the", "and", ",", ";", ".", ":", "-", "–")
_GROUPS = (_TAGS, _SPACE, _STRANGE, _LETTERS, _NUMBERS, _LATEX, _TIMES, _WORDS)
_FRAMES = (
    "<think>{}</think>\n<answer>{}</answer>",
    "<think>{}</think><answer>{}",
    "{}<answer>{}</answer>",
    "<answer>{}</answer>{}",
    "{}{}",
)
_LONG_SHARE = 0.002
_LONG_CHARS = 100_000


def hostile_responses(count: int, seed: int = 0) -> Iterator[str]:
    """``CORPUS``, then texts put together from its parts, the same for the same seed.

    Args:
        count: how many, the corpus included.
        seed: of the draws.

    Yields:
        Texts of mostly under 300 characters, one in 500 of about 100,000. They may hold NUL and lone surrogates.
    """
    yield from CORPUS[:count]
    rng = random.Random(seed)
    for _ in range(count - len(CORPUS)):
        yield _draw(rng)


def _draw(rng: random.Random) -> str:
    if rng.random() < _LONG_SHARE:
        part = _pieces(rng, rng.randint(1, 4)) or " "
        long = part * (_LONG_CHARS // len(part))
        return rng.choice(
            (long, f"<answer>{long}", f"<answer>{long}</answer>", f"<think>{long}</think><answer>A</answer>")
        )
    kind = rng.random()
    if kind < 0.1:
        text = rng.choice(CORPUS[:6])
    elif kind < 0.6:
        text = rng.choice(_FRAMES).format(_pieces(rng, rng.randint(0, 4)), _pieces(rng, rng.randint(0, 6)))
    else:
        text = _pieces(rng, rng.randint(0, 12))
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        text = _mutate(rng, text)
    return text


def _pieces(rng: random.Random, count: int) -> str:
    group = rng.choice(_GROUPS)
    mixed = rng.random() < 0.5
    return "".join(rng.choice(rng.choice(_GROUPS) if mixed else group) for _ in range(count))


def _mutate(rng: random.Random, text: str) -> str:
    """One edit: a character dropped or put in, a stretch doubled, or the text cut off."""
    place = rng.randint(0, len(text))
    kind = rng.randrange(4)
    if kind == 0:
        return text[:place] + text[place + 1 :]
    if kind == 1:
        return text[:place] + rng.choice(rng.choice(_GROUPS)) + text[place:]
    if kind == 2:
        end = min(len(text), place + rng.randint(1, 20))
        return text[:end] + text[place:end] * rng.randint(1, 5) + text[end:]
    return text[:place]
