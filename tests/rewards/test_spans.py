import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_care.data.records import check_file
from verl_care.rewards.spans import (
    MAX_SECONDS,
    are_valid,
    boundary_iou,
    find_option_and_spans,
    find_spans,
    merge,
    read_duration,
    read_option_and_spans,
    read_spans,
    read_time,
    score_spans,
    temporal_iou,
    to_seconds,
)


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ('{"start_time": "3.2", "end_time": "7"}', [(3.2, 7)]),
        ('{"start_time": 3.2, "end_time": 7}', [(3.2, 7)]),
        ('{"end": "00:07", "start": "00:03.2"}', [(3.2, 7)]),
        ('{"start_time": "1:00:05", "end_time": "1:01:00"}', [(3605, 3660)]),
        ("[3.2, 7]", [(3.2, 7)]),
        ("[[0, 2], [3.2, 7]]", [(0, 2), (3.2, 7)]),
        ('{"span": [3.2, 7]}', [(3.2, 7)]),
        ('{"spans": [{"start": 0, "end": 2}, {"start": "3 s", "end": "7 s"}]}', [(0, 2), (3, 7)]),
        (' {"start_time": "7", "end_time": "3"} ', [(7, 3)]),
        ("3.2 to 7", [(3.2, 7)]),
        ("3.2 TO 7.", [(3.2, 7)]),
        ("3.2 - 7", [(3.2, 7)]),
        ("3.2\u20137", [(3.2, 7)]),
        ("from 3.2 to\n7 seconds", [(3.2, 7)]),
        ("between 3 and 7", [(3, 7)]),
        ("3.2s to 7s", [(3.2, 7)]),
        ("01:05 to 02:00", [(65, 120)]),
        ("1:00:05 - 1:01:00.5", [(3605, 3660.5)]),
        ("0 to 2; 3 to 7, 8 to 9 and 10 to 11", [(0, 2), (3, 7), (8, 9), (10, 11)]),
        ("(3 to 7)", [(3, 7)]),
        ("7 to 3", [(7, 3)]),
        ("3 to 3", [(3, 3)]),
    ],
)
def test_what_a_span_is(text, spans):
    assert list(read_spans(text)) == spans
    assert find_spans(text) == read_spans(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "[3]",
        "[3, 7, 9]",
        "[]",
        "{}",
        "[[[3, 7]]]",
        "[[3, 7], 4]",
        "[[3, 7], []]",
        '{"start_time": "3.2"}',
        '{"start_time": "1.2.3", "end_time": "5"}',
        '{"start_time": null, "end_time": 5}',
        '{"start_time": true, "end_time": 5}',
        '{"start_time": -1, "end_time": 5}',
        '{"start_time": NaN, "end_time": Infinity}',
        '{"start_time": 1, "end_time": 1e300}',
        '{"spans": [[1, 2]], "segments": [[3, 4]]}',
        "[1, " + "9" * 5000 + "]",
        "[" * 5000,
        "1.2.3 to 5",
        "-3 to 5",
        "0:75 to 0:80",
        "1:75:00 to 1:80:00",
        "3 and 7",
        "3, 7",
        "3 to",
        "to 7",
        "3 to 7 to 9",
        "3 to 7m",
        "1e3 to 5",
        "2020-10-11",
        "1234567890 to 5",
        "soon to never",
    ],
)
def test_what_is_no_span(text):
    assert read_spans(text) is None
    assert find_spans(text) is None


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("The ball falls from 3 to 7 seconds.", [(3, 7)]),
        ("It is seen at 00:03 - 00:07", [(3, 7)]),
        ('```json\n{"start_time": "3", "end_time": "7"}\n```', [(3, 7)]),
        ("Either 3 to 7 or 8 to 9", None),
        ("3 balls and 7 cups", None),
        ("from -3 to 7", None),
    ],
)
def test_a_span_among_words(text, spans):
    assert read_spans(text) is None
    found = find_spans(text)
    assert (None if found is None else list(found)) == spans


