"""Looks at an install and says what works, what does not, and what to do about it (``verl-care doctor``).

The one place that catches every exception: what breaks here is the finding. Checks run in the order in which a training
run would meet their subject.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

OK, WARN, FAIL = "ok", "warn", "FAIL"
"""Status of a finding: it works; it works with the remedy or in part; no run would get past it."""

DISTRIBUTION = "verl-care"

CPUS_PER_GPU = 3
"""CPUs that verl's Ray bundles ask for with each GPU (verl 0.9.1, ``single_controller/ray/base.py``)."""

SPARE_CPUS = 3
"""CPUs that the rest of a run asks Ray for: task runner, reward and agent-loop workers, TransferQueue."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    """What was looked at."""
    status: str
    """``ok``, ``warn`` or ``FAIL``."""
    detail: str
    """What was found."""
    remedy: str = ""
    """What to do about it; empty where nothing is to be done."""


def check_versions() -> Iterator[Finding]:
    """Python and every package that verl_care requires, against its own requirements."""
    from packaging.requirements import Requirement

    version = sys.version.split()[0]
    supported = (3, 11) <= sys.version_info[:2] <= (3, 12)
    yield Finding("Python", OK if supported else FAIL, version, "" if supported else "use Python 3.11 or 3.12")
    wrong = []
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(requirement)
            wanted = f"{requirement.name}{requirement.specifier}"
            yield Finding("packages", FAIL, f"{requirement.name} {found or 'is missing'}", f"pip install '{wanted}'")
    if not wrong:
        names = ("verl", "torch", "transformers", "ray")
        seen = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
        yield Finding("packages", OK, f"verl-care {importlib.metadata.version(DISTRIBUTION)}, {seen}")


def check_plugin() -> Iterator[Finding]:
    """Whether ``import verl`` loads our plugin."""
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    importlib.import_module("verl")
    if "verl_care.plugin" in sys.modules:
        yield Finding("verl plugin", OK, "loaded by import verl")
        return
    if not list(importlib.metadata.entry_points(group="verl.plugins", name="verl_care")):
        yield Finding("verl plugin", FAIL, "no entry point verl_care in group verl.plugins", "pip install verl-care")
    elif policy.strip().lower() != "auto" and "verl_care" not in policy:
        yield Finding("verl plugin", FAIL, f"VERL_USE_EXTERNAL_PLUGINS={policy} keeps it out", "unset that variable")
    else:
        # verl logs a plugin's failure at DEBUG only: import it once more to see what it was.
        importlib.import_module("verl_care.plugin")
        yield Finding("verl plugin", FAIL, "import verl did not load it, though it can be imported", "report this")


def _registries() -> Iterator[tuple[str, set[str], set[str]]]:
    """Name of each registry of verl, the names we add to it, and the names it holds."""
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from verl.workers.rollout.base import _ROLLOUT_REGISTRY

    from verl_care.shaping import list_rules

    modes = {"care_sync", "care_colocate_async", "care_separate_async"}
    yield "trainer.v1.trainer_mode", modes, set(TRAINER_REGISTRY)
    yield "reward.reward_manager.name", {"care", *list_rules()}, set(REWARD_MANAGER)
    yield "actor_rollout_ref.rollout.name", {"hf"}, {name for name, _ in _ROLLOUT_REGISTRY}
    yield "rollout.agent.default_agent_loop", {"care_agent"}, set(_agent_loop_registry)


def check_registries() -> Iterator[Finding]:
    """Whether verl knows our names."""
    importlib.import_module("verl.trainer.ppo.v1")
    for key, ours, known in _registries():
        missing = sorted(ours - known)
        if missing:
            yield Finding(key, FAIL, f"not registered: {', '.join(missing)}", "see the finding on the verl plugin")
        else:
            yield Finding(key, OK, ", ".join(sorted(ours)) if len(ours) <= 4 else f"care and {len(ours) - 1} more")


def check_recipes() -> Iterator[Finding]:
    """Whether Hydra finds our recipes, and over which of the two channels."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    modules = {plugin.__module__ for plugin in Plugins.instance().discover(SearchPathPlugin)}
    channels = {
        "hydra_plugins": "hydra_plugins.verl_care_searchpath" in modules,
        "verl plugin": "verl_care.searchpath" in modules,
    }
    with initialize_config_module("verl.trainer.config", version_base=None):
        recipes = GlobalHydra.instance().config_loader().get_group_options("recipe")
    if not any(channels.values()) or not recipes:
        yield Finding("recipes", FAIL, "Hydra does not find verl_care.conf", "pip install --force-reinstall verl-care")
        return
    by = " and ".join(name for name, works in channels.items() if works)
    if all(channels.values()):
        yield Finding("recipes", OK, f"{', '.join(recipes)} (found by {by})")
    else:
        hidden = next(name for name, works in channels.items() if not works)
        yield Finding(
            "recipes",
            WARN,
            f"{', '.join(recipes)} (found by {by} alone)",
            f"the channel {hidden} is hidden; runs work, and +recipe@_global_=NAME fails loudly should both be",
        )


