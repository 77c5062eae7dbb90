"""The one table of data sets that can be prepared."""

from __future__ import annotations

from verl_care.data.prepare.activitynet_tvg import ACTIVITYNET_TVG
from verl_care.data.prepare.base import Preparer
from verl_care.data.prepare.cgbench import CGBENCH, CGBENCH_CLUE, CGBENCH_MIOU
from verl_care.data.prepare.charades_sta import CHARADES_STA
from verl_care.data.prepare.longvideobench import LONGVIDEOBENCH
from verl_care.data.prepare.lvbench import LVBENCH
from verl_care.data.prepare.mmvu import MMVU
from verl_care.data.prepare.mvbench import MVBENCH
from verl_care.data.prepare.nextgqa import NEXTGQA
from verl_care.data.prepare.tempcompass import TEMPCOMPASS
from verl_care.data.prepare.temporal_rlt import TEMPORAL_RLT
from verl_care.data.prepare.video_holmes import VIDEO_HOLMES
from verl_care.data.prepare.video_mme import VIDEO_MME, VIDEO_MME_SUBTITLES
from verl_care.data.prepare.video_mmmu import VIDEO_MMMU, VIDEO_MMMU_QUESTION_ONLY
from verl_care.data.prepare.video_r1 import VIDEO_HOLMES_MIX, VIDEO_R1, VIDEO_R1_COT
from verl_care.data.prepare.videomathqa import VIDEOMATHQA
from verl_care.data.prepare.vsi_bench import VSI_BENCH
from verl_care.data.records import DataError

PREPARERS: dict[str, Preparer] = {
    preparer.name: preparer
    for preparer in (
        *(VIDEO_R1, VIDEO_R1_COT, VIDEO_HOLMES_MIX, CGBENCH, TEMPORAL_RLT),
        *(VSI_BENCH, VIDEO_MMMU, VIDEO_MMMU_QUESTION_ONLY, MMVU, MVBENCH, TEMPCOMPASS, VIDEO_MME, VIDEO_MME_SUBTITLES),
        *(VIDEO_HOLMES, LONGVIDEOBENCH, LVBENCH, VIDEOMATHQA, CHARADES_STA, ACTIVITYNET_TVG, NEXTGQA),
        *(CGBENCH_CLUE, CGBENCH_MIOU),
    )
}
"""Name -> how the data set is read; training sets first."""


def get_preparer(name: str) -> Preparer:
    """The preparer of a name.

    Raises:
        DataError: no such data set.
    """
    if name not in PREPARERS:
        raise DataError(f"{name}: no such data set; `verl-care prepare --list` names them")
    return PREPARERS[name]
