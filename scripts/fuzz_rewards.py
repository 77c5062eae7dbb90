"""Coverage-guided fuzzing of the scorers by atheris (libFuzzer), which is no dependency of the package.

    pip install atheris
    python scripts/fuzz_rewards.py -max_total_time=600 -timeout=5 [FOLDER OF FOUND TEXTS]

Further words are libFuzzer's own. It ends at the first text for which a scorer raises, gives a result out of range, or
takes longer than the time limit, and leaves that text in ``crash-…`` or ``timeout-…``.
"""

import math
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["verl_care"]):
    from verl_care.rewards.scorer import PROBLEM_TYPES, RESULT_KEYS, SCORINGS, compute_score
    from verl_care.testing.hostile import CORPUS, GOLD


def score_one(data: bytes) -> None:
    """Scores what one input stands for: a byte for problem type, scoring and frame, then UTF-8.

    Bytes that are none become lone surrogates.
    """
    choice = data[0] if data else 0
    problem_type = PROBLEM_TYPES[choice % len(PROBLEM_TYPES)]
    scoring = SCORINGS[choice // len(PROBLEM_TYPES) % 2]
    text = data[1:].decode("utf-8", "surrogateescape")
    if choice >= 128:
        text = f"<think>so</think><answer>{text}</answer>"
    info = {"index": 0, "options": ["A. cup", "B. pen"], "duration": 10.0, "problem_type": problem_type}
    result = compute_score("fuzz", text, GOLD[problem_type], info, scoring=scoring)
    assert tuple(result) == RESULT_KEYS
    assert 0.0 <= result["acc_strict"] <= result["acc_lenient"] <= 1.0
    assert math.isfinite(result["score"]) and 0.0 <= result["score"] <= 2.0
    result["pred"].encode("utf-8")


def main() -> None:
    """Runs libFuzzer over the corpus and what it makes of it."""
    with tempfile.TemporaryDirectory() as seeds:
        for number, text in enumerate(CORPUS):
            (Path(seeds) / str(number)).write_bytes(bytes([number]) + text[:4096].encode("utf-8", "surrogatepass"))
        atheris.Setup([sys.argv[0], *sys.argv[1:], seeds], score_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
