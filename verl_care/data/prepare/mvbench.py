"""MVBench (Hugging Face ``OpenGVLab/MVBench``): ``json/<task>.json``, or a folder of Parquet files a task; 20 tasks of
200 questions. Folders of the videos as lmms-eval's ``mvbench/utils.py`` has them, those with whole videos beside those
with segments; in the former ``start`` and ``end`` say which part is asked about. TVQA's clips are folders of frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_care.data.prepare.base import Fields, Item, Preparer
from verl_care.data.prepare.readers import read_file
from verl_care.data.records import DataError

FOLDERS: dict[str, tuple[str, ...]] = {
    "action_antonym": ("ssv2_video_mp4", "ssv2_video"),
    "action_count": ("perception/videos",),
    "action_localization": ("sta/sta_video_segment", "sta/sta_video"),
    "action_prediction": ("star/Charades_segment", "star/Charades_v1_480"),
    "action_sequence": ("star/Charades_segment", "star/Charades_v1_480"),
    "character_order": ("perception/videos",),
    "counterfactual_inference": ("clevrer/video_validation",),
    "egocentric_navigation": ("vlnqa",),
    "episodic_reasoning": ("tvqa/video_fps3_hq_segment", "tvqa/frames_fps3_hq"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos",),
    "fine_grained_pose": ("nturgbd_convert", "nturgbd"),
    "moving_attribute": ("clevrer/video_validation",),
    "moving_count": ("clevrer/video_validation",),
    "moving_direction": ("clevrer/video_validation",),
    "object_existence": ("clevrer/video_validation",),
    "object_interaction": ("star/Charades_segment", "star/Charades_v1_480"),
    "object_shuffle": ("perception/videos",),
    "scene_transition": ("scene_qa/video",),
    "state_change": ("perception/videos",),
    "unexpected_action": ("FunQA_test/test",),
}
"""Task -> folders of its videos below ``video/`` of the published repository."""

COLUMNS = frozenset(
    ("video", "question", "candidates", "answer", "start", "end", "fps", "accurate_start", "accurate_end", "subtitle")
    + ("question_id", "video_start", "video_end", "task")
)


def read(path: Path, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Records of one task, with its name: that of the file or of its folder."""
    named = [name for name in (path.stem, path.parent.name) if name in FOLDERS]
    if not named:
        raise DataError(f"{path}: names no task of MVBench; keep the published names, {next(iter(FOLDERS))} and so on")
    for where, row in read_file(path):
        yield where, {**row, "task": named[0]}


def convert(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A question of one task."""
    task, video = fields.text("task"), fields.text("video")
    candidates = fields.texts("candidates")
    listed = fields.add_letters("candidates", candidates)
    names = [f"{prefix}{folder}/{video}" for folder in FOLDERS[task] for prefix in ("", "video/", "data0613/")]
    names.append(video)
    found = next((name for name in names if (options["videos"] / name).exists()), names[0])
    # Segments are cut already.
    whole = "segment" not in found
    start, end = fields.number("start", None), fields.number("end", None)
    if start is not None and end is not None and start >= end:
        raise fields.error("start", f"{start:g} is not before the end, {end:g}", "mend the record")
    return Item(
        id="",
        question=fields.text("question"),
        problem_type="multiple choice",
        answer=fields.letter_of("answer", candidates),
        options=listed,
        video=found,
        video_id=f"{FOLDERS[task][0].split('/')[0]}/{video}",
        start=start if whole else None,
        end=end if whole else None,
        source=FOLDERS[task][0].split("/")[0],
        info={"task_type": task},
    )


MVBENCH = Preparer(
    name="mvbench",
    title="MVBench: 20 temporal tasks; 4,000 questions",
    kind="evaluation",
    files=("json/*.json", "*.json", "*/*.parquet", "**/*.parquet"),
    convert=convert,
    columns=COLUMNS,
    read=read,
)
