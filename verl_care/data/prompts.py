"""How published systems word a question: the text of the turns, without the placeholders of media. Pure.

Wordings are constants of the published runs: a checkpoint trained with one answers worse to another.
"""

from __future__ import annotations

from collections.abc import Sequence

from verl_care.rewards.scorer import GROUNDED_QA, GROUNDING

STYLES = ("video_r1", "video_rts", "temporal_rlt")
"""``video_r1``: thinking aloud, the answer's form by problem type (tulerfeng/Video-R1, ``grpo.py``, ``eval_bench.py``;
also what Video-CARE and Video-KTR train with); ``video_rts``: the conversation of R1 in front of the question
(Ziyang412/Video-RTS, ``grpo.py``); ``temporal_rlt``: system turn, answers as JSON (appletea233/Temporal-R1,
``run_qwen2_5_vl_3b_tvg.sh``)."""

_VIDEO_R1 = (
    "{question}\n"
    "Please think about this question as if you were a human pondering deeply. "
    "Engage in an internal dialogue using expressions such as 'let me think', 'wait', 'Hmm', 'oh, I see', "
    "'let's break it down', etc, or other natural language thought expressions "
    "It's encouraged to include self-reflection or verification in the reasoning process. "
    "Provide your detailed reasoning between the <think> and </think> tags, "
    "and then give your final answer between the <answer> and </answer> tags."
)

_VIDEO_RTS = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., "
    "<think> reasoning process here </think><answer> answer here </answer>"
    "{question}\n"
)

_TEMPORAL_RLT_SYSTEM = (
    "You FIRST think about the reasoning process as an internal monologue and then provide the final answer.\n"
    " The reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE put in "
    "<answer> </answer> tags. Output the final answer in JSON format."
)

_LETTER = " Please provide only the single option letter (e.g., A, B, C, D, etc.) within the <answer> </answer> tags."
_NUMBER = " Please provide the numerical value (e.g., 42 or 3.14) within the <answer> </answer> tags."
_TEXT = " Please provide your text answer within the <answer> </answer> tags."

# The last two are ours: Video-R1 has no questions with times.
_FORMS = {
    "multiple choice": _LETTER,
    "numerical": _NUMBER,
    "OCR": " Please transcribe text from the image/video clearly and provide your text answer within the "
    "<answer> </answer> tags.",
    "free-form": _TEXT,
    "regression": _NUMBER,
    GROUNDING: ' Please provide the times in seconds as JSON, {"start_time": "3.2", "end_time": "7.0"}, within the '
    "<answer> </answer> tags.",
    GROUNDED_QA: " Please provide the option letter and the times in seconds of what shows it as JSON, "
    '{"answer": "A", "start_time": "3.2", "end_time": "7.0"}, within the <answer> </answer> tags.',
}

# Ours: the published first release asks for spans alone, its records say the form themselves.
_JSON_FORMS = {
    "multiple choice": "\nAnswer with the option's letter.",
    GROUNDING: '\nAnswer in seconds: {"start_time": "3.2", "end_time": "7.0"}.',
    GROUNDED_QA: "\nAnswer with the option's letter and the seconds of what shows it: "
    '{"answer": "A", "start_time": "3.2", "end_time": "7.0"}.',
}


def add_options(question: str, options: Sequence[str]) -> str:
    """The question with its options, one a line, as Video-R1 joins them: ``Options:`` follows the question at once."""
    return question + "Options:\n" + "".join(f"{option}\n" for option in options) if options else question


def ask_when(query: str) -> str:
    """The question for the time of an event, as Temporal-R1 asks it (``charades.yaml`` of its lmms-eval)."""
    return f'Give the query: "{query}", when does the described content occur in the video?.'


def build_prompt(
    style: str,
    question: str,
    problem_type: str,
    options: Sequence[str] = (),
    *,
    preamble: str = "",
    form: str | None = None,
) -> tuple[str | None, str]:
    """Words a question in the style of a published run.

    Args:
        style: one of ``STYLES``.
        question: as published, without options.
        problem_type: one of the scorer's ``PROBLEM_TYPES``; decides the form of the answer that is asked for.
        options: ``A. …`` each; may be empty.
        preamble: text in front of the question, such as subtitles.
        form: instruction on the answer's form; None takes the style's own.

    Returns:
        System turn, None where the style has none, and user turn, both without placeholders.

    Raises:
        ValueError: an unknown style.
    """
    question = preamble + question
    if style == "video_r1":
        return None, _VIDEO_R1.format(question=add_options(question, options)) + (form or _FORMS[problem_type])
    if style == "video_rts":
        listed = "".join(f"{option}\n" for option in options)
        asked = f"{question}\n{listed}" if options else question
        return None, _VIDEO_RTS.format(question=asked) + (form or _FORMS[problem_type])
    if style == "temporal_rlt":
        listed = "".join(f"\n{option}" for option in options)
        return _TEMPORAL_RLT_SYSTEM, question + listed + (form or _JSON_FORMS.get(problem_type, ""))
    raise ValueError(f"prompt: expected {', '.join(STYLES)}; got {style!r}")
