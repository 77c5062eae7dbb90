"""Several copies of an engine, each in a Ray actor with GPUs of its own; batches go to whichever is free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from verl_care.evaluation.engines import EngineConfig, build_engine
from verl_care.evaluation.interface import Completion, Generated, Request, RequestError, error_message


class _Replica:
    """The actor: one engine."""

    def __init__(self, config: EngineConfig) -> None:
        self._engine = build_engine(config)

    def answer(self, number: int, requests: list[Request]) -> tuple[int, list[Generated]]:
        """Number of the batch and its outcomes; failures as text, for not every exception survives the way back."""
        return number, [
            outcome if isinstance(outcome, Completion | str) else RequestError(error_message(outcome))
            for outcome in self._engine(requests)
        ]

    def describe(self) -> dict[str, Any]:
        """See ``Engine``."""
        return self._engine.describe()


class ReplicatedEngine:
    """``replicas`` engines on the machine, or on the Ray cluster that ``RAY_ADDRESS`` names.

    Args:
        config: see ``EngineConfig``.
    """

    def __init__(self, config: EngineConfig) -> None:
        import ray

        self.config = config
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        there = int(ray.cluster_resources().get("GPU", 0))
        gpus = config.tensor_parallel_size if there else 0
        if gpus * config.replicas > there:
            raise ValueError(f"{config.replicas} copies on {gpus} GPUs each: Ray has {there} GPUs; ask for fewer")
        # No cores: actors would wait for ever for those that others hold.
        actor = ray.remote(num_gpus=gpus, num_cpus=0)(_Replica)
        single = replace(config, replicas=1)
        self._actors = [actor.remote(single) for _ in range(config.replicas)]
        # A model that cannot be loaded shows here, and not in the middle of a run.
        self._descriptions = ray.get([replica.describe.remote() for replica in self._actors])

    def describe(self) -> dict[str, Any]:
        """See ``Engine``."""
        return {**self._descriptions[0], "replicas": len(self._actors)}

    def prefetch(self, requests: Sequence[Request]) -> None:
        """Each copy reads the media of what it answers."""

    def stream(self, batches: Sequence[list[Request]]) -> Iterator[tuple[list[Request], list[Generated]]]:
        """Every batch with its outcomes, as soon as one of the copies is done with it."""
        from ray.util import ActorPool

        pool = ActorPool(self._actors)
        numbered = list(enumerate(batches))
        for number, generated in pool.map_unordered(lambda actor, entry: actor.answer.remote(*entry), numbered):
            yield batches[number], generated

    def __call__(self, requests: Sequence[Request]) -> list[Generated]:
        """See ``Engine``; one batch a copy."""
        share = -(-len(requests) // len(self._actors))
        batches = [list(requests[first : first + share]) for first in range(0, len(requests), share or 1)]
        found = {id(batch): generated for batch, generated in self.stream(batches)}
        return [outcome for batch in batches for outcome in found[id(batch)]]

    def close(self) -> None:
        """Ends the copies, and Ray if it was started here."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        if self._started:
            ray.shutdown()