def test_shares_of_the_duration():
    assert read_spans("0.25 to 0.5", "normalised") == ((0.25, 0.5),)
    assert read_spans('{"start": "0.25", "end": 1}', "normalised") == ((0.25, 1.0),)
    for text in ("0.25 to 1.5", "[0.25, 3]", "00:00 to 00:01", "0.1 s to 0.5 s", '["0.1 s", 0.5]'):
        assert read_spans(text, "normalised") is None
    assert to_seconds([(0.25, 0.5)], 30.0) == ((7.5, 15.0),)


@pytest.mark.parametrize(
    ("text", "option", "spans"),
    [
        ('{"answer": "B", "start_time": "3", "end_time": "7"}', "B", [(3, 7)]),
        ('{"answer": "B", "spans": [[0, 2], [3, 7]]}', "B", [(0, 2), (3, 7)]),
        ('{"option": " B ", "span": ["00:03", "00:07"]}', "B", [(3, 7)]),
        ('{"answer": 2, "span": [3, 7]}', "", [(3, 7)]),
        ('{"answer": "B"}', "B", None),
        ("B; 3 to 7", "B", [(3, 7)]),
        ("B, 00:03 to 00:07; 00:09 to 00:10", "B", [(3, 7), (9, 10)]),
        ("(B) (3 to 7)", "(B)", [(3, 7)]),
        ("B [3, 7]", "B", [(3, 7)]),
        ("B [[0, 2], [3, 7]]", "B", [(0, 2), (3, 7)]),
        ("B", "B", None),
        ("3 to 7", "", [(3, 7)]),
        ("[3, 7]", "", [(3, 7)]),
        ("B; 3 to 7 it is", "B", None),
        ("I say B; 3 to 7", "I say B; 3 to 7", None),
        ("B. pen; 3 to 7", "B. pen; 3 to 7", None),
    ],
)
def test_option_and_span_in_one_answer(text, option, spans):
    found_option, found = read_option_and_spans(text)
    assert found_option == option
    assert (None if found is None else list(found)) == spans


def test_option_and_span_among_words():
    assert find_option_and_spans("B. pen; 3 to 7, 8 to 9") == ("B. pen", ((3, 7), (8, 9)))
    assert find_option_and_spans("The answer is B, from 3 to 7 s, I think.") == (
        "The answer is B, , I think",
        ((3, 7),),
    )
    assert find_option_and_spans('```json\n{"answer": "B", "span": [3, 7]}\n```') == ("B", ((3, 7),))


@pytest.mark.parametrize(
    ("first", "second", "iou"),
    [
        ([(2, 6)], [(2, 6)], 1.0),
        ([(2, 6)], [(4, 6)], 0.5),  # 2 / 4
        ([(0, 4)], [(2, 6)], 1 / 3),  # 2 / 6
        ([(0, 2)], [(2, 4)], 0.0),  # they touch
        ([(0, 1)], [(5, 6)], 0.0),
        ([(0, 10)], [(4, 5)], 0.1),
        ([(0, 2), (1, 4)], [(0, 4)], 1.0),  # overlapping guesses count once
        ([(0, 2), (4, 6)], [(1, 5)], 2 / 6),  # 1 + 1 over 4 + 4 - 2
        ([(0, 1), (2, 3), (4, 5)], [(0, 5)], 0.6),
        ([(6, 2)], [(2, 6)], 0.0),
        ([(2, 2)], [(2, 2)], 0.0),  # the published formula divides by zero here
        ([(0, 2), (6, 4)], [(0, 2)], 0.0),  # one bad span spoils the answer
        ([], [(0, 2)], 0.0),
    ],
)
def test_temporal_iou(first, second, iou):
    assert temporal_iou(first, second) == pytest.approx(iou)


times = st.floats(0, MAX_SECONDS, allow_subnormal=False) | st.integers(0, 20).map(float)
stretches = st.lists(st.tuples(times, times), min_size=1, max_size=5)
valid = st.lists(st.tuples(times, times).map(sorted).map(tuple).filter(lambda s: s[0] < s[1]), min_size=1, max_size=5)


@given(stretches, stretches)
def test_iou_is_symmetric_and_in_the_unit_interval(a, b):
    iou = temporal_iou(a, b)
    assert 0.0 <= iou <= 1.0
    assert iou == temporal_iou(b, a)


@given(valid)
def test_iou_with_itself_is_one_in_any_order(spans):
    assert temporal_iou(spans, spans[::-1]) == 1.0
    assert merge(merge(spans)) == merge(spans)


