"""Libraries that are imported at first use, by threads that score their first responses at the same time."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import json, sys, threading
from verl_care.rewards import lazy, scorer

LIBRARIES = {"jiwer", "rapidfuzz", "rouge_score", "nltk", "math_verify"}
QUESTIONS = [("OCR", "red ball"), ("free-form", "the red ball moves"), ("numerical", r"$\\frac{7}{2}$")]
importing, errors, start = [], [], threading.Barrier(2 * len(QUESTIONS))

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in LIBRARIES:
            importing.append(lazy.IMPORTING._is_owned())

def score(problem_type, answer):
    start.wait()
    try:
        scorer.compute_score("s", f"<answer>{answer}</answer>", answer, {"problem_type": problem_type, "index": 1})
    except BaseException as error:
        errors.append(repr(error))

sys.meta_path.insert(0, Watch())
sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=score, args=question) for question in 2 * QUESTIONS]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({"errors": errors, "imports": len(importing), "alone": sum(importing)}))
"""


def test_one_thread_imports_at_a_time():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(run.stdout)
    assert found["errors"] == []
    assert found["alone"] == found["imports"] > 20
