"""Records for supervised training: ``messages`` in place of ``prompt`` and ``reward_model``. Pure.

A row has ``messages``, the last of which is the assistant's and is what is learnt, ``videos`` and ``images`` for the
placeholders of the user's turn, and ``extra_info`` as in ``verl_care.data.records``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_care.data.records import DataError, Record, RecordError, check_media_files, check_record, parquet_rows
from verl_care.rewards.parsing import find_answer

_COLUMNS = ("data_source", "messages", "videos", "images", "audios", "extra_info")


def check_supervised(row: Mapping[str, Any], where: str = "record") -> Record:
    """Checks a row: prompt, media and the answer in the response fit together as they must for reinforcement learning.

    Args:
        row: row as a data file gives it.
        where: name of file and record for messages.

    Raises:
        RecordError: a field that is missing or wrong, or a response without answer tags.
    """
    messages = row.get("messages")
    messages = list(messages) if isinstance(messages, list | tuple) else []
    if len(messages) < 2 or not all(isinstance(message, Mapping) for message in messages):
        raise RecordError.at(where, "messages", "expected a question and a response", "write user and assistant")
    last = messages[-1]
    if last.get("role") != "assistant" or not isinstance(last.get("content"), str):
        raise RecordError.at(
            where, "messages", f"ends with role {last.get('role')!r}", "end it with the assistant's response"
        )
    answer = find_answer(last["content"])
    if not answer:
        raise RecordError.at(
            where, f"messages[{len(messages) - 1}].content", "has no answer in tags", "write <answer>…</answer>"
        )
    return check_record({**row, "prompt": messages[:-1], "reward_model": {"ground_truth": answer}}, where)


def check_supervised_file(path: str, check_media: bool = False) -> int:
    """Checks every record of a Parquet file.

    Args:
        path: local file.
        check_media: also checks that all media are files on this machine, and are there.

    Returns:
        Number of records.

    Raises:
        RecordError: the first faulty record.
        DataError: a file that cannot be read, or has no records.
    """
    number = 0
    present: set[str] = set()
    for row in parquet_rows(path, _COLUMNS):
        where = f"{path}, record {number}"
        record = check_supervised(row, where)
        if check_media:
            check_media_files(row, record, where, present)
        number += 1
    if not number:
        raise DataError(f"{path}: no records in the file")
    return number
