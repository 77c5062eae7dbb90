"""Tokens in the report: colours by signal, shares over steps, and nothing of a response that a browser would obey."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from verl_care.config import SIGNALS
from verl_care.report import tokens
from verl_care.report.page import draw_figures, main, read_run
from verl_care.workers.rollout_log import TOKEN_BITS, RolloutLog

EVIL = ["<script>alert(1)</script>", "</div>", '"onmouseover="x', "&amp;", " {{ 7*7 }}", "\n", "ok"]


def write_run(folder, num_steps=1, *, pieces=EVIL, bits=(9, 10, 12, 15, 3, 0, 8), selection=True):
    log = RolloutLog(folder, max_bytes=10**9)
    for step in range(1, num_steps + 1):
        columns = {
            "uid": ["a", "b"],
            "acc": [1.0, 0.0],
            "length": [len(pieces), 3],
            "prompt_key": ["<i>clip</i>/1", "text/2"],
        }
        if selection:
            columns |= {
                "tokens_selected": [step, 1],
                "tokens": [list(pieces), None],
                "token_signals": [list(bits), None],
                "visual_share": [0.2, None],
                "entropy_share": [0.2, 0.4],
                "visual_scores": [[0.125 * place for place in range(len(pieces))], None],
            }
        log.write(step, 0, columns)
    return folder


class Spans(HTMLParser):
    """Text and attributes of the spans of the token pictures; every tag of the page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.spans, self._depth, self._open = [], [], 0, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "div" and attributes.get("class") == "tokens":
            self._depth = 1
        if tag == "span" and self._depth:
            self.spans.append([attributes, ""])
            self._open = True

    def handle_endtag(self, tag):
        if tag == "div":
            self._depth = 0
        if tag == "span":
            self._open = False

    def handle_data(self, data):
        if self._open and self._depth:
            self.spans[-1][1] += data


def report(folder):
    assert main([folder], out_dir=folder / "out") == 0
    return (folder / "out" / "report.html").read_text()


def test_every_piece_is_shown_as_text_and_nothing_of_it_is_markup(tmp_path):
    text = report(write_run(tmp_path))
    page = Spans(text)
    assert [shown for _, shown in page.spans] == EVIL
    assert not {tag for tag, _ in page.tags} & {"script", "i"}
    assert {name for attributes, _ in page.spans for name in attributes} == {"class", "title"}
    assert "49" not in "".join(shown for _, shown in page.spans)


def test_colours_and_lines_say_what_the_bits_say(tmp_path):
    page = Spans(report(write_run(tmp_path)))
    assert [attributes["class"] for attributes, _ in page.spans] == ["s1 on", "s2 on", "s4 on", "s7 on", "s3", "", "on"]
    hints = [attributes["title"] for attributes, _ in page.spans]
    assert hints[0] == "visual 0.000; chosen by visual"
    assert hints[3] == "visual 0.375; chosen by visual and temporal and entropy"
    assert hints[5] == "visual 0.625"


def test_every_set_of_signals_has_a_background_with_its_colours():
    sheet = tokens.style_sheet()
    for bits in range(1, 8):
        rule = re.search(rf"\.s{bits} {{ (.*) }}", sheet).group(1)
        shown = {signal for signal in SIGNALS if tokens.COLOURS[signal] in rule}
        assert shown == {signal for signal in SIGNALS if bits & TOKEN_BITS[signal]}


def test_bits_are_those_of_the_log():
    assert {**tokens.BITS, "selected": tokens.TRAINED} == TOKEN_BITS


def test_shares_over_steps(tmp_path):
    run = read_run(write_run(tmp_path, num_steps=3))
    assert run.token_shares["step"] == [1, 2, 3]
    assert run.token_shares["selected"] == [pytest.approx((step + 1) / 10) for step in (1, 2, 3)]
    # Over the responses that have the signal; no response has an order.
    assert run.token_shares["visual"] == pytest.approx([0.2] * 3)
    assert run.token_shares["entropy"] == pytest.approx([0.3] * 3)
    assert "temporal" not in run.token_shares
    assert "tokens_0" in draw_figures([run])


def test_pictures_are_spread_over_the_run(tmp_path):
    run = read_run(write_run(tmp_path, num_steps=9))
    assert [picture.title.split(",")[0] for picture in run.pictures] == ["step 1", "step 5", "step 9"]
    assert run.pictures[0].title == "step 1, <i>clip</i>/1, accuracy 1.00: 5 of 7 tokens train"


def test_a_run_without_selection_has_neither(tmp_path):
    run = read_run(write_run(tmp_path, selection=False))
    assert run.token_shares == {} and run.pictures == []
    assert 'class="tokens"' not in report(tmp_path)


def test_a_log_from_before_there_were_tokens_is_read(tmp_path):
    import pyarrow.parquet as pq

    path = write_run(tmp_path, selection=False) / "care_rollouts" / "1.parquet"
    table = pq.read_table(path)
    gone = [name for name in table.column_names if name.startswith("token") or name.endswith(("_share", "_scores"))]
    pq.write_table(table.drop_columns(gone), path)
    assert read_run(tmp_path).token_shares == {}
