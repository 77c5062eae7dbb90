"""The development split of a training set: no clip is on both sides. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

MAX_DEV_RECORDS = 500
MAX_DEV_SHARE = 0.1
"""Size of the development split where none is asked for: the smaller of the two."""


def split_dev(
    rows: Sequence[dict[str, Any]], size: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Takes a development split out: no clip, by path, name or content, is on both sides.

    Args:
        rows: prepared records.
        size: records to take at most; what clips with their questions add up to may be a little less.
        seed: of the choice.

    Returns:
        The rest and the split, both in the order of ``rows``; an empty split where every clip has more questions.
    """
    if size <= 0:
        return list(rows), []
    parents: dict[str, str] = {}

    def find(key: str) -> str:
        while parents.setdefault(key, key) != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    keys = [_clip_keys(row) for row in rows]
    for names in keys:
        for other in names[1:]:
            parents[find(other)] = find(names[0])
    groups: dict[str, list[int]] = {}
    for number, names in enumerate(keys):
        groups.setdefault(find(names[0]), []).append(number)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    held: set[int] = set()
    for members in order:
        if len(held) + len(members) <= size:
            held.update(members)
    rest = [row for number, row in enumerate(rows) if number not in held]
    return rest, [row for number, row in enumerate(rows) if number in held]


def _clip_keys(row: Mapping[str, Any]) -> list[str]:
    info = row["extra_info"]
    named = [f"{key} {info[key]}" for key in ("video_id", "media_hash") if info.get(key)]
    files = [f"file {media.get('video') or media.get('image')}" for media in (*row["videos"], *row["images"])]
    return named + files or [f"record {info['index']}"]
