import pytest
from hypothesis import settings

from verl_care.evaluation.items import Item

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


def make_item(
    key="x/0", problem_type="multiple choice", ground_truth="B", options=("A. cup", "B. pen", "C. key"), **info
) -> Item:
    return Item(
        key=key,
        benchmark=key.split("/")[0],
        problem_type=problem_type,
        ground_truth=ground_truth,
        options=tuple(options),
        video=info.pop("video", key),
        info={"index": 0, "problem_type": problem_type, **info},
        messages=[],
    )


@pytest.fixture(scope="session")
def item():
    return make_item