def check_video() -> Iterator[Finding]:
    """Encodes a short mp4 and reads it the way a run does."""
    import av
    import numpy as np
    from qwen_vl_utils import fetch_video

    from verl_care.data.video import register_pyav_reader

    register_pyav_reader()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "clip.mp4")
        with av.open(path, "w") as container:
            stream = container.add_stream("mpeg4", rate=8)
            stream.width = stream.height = 64
            for value in np.linspace(0, 255, 16):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), value, dtype=np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        video = {"video": path, "nframes": 4, "min_pixels": 3136, "max_pixels": 3136}
        frames, metadata = fetch_video(video, return_video_metadata=True)[:2]
    reader = metadata["video_backend"]
    brightness = [round(float(frame.float().mean())) for frame in frames]
    if brightness == sorted(set(brightness)) and len(brightness) == 4:
        yield Finding("video reader", OK, f"{reader} (PyAV {av.__version__}) decodes mp4")
    else:
        yield Finding("video reader", FAIL, f"{reader} decodes wrong frames: mean values {brightness}", "report this")


def check_accelerator() -> Iterator[Finding]:
    """GPU, flash-attn and the rollout engine."""
    import torch

    if not torch.cuda.is_available():
        yield Finding(
            "GPU", WARN, "none that torch sees", "tiny models run on the CPU: care_hardware=cpu, as in verl-care demo"
        )
        return
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    yield Finding("GPU", OK, f"{len(gpus)} x {gpus[0].name}, {gpus[0].total_memory / 2**30:.0f} GiB")
    if importlib.util.find_spec("flash_attn"):
        yield Finding("flash-attn", OK, importlib.metadata.version("flash-attn"))
    else:
        yield Finding(
            "flash-attn",
            WARN,
            "not installed, and verl asks for it by default",
            "actor_rollout_ref.model.use_remove_padding=False "
            "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        )
    if importlib.util.find_spec("vllm"):
        yield Finding("vLLM", OK, importlib.metadata.version("vllm"))
    else:
        yield Finding("vLLM", WARN, "not installed; the GPU recipes generate with it", "pip install 'verl-care[vllm]'")


def check_ray() -> Iterator[Finding]:
    """Whether Ray will count enough CPUs for verl's placement groups."""
    import torch

    if os.environ.get("RAY_ADDRESS"):
        yield Finding("Ray", OK, f"runs join the cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']}")
        return
    gpus = max(torch.cuda.device_count(), 1)
    cpus = len(os.sched_getaffinity(0))
    needed = CPUS_PER_GPU * gpus + SPARE_CPUS
    if cpus >= needed:
        yield Finding("Ray", OK, f"{cpus} CPUs; verl asks for about {needed} with {gpus} worker(s)")
    else:
        yield Finding(
            "Ray",
            WARN,
            f"{cpus} CPUs; verl asks for about {needed} with {gpus} worker(s) and waits for ever, without a word",
            f"ray_kwargs.ray_init.num_cpus={needed} (a number for Ray to count by; care_hardware=cpu sets it)",
        )


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_versions,
    check_plugin,
    check_registries,
    check_recipes,
    check_video,
    check_accelerator,
    check_ray,
)
"""The checks, in order."""


def diagnose(checks: Sequence[Callable[[], Iterator[Finding]]] = CHECKS) -> list[Finding]:
    """Runs the checks; one that raises becomes a finding of its own."""
    findings: list[Finding] = []
    for check in checks:
        try:
            findings.extend(check())
        except Exception as error:
            name = check.__name__.removeprefix("check_")
            findings.append(Finding(name, FAIL, f"{type(error).__name__}: {error}", "mend what the error names"))
    return findings


def render(findings: Sequence[Finding]) -> str:
    """The report as text, one finding a line, the remedy under it."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<4}  {finding.name:<{width}}  {finding.detail}")
        if finding.remedy:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.remedy}")
    return "\n".join(lines)


def main(*, as_json: bool = False) -> int:
    """Prints the report; returns 1 where something fails, else 0."""
    # Libraries print while they are imported; the report has stdout for itself.
    with contextlib.redirect_stdout(sys.stderr):
        findings = diagnose()
    print(json.dumps([asdict(finding) for finding in findings], indent=2) if as_json else render(findings))
    return int(any(finding.status == FAIL for finding in findings))


if __name__ == "__main__":
    sys.exit(main(as_json="--json" in sys.argv[1:]))
