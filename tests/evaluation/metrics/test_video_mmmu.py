import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_care.evaluation.metrics import metric_of, video_mmmu
from verl_care.evaluation.metrics.base import Scored


def scored_as(item, benchmark, answers):
    """Answers by id; B is right."""
    metric, out = metric_of(benchmark), []
    for name, answer in answers.items():
        entry = item(key=f"{benchmark}/0", id=name)
        values, readable = metric.score(entry, answer)
        out.append(Scored(item=entry, values=values, readable=readable))
    return out


def knowledge_gained(item, after, before):
    others = {"video_mmmu_question_only": scored_as(item, "video_mmmu_question_only", before)}
    return metric_of("video_mmmu").figures_with(scored_as(item, "video_mmmu", after), others, "strict")


@pytest.mark.parametrize(
    ("after", "before", "gained"),
    [
        # Percentages of Video-MMMU's own table: GPT-4o 55.67 after and +15.6 needs 47.5 before.
        (0.5567, 0.475, 0.1556),
        (0.75, 0.5, 0.5),
        (0.25, 0.5, -0.5),
        (0.5, 0.5, 0.0),
        (1.0, 0.2, 1.0),
    ],
)
def test_delta_knowledge_by_hand(after, before, gained):
    assert video_mmmu.delta_knowledge(after, before) == pytest.approx(gained, abs=1e-4)


def test_nothing_to_learn_has_no_delta():
    assert math.isnan(video_mmmu.delta_knowledge(1.0, 1.0))


def test_only_questions_asked_both_ways_count(item):
    after = {"Perception/0": "B", "Adaptation/0": "B", "Adaptation/1": "B", "Adaptation/2": "A"}
    before = {"Adaptation/0": "B", "Adaptation/1": "A", "Adaptation/3": "B"}
    # Before 1/2, after 2/2.
    assert knowledge_gained(item, after, before) == {"Δknowledge": 1.0}
    assert knowledge_gained(item, after, {}) == {}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_delta_knowledge_is_learned_less_unlearned_over_unknown(item, answers):
    """An independent count: (wrong to right - right to wrong) / wrong before."""
    after = {str(n): "AB"[right] for n, (right, _) in enumerate(answers)}
    before = {str(n): "AB"[right] for n, (_, right) in enumerate(answers)}
    unknown = sum(not was for _, was in answers)
    learned = sum(now and not was for now, was in answers)
    unlearned = sum(was and not now for now, was in answers)
    found = knowledge_gained(item, after, before)["Δknowledge"]
    assert math.isnan(found) if not unknown else found == pytest.approx((learned - unlearned) / unknown)