@given(valid, st.lists(st.integers(1, 30), min_size=2, max_size=2, unique=True).map(sorted))
def test_iou_of_single_spans_is_the_published_formula(spans, gold):
    (start, end), (gold_start, gold_end) = spans[0], gold
    overlap = max(0.0, min(end, gold_end) - max(start, gold_start))
    hull = max(end, gold_end) - min(start, gold_start)
    assert temporal_iou([(start, end)], [(gold_start, gold_end)]) == pytest.approx(overlap / hull, abs=1e-9)


@given(stretches, valid, st.floats(0.1, MAX_SECONDS))
def test_the_boundary_aware_value_never_exceeds_the_iou(pred, gold, duration):
    assert 0.0 <= boundary_iou(pred, gold, duration) <= temporal_iou(pred, gold)


def test_boundary_aware_value_by_hand():
    # IoU [1, 5] with [2, 6] = 3 / 5; both ends 1 apart of T = 10: 0.6 * 0.9 * 0.9
    assert boundary_iou([(1, 5)], [(2, 6)], 10) == pytest.approx(0.486)
    # several spans: first start 0 against 0, last end 4 against 8; IoU 4 / 8; 0.5 * 1 * 0.6
    assert boundary_iou([(0, 1), (1, 4)], [(0, 8)], 10) == pytest.approx(0.3)
    # an end 30 s off in a clip of 10 s: no negative factor
    assert boundary_iou([(0, 35)], [(0, 5)], 10) == 0.0


@given(stretches, valid)
def test_more_guesses_are_no_lottery(pred, gold):
    best = max(temporal_iou(pred, [span]) for span in gold)
    assert score_spans(pred, gold) == best
    assert score_spans(pred, gold, gold_spans="union") == temporal_iou(pred, gold)


def test_several_gold_spans():
    gold = [(0, 2), (4, 8)]
    assert score_spans([(4, 6)], gold) == 0.5
    assert score_spans([(4, 6)], gold, gold_spans="union") == pytest.approx(1 / 3)
    # max over gold spans of 0.5 * 0.9 * 0.8 (against [4, 8]: starts 1 apart, ends 2): [3, 6] has 2 / 5
    value = score_spans([(3, 6)], gold, reward="boundary", duration=10)
    assert value == pytest.approx(2 / 5 * 0.9 * 0.8)


def test_no_prediction_scores_nothing():
    assert score_spans(None, [(0, 1)]) == 0.0
    assert not are_valid(None) and not are_valid([]) and not are_valid([(0, 1), (2, 2)]) and are_valid([(0, 1)])


@pytest.mark.parametrize(
    "value", [None, "", [], True, math.nan, math.inf, -1, 10**400, "1:2:3:4", "x" * 100_000, "3 m"]
)
def test_what_is_no_time(value):
    assert read_time(value) is None


@pytest.mark.parametrize("duration", [0, -1, math.nan, math.inf, "9", True, [9], 1e9])
def test_a_bad_duration_is_an_error(duration):
    with pytest.raises(ValueError, match="extra_info.duration: expected the clip's seconds"):
        read_duration({"duration": duration})


texts = st.text(max_size=60) | st.text('0123456789:.-~[]{}",;to sfrmand\u2013', max_size=60)


@given(texts, st.sampled_from(["seconds", "normalised"]))
def test_no_text_raises(text, unit):
    for spans in (read_spans(text, unit), find_spans(text, unit), read_option_and_spans(text, unit)[1]):
        assert spans is None or all(0 <= time <= MAX_SECONDS for span in spans for time in span)
    if read_spans(text, unit) is not None:
        assert find_spans(text, unit) == read_spans(text, unit)
    find_option_and_spans(text, unit)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    ["1 to " * 4000, "[1" * 8000, "1" * 16000, "1:" * 8000, "from " * 3000, "```" * 5000, '{"a":' * 3000, " " * 16000],
)
def test_hostile_text_is_read_in_no_time(text):
    assert read_spans(text) is None
    assert read_option_and_spans(text)[1] is None
    find_option_and_spans(text)


def test_the_documented_records_are_sound(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "grounding.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(page), "exec"), {})
    assert check_file("train.parquet") == 2
