"""What a user downloads or a model says is data: never run, never followed out of this machine."""

import ast
import html
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import verl_care
from verl_care.data.preflight import QUIET, Preflight
from verl_care.data.records import RecordError, check_rows, to_row
from verl_care.data.video import VideoError, read_video
from verl_care.report.page import main as make_report
from verl_care.workers.rollout_log import RolloutLog

PACKAGE = Path(verl_care.__path__[0])
MODULES = sorted(PACKAGE.rglob("*.py"))

# Names that run or unpickle what they are given.
FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "dill.load",
    "joblib.load",
    "marshal.loads",
    "shelve.open",
    "yaml.load",
    "yaml.unsafe_load",
    "jsonpickle.decode",
    "torch.hub.load",
}
# Names that do so unless told not to, with the keyword that must be there and its value.
REQUIRED = {"torch.load": ("weights_only", True)}
REFUSED_KEYWORDS = {"trust_remote_code": True, "shell": True, "allow_pickle": True}


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func), {word.arg: word.value for word in node.keywords}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_in_the_package_runs_or_unpickles_what_it_reads(path):
    for node, name, keywords in calls(path):
        where = f"{path}:{node.lineno}: {name}"
        # `model.eval()` and `re.compile` are other things.
        assert name not in FORBIDDEN, where
        if name in REQUIRED:
            keyword, value = REQUIRED[name]
            assert keyword in keywords and ast.literal_eval(keywords[keyword]) is value, where
        for keyword, value in REFUSED_KEYWORDS.items():
            given = keywords.get(keyword)
            assert not (isinstance(given, ast.Constant) and given.value is value), where


def test_the_search_finds_what_it_looks_for(tmp_path):
    module = tmp_path / "module.py"
    module.write_text("import torch\ntorch.load(x)\neval(y)\nf(trust_remote_code=True)\n")
    with pytest.raises(AssertionError, match="torch.load"):
        test_nothing_in_the_package_runs_or_unpickles_what_it_reads(module)
    module.write_text("eval(y)\n")
    with pytest.raises(AssertionError, match="eval"):
        test_nothing_in_the_package_runs_or_unpickles_what_it_reads(module)
    module.write_text("f(trust_remote_code=True)\n")
    with pytest.raises(AssertionError, match="f"):
        test_nothing_in_the_package_runs_or_unpickles_what_it_reads(module)


# ---------------------------------------------------------------- network


def record(**media):
    shared = {"data_source": "demo", "index": 0, "question": "What?", "problem_type": "numerical", "ground_truth": "3"}
    return to_row(**shared, **media)


@pytest.mark.parametrize(
    "media",
    [
        {"videos": ["http://example.org/a.mp4"]},
        {"videos": [{"video": "https://example.org/a.mp4", "nframes": 4}]},
        {"videos": [{"video": ["/a.png", "ftp://example.org/b.png"]}]},
        {"images": [{"image": "s3://bucket/a.png"}]},
        {"images": ["rtsp://example.org/a"]},
    ],
)
def test_a_record_that_would_be_fetched_is_refused_at_start(media):
    with pytest.raises(RecordError, match="is not on this machine; fetch it, or set data.care.check_media=false"):
        check_rows([record(**media)], "train.parquet", {}, check_media=True)
    # Whoever asks for it gets it.
    assert check_rows([record(**media)], "train.parquet", {}, check_media=False) == 1


@pytest.fixture
def listener():
    """A server on this machine and what connected to it."""
    connected = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        stop = threading.Event()

        def listen():
            while not stop.is_set():
                try:
                    connection, address = server.accept()
                except TimeoutError:
                    continue
                connected.append(address)
                connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        yield server.getsockname()[1], connected
        stop.set()
        thread.join()


PLAYLISTS = {
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
    "concat.mp4": "ffconcat version 1.0\nfile http://127.0.0.1:{port}/a.mp4\n",
    "dash.mp4": '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet><Representation id="1">'
    "<BaseURL>http://127.0.0.1:{port}/a.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_file_that_points_elsewhere_is_not_followed(name, tmp_path, listener):
    """FFmpeg knows playlists by their content, whatever the file is called."""
    port, connected = listener
    path = tmp_path / name
    path.write_text(PLAYLISTS[name].format(port=port))
    with pytest.raises(VideoError, match=name):
        read_video({"video": str(path), "nframes": 4})
    assert connected == []


# Ends the process with status 7 at the first look at another machine.
NO_NETWORK = """
import os, sys

def audit(event, arguments):
    if event == "socket.getaddrinfo" and arguments[0] not in (None, "localhost", "127.0.0.1"):
        print("looked up", arguments[0], file=sys.stderr); sys.stderr.flush(); os._exit(7)
    if event == "socket.connect" and isinstance(arguments[1], tuple) and not str(arguments[1][0]).startswith("127."):
        print("connected to", arguments[1], file=sys.stderr); sys.stderr.flush(); os._exit(7)

sys.addaudithook(audit)
sys.argv = ["verl-care", *sys.argv[1:]]
from verl_care.cli import main
main()
"""


def run_without_network(*words, cwd):
    return subprocess.run(
        [sys.executable, "-c", NO_NETWORK, *words], capture_output=True, text=True, cwd=cwd, timeout=180
    )


def test_commands_stay_on_this_machine(tmp_path):
    write_run(tmp_path / "run")
    for words in (["rules", "alp"], ["replay", "run", "--rule", "care"], ["report", "run", "--out", "out"]):
        done = run_without_network(*words, cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr[-2000:])


def test_the_watch_sees_a_look_at_another_machine(tmp_path):
    code = NO_NETWORK.replace(
        "from verl_care.cli import main\nmain()", "import socket; socket.getaddrinfo('example.org', 80)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path).returncode == 7


def test_a_run_does_not_report_its_use_unless_asked_to(monkeypatch):
    for name in QUIET:
        # Set first, so that what the callback sets is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(Preflight, "checks", ())
    Preflight().on_run_start(None)
    from ray._common.usage.usage_lib import usage_stats_enabled

    assert not usage_stats_enabled()
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    Preflight().on_run_start(None)
    assert usage_stats_enabled()


# ---------------------------------------------------------------- a page in a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

# Each would change the title if it ran.
HOSTILE = [
    "<script>document.title='ran'</script>",
    "</script><script>document.title='ran'</script>",
    "<img src=x onerror=\"document.title='ran'\">",
    "<svg/onload=document.title='ran'>",
    "\"><script>document.title='ran'</script>",
    "' onmouseover='document.title=1' x='",
    "<iframe srcdoc=\"<script>parent.document.title='ran'</script>\"></iframe>",
    "<style>*{display:none}</style>",
    "javascript:document.title='ran'",
    "{{ 7 * 7 }}",
    "</div></body></html><script>document.title='ran'</script>",
]


def write_run(folder):
    """A run whose every text is hostile, as the token pictures and the tables show them."""
    count = len(HOSTILE)
    RolloutLog(folder, max_bytes=10**9).write(
        1,
        0,
        {
            "uid": [str(number) for number in range(count)],
            "session": [0] * count,
            "data_source": ["demo"] * count,
            "prompt_key": HOSTILE,
            "response": HOSTILE,
            "pred": HOSTILE,
            "acc": [1.0] * count,
            "score": [2.0] * count,
            "bonus": [0.0] * count,
            "format": [1.0] * count,
            "length": [count] * count,
            "tokens_selected": [2] * count,
            "tokens": [HOSTILE] * count,
            "token_signals": [[9, 10] + [0] * (count - 2)] * count,
            "visual_share": [0.2] * count,
        },
    )
    return folder


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
def test_what_a_model_says_is_shown_and_not_run(tmp_path):
    folder = write_run(tmp_path / "<script>document.title='ran'<-script>")
    assert make_report([folder], out_dir=tmp_path / "out") == 0
    page = tmp_path / "out" / "report.html"
    control = tmp_path / "control.html"
    control.write_text("<title>still</title><body><script>document.title='ran'</script>")
    assert "<title>ran</title>" in dom(control, tmp_path)
    shown = dom(page, tmp_path)
    written, held = (re.search("<title>(.*?)</title>", text, re.DOTALL)[1] for text in (page.read_text(), shown))
    assert html.unescape(held) == html.unescape(written)
    # The browser's own writing of what it holds: what was text is written with entities.
    assert "<script" not in shown and "<iframe" not in shown and "<svg" not in shown
    assert "&lt;script&gt;document.title='ran'&lt;/script&gt;" in shown


def dom(page, tmp_path):
    """The page as the browser holds it once its scripts have run."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
