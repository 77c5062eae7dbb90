"""Rollout engine ``hf``: transformers in a Ray actor, serving verl's token-in, token-out requests.

Three parts, as verl splits a rollout engine: `HFServer` is the actor that generates, `HFReplica` starts it, and
`HFServerAdapter` runs in the trainer workers and hands it their weights. Requests that wait at the same time are
generated in one batch.
"""

import asyncio
import hashlib
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import ray
import torch
from omegaconf import DictConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.model import convert_weight_keys, get_hf_auto_model_class
from verl.utils.tokenizer import get_processor_token_id, normalize_token_ids
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.config import HFModelConfig, RolloutConfig
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput
from verl.workers.rollout.utils import ensure_async_iterator

from verl_care.shaping.annealing import ANNEALING_COLUMN
from verl_care.workers.cpu.generation import MODEL_INPUTS, Completion, Request, Sampling, generate
from verl_care.workers.positions import SECONDS, positions_of_process, use_seconds

logger = logging.getLogger(__name__)

ENGINE_NAME = "hf"

# Distinct prompts whose processed inputs are kept: the sessions of one prompt arrive close together.
_PREPARED_PROMPTS = 128


def parse_sampling_params(params: dict[str, Any], *, prompt_length: int, config: RolloutConfig) -> Sampling:
    """Translate verl's sampling parameters into a row's settings.

    Args:
        params: as an agent loop sends them (vLLM's names); ``logprobs`` is accepted and ignored, they always come.
        prompt_length: tokens of this request's prompt.
        config: ``actor_rollout_ref.rollout``.

    Raises:
        ValueError: a parameter that this engine does not know, or a repetition penalty other than 1.
    """
    params = dict(params)
    params.pop("logprobs", None)
    default = min(config.response_length, config.prompt_length + config.response_length - prompt_length)
    max_tokens = max(1, int(params.pop("max_tokens", params.pop("max_new_tokens", default))))
    penalty = params.pop("repetition_penalty", 1.0)
    if penalty != 1.0:
        raise ValueError(f"rollout engine {ENGINE_NAME!r} has no repetition penalty, got {penalty}; set it to 1.0")
    known = {
        "temperature": float(params.pop("temperature", 1.0)),
        "top_k": int(params.pop("top_k", -1)),
        "top_p": float(params.pop("top_p", 1.0)),
        "seed": params.pop("seed", None),
        "ignore_eos": bool(params.pop("ignore_eos", config.ignore_eos)),
        "stop_token_ids": tuple(params.pop("stop_token_ids", None) or ()),
        "annealing": (params.pop("extra_args", None) or {}).get(ANNEALING_COLUMN),
    }
    if params:
        raise ValueError(
            f"rollout engine {ENGINE_NAME!r} does not know the sampling parameters {sorted(params)}; "
            f"it knows max_tokens, repetition_penalty=1.0 and {sorted(known)}"
        )
    # A continued response asks for what is left of it, and goes on in its stream of draws.
    first_draw = max(0, config.response_length - max_tokens)
    return Sampling(max_tokens=max_tokens, first_draw=first_draw, **known)


def banned_token_ids(model_config: HFModelConfig) -> frozenset[int]:
    """Return the tokens never to sample: vision placeholders and markers, and ids beyond the tokenizer."""
    banned = set()
    for kind in ("image", "video"):
        if model_config.processor is not None:
            banned.add(get_processor_token_id(model_config.processor, kind))
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        banned.add(getattr(model_config.hf_config, name, None))
    vocabulary = model_config.hf_config.get_text_config().vocab_size
    banned.update(range(len(model_config.tokenizer), vocabulary))
    return frozenset(token for token in banned if token is not None)


class PromptPreparer:
    """Turns a request's prompt and media into model inputs, with verl's own code for the training side.

    The agent loop computes the pixel inputs and position ids it stores for training by two methods of
    `AgentLoopWorker`; the same two run here, so that rollout and training see the same input.
    """

    def __init__(self, model_config: HFModelConfig) -> None:
        if positions_of_process() == SECONDS:
            use_seconds(model_config.processor)
        self._worker = SimpleNamespace(
            processor=model_config.processor,
            tokenizer=model_config.tokenizer,
            _get_mm_processor_kwargs=lambda audio_data=None: {},
        )
        self._prepared: OrderedDict[str, tuple[torch.Tensor, dict[str, torch.Tensor]]] = OrderedDict()

    def prepare(
        self,
        prompt_ids: list[int],
        images: list[Any] | None,
        videos: list[Any] | None,
        mm_processor_kwargs: dict[str, Any] | None,
        sampling: Sampling,
    ) -> Request:
        """Return the request for one prompt; prompts seen lately are not processed again."""
        key = _digest(prompt_ids, images, videos, mm_processor_kwargs)
        if key in self._prepared:
            self._prepared.move_to_end(key)
        else:
            self._prepared[key] = self._process(prompt_ids, images, videos, mm_processor_kwargs)
            if len(self._prepared) > _PREPARED_PROMPTS:
                self._prepared.popitem(last=False)
        position_ids, vision = self._prepared[key]
        return Request(
            prompt_ids=prompt_ids, position_ids=position_ids, vision=vision, sampling=sampling, prompt_key=key
        )

    def _process(self, prompt_ids, images, videos, mm_processor_kwargs):
        ids_1L = torch.tensor([prompt_ids])
        output = SimpleNamespace(
            multi_modal_data={
                name: media for name, media in (("images", images), ("videos", videos)) if media is not None
            },
            mm_processor_kwargs=mm_processor_kwargs or {},
        )
        inputs = AgentLoopWorker._compute_multi_modal_inputs(self._worker, output, ids_1L)
        positions = AgentLoopWorker._compute_position_ids(
            self._worker, ids_1L, torch.ones_like(ids_1L), inputs, output.mm_processor_kwargs
        )
        # (1, L) for plain positions, (1, 4, L) for M-RoPE.
        position_ids = positions if positions.dim() == 2 else positions[0]
        return position_ids, {name: inputs[name] for name in MODEL_INPUTS if inputs.get(name) is not None}


def _digest(*parts: Any) -> str:
    """Return a digest of nested lists, tensors, images and plain values."""
    digest = hashlib.blake2b(digest_size=16)

    def feed(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(part.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, list | tuple):
            digest.update(f"{len(part)}[".encode())
            for item in part:
                feed(item)
        elif hasattr(part, "tobytes") and hasattr(part, "size"):
            digest.update(f"{getattr(part, 'mode', '')}{part.size}".encode())
            digest.update(part.tobytes())
        else:
            digest.update(repr(part).encode())

    feed(parts)
    return digest.hexdigest()


class WeightLoader:
    """Copies a trainer's weights into a model and checks that all of them came.

    Args:
        model: the model to fill; parameters may be tied.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        own = {name: own[name] for name in model.state_dict()}
        # A trainer may send names as the checkpoint has them or as the module has them.
        self._tensors = {**own, **dict(zip(convert_weight_keys(own, model), own.values(), strict=True))}
        self._storages = {tensor.data_ptr(): name for name, tensor in own.items()}
        self._arrived: set[int] = set()

    @torch.no_grad()
    def load(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        """Copy named tensors.

        Raises:
            ValueError: a name that the model has not, or a shape that differs.
        """
        for name, weight in weights:
            target = self._tensors.get(name)
            if target is None:
                raise ValueError(f"weight {name!r} came from the trainer but the rollout model has none of that name")
            if target.shape != weight.shape:
                raise ValueError(f"weight {name!r} has shape {tuple(weight.shape)}, wanted {tuple(target.shape)}")
            target.copy_(weight)
            self._arrived.add(target.data_ptr())

    def finish(self) -> None:
        """End one update.

        Raises:
            ValueError: some weights did not arrive since the last call.
        """
        missing = [name for storage, name in self._storages.items() if storage not in self._arrived]
        self._arrived.clear()
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self._storages)} weights did not arrive from the trainer, "
                f"the first are {missing[:3]}"
            )


class HFServer:
    """The Ray actor: one model, one queue of requests, one batch at a time.

    Args:
        config: ``actor_rollout_ref.rollout``; ``custom.batch_window_ms`` (default 10) is how long a batch waits for
            further requests after the last one came, ``max_num_seqs`` is the largest batch.
        model_config: ``actor_rollout_ref.model``.
        replica_rank: place of this server among the replicas.
    """

    def __init__(self, config: DictConfig, model_config: DictConfig, replica_rank: int) -> None:
        self.config: RolloutConfig = omega_conf_to_dataclass(config)
        self.model_config: HFModelConfig = omega_conf_to_dataclass(model_config, dataclass_type=HFModelConfig)
        self.replica_rank = replica_rank
        self.global_steps: int | None = None
        self._window = float((self.config.custom or {}).get("batch_window_ms", 10)) / 1000
        self._model = self._build_model()
        self._loader = WeightLoader(self._model)
        self._has_weights = self.config.load_format != "dummy"
        self._preparer = PromptPreparer(self.model_config)
        self._banned = banned_token_ids(self.model_config)
        self._eos, self._pad = self._special_tokens()
        # One thread: batches, preparation and weight updates never overlap.
        self._compute = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hf-rollout")
        self._waiting: list[tuple[Request, asyncio.Future]] = []
        self._arrival = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._batcher: asyncio.Task | None = None
        self._batch_sizes: deque[int] = deque(maxlen=1000)

    def _build_model(self) -> torch.nn.Module:
        config = self.model_config.hf_config
        auto_class = get_hf_auto_model_class(hf_config=config)
        dtype = PrecisionType.to_dtype(self.config.dtype)
        options = {"trust_remote_code": self.model_config.trust_remote_code}
        if self.config.load_format == "dummy":
            model = auto_class.from_config(config, dtype=dtype, **options)
        else:
            model = auto_class.from_pretrained(self.model_config.local_path, config=config, dtype=dtype, **options)
        return model.to(dtype).eval()

    def _special_tokens(self) -> tuple[frozenset[int], int]:
        eos = {self.model_config.tokenizer.eos_token_id}
        declared = getattr(self.model_config.generation_config, "eos_token_id", None)
        eos.update(declared if isinstance(declared, list) else [declared])
        eos.discard(None)
        pad = self.model_config.tokenizer.pad_token_id
        return frozenset(eos), pad if pad is not None else 0

    # --- generation -------------------------------------------------------------------------------------------------

    async def generate(
        self,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        request_id: str,
        image_data: list[Any] | None = None,
        video_data: list[Any] | None = None,
        audio_data: list[Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        priority: int = 0,
    ) -> TokenOutput:
        """Continue one prompt; the answer carries the step of the weights that made it.

        Args:
            prompt_ids: tokens with vision placeholders expanded.
            sampling_params: see `parse_sampling_params`; ``seed`` makes the response reproducible.
            request_id: for verl's routing, unused here.
            image_data: PIL images.
            video_data: pairs of a frame tensor and its metadata.
            audio_data: not supported.
            mm_processor_kwargs: passed to the processor.
            priority: unused, requests are served in turn.

        Raises:
            ValueError: audio, unknown sampling parameters, or no weights yet.
        """
        if audio_data:
            raise ValueError(f"rollout engine {ENGINE_NAME!r} takes no audio")
        if not self._has_weights:
            raise ValueError("no weights have come from the trainer yet (rollout.load_format=dummy)")
        prompt_ids = normalize_token_ids(prompt_ids)
        sampling = parse_sampling_params(sampling_params, prompt_length=len(prompt_ids), config=self.config)
        loop = asyncio.get_running_loop()
        if self._batcher is None or self._batcher.done():
            self._batcher = loop.create_task(self._serve())
        request = await loop.run_in_executor(
            self._compute,
            self._preparer.prepare,
            prompt_ids,
            image_data,
            video_data,
            mm_processor_kwargs,
            sampling,
        )
        answer: asyncio.Future[tuple[Completion, int | None]] = loop.create_future()
        self._waiting.append((request, answer))
        self._arrival.set()
        completion, global_steps = await answer
        return TokenOutput(
            token_ids=completion.token_ids,
            log_probs=completion.log_probs,
            stop_reason="completed",
            num_preempted=0,
            extra_fields={"global_steps": global_steps},
        )

    async def _serve(self) -> None:
        """Batch what waits, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrival.wait()
            await self._gather_batch()
            await self._open.wait()
            batch = self._waiting[: self.config.max_num_seqs]
            del self._waiting[: len(batch)]
            if not self._waiting:
                self._arrival.clear()
            self._idle.clear()
            try:
                step = self.global_steps
                completions = await loop.run_in_executor(self._compute, self._generate, [r for r, _ in batch])
                for (_, answer), completion in zip(batch, completions, strict=True):
                    answer.set_result((completion, step))
            except Exception as error:
                logger.exception("a batch of %d requests failed", len(batch))
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
            finally:
                self._idle.set()

    async def _gather_batch(self) -> None:
        """Wait until a window passes without a new request, or the batch is full."""
        seen = 0
        while seen < len(self._waiting) < self.config.max_num_seqs:
            seen = len(self._waiting)
            await asyncio.sleep(self._window)

    def _generate(self, requests: list[Request]) -> list[Completion]:
        self._batch_sizes.append(len(requests))
        # A fixed order gives equal batches equal arithmetic, whatever order the requests came in.
        order = sorted(range(len(requests)), key=lambda i: (requests[i].prompt_key, requests[i].sampling.seed or 0))
        completions = generate(
            self._model,
            [requests[i] for i in order],
            eos_token_ids=self._eos,
            pad_token_id=self._pad,
            banned_ids=self._banned,
        )
        placed = dict(zip(order, completions, strict=True))
        return [placed[i] for i in range(len(requests))]

    # --- weights ----------------------------------------------------------------------------------------------------

    async def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        """Take one part of the trainer's weights."""
        await asyncio.get_running_loop().run_in_executor(self._compute, self._loader.load, weights)

    async def finish_weights(self, global_steps: int | None) -> None:
        """Check that every weight came, and note their step."""
        await asyncio.get_running_loop().run_in_executor(self._compute, self._loader.finish)
        self._has_weights = True
        if global_steps is not None:
            self.global_steps = global_steps

    async def weight_digest(self) -> str:
        """Return a digest of all weights, to tell two versions apart."""
        return _digest([[name, tensor] for name, tensor in sorted(self._model.state_dict().items())])

    # --- what a GPU engine does between steps -----------------------------------------------------------------------

    async def abort_all_requests(self, reject_request: bool = False) -> dict[str, Any]:
        """Hold new requests back and wait for the running batch: responses are short here, none is cut in two."""
        self._open.clear()
        await self._idle.wait()
        return {"aborted_count": 0, "request_ids": []}

    async def resume_generation(self) -> None:
        """Serve what waits."""
        self._open.set()

    async def batch_sizes(self) -> list[int]:
        """Return the sizes of the latest batches."""
        return list(self._batch_sizes)

    async def ready(self) -> str:
        """Return the node's address once the model stands."""
        return ray.util.get_node_ip_address()

    async def sleep(self) -> None:
        """Weights and cache are host memory; nothing to free."""

    async def wake_up(self, tags: list[str] | None = None) -> None:
        """Nothing was freed."""

    async def clear_kv_cache(self) -> None:
        """No cache outlives its batch."""

    async def release_kv_cache(self) -> None:
        """No cache outlives its batch."""

    async def resume_kv_cache(self) -> None:
        """No cache outlives its batch."""

    async def start_profile(self, **kwargs: Any) -> None:
        """No profiler."""

    async def stop_profile(self) -> None:
        """No profiler."""


def _server_name(replica_rank: int, suffix: str = "") -> str:
    return f"{ENGINE_NAME}_server_{replica_rank}{suffix}"


class HFReplica(RolloutReplica):
    """Starts one `HFServer` beside the trainer worker it serves."""

    async def launch_servers(self) -> None:
        if self.world_size != 1:
            raise ValueError(
                f"rollout engine {ENGINE_NAME!r} runs one process a replica, got {self.world_size}; set "
                "actor_rollout_ref.rollout.tensor_model_parallel_size=1, data_parallel_size=1"
            )
        if self.is_reward_model or self.is_teacher_model:
            raise ValueError(f"rollout engine {ENGINE_NAME!r} serves no reward or teacher model")
        node_id = await self.workers[0].__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
        server = (
            ray.remote(HFServer)
            .options(
                name=_server_name(self.replica_rank, self.name_suffix),
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False),
                max_concurrency=self.max_concurrency,
                num_cpus=0,
            )
            .remote(config=self.config, model_config=self.model_config, replica_rank=self.replica_rank)
        )
        address = await server.ready.remote()
        self.servers = [server]
        self._server_handle = server
        # No HTTP here: verl uses the address as the server's key in its load balancer.
        self._server_address = f"{address}:{ENGINE_NAME}-{self.replica_rank}{self.name_suffix}"


class HFServerAdapter(BaseRollout):
    """Hands a trainer worker's weights to the server of its replica."""

    def __init__(self, config, model_config, device_mesh, replica_rank: int = -1) -> None:
        import os

        super().__init__(config, model_config, device_mesh)
        self.replica_rank = int(os.environ["RANK"]) if replica_rank == -1 else replica_rank
        self.is_leader_rank = True
        self._server: ray.actor.ActorHandle | None = None

    def _get_server(self) -> ray.actor.ActorHandle:
        # The server starts after the worker that holds this adapter.
        if self._server is None:
            self._server = ray.get_actor(_server_name(self.replica_rank))
        return self._server

    async def resume(self, tags: list[str]) -> None:
        """Nothing was released."""

    async def release(self) -> None:
        """Nothing to release."""

    @torch.no_grad()
    async def update_weights(
        self,
        weights: Iterator[tuple[str, torch.Tensor]] | AsyncIterator[tuple[str, torch.Tensor]],
        global_steps: int | None = None,
        wire_format: str = "named_tensors",
        peft_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Send all weights in buckets; the server refuses an update with a weight missing.

        Args:
            weights: named full tensors. Making one is a collective of all trainer workers, so the iterator is always
                drained.
            global_steps: step the weights belong to.
            wire_format: only ``named_tensors``.
            peft_config: only None: set ``model.lora.merge=True`` to train with LoRA.

        Raises:
            ValueError: another format, unmerged adapters, or (from the server) missing or unknown weights.
        """
        if wire_format != "named_tensors" or peft_config is not None:
            raise ValueError(
                f"rollout engine {ENGINE_NAME!r} takes whole weights: wire_format={wire_format!r}, "
                f"LoRA adapters {'unmerged, set actor_rollout_ref.model.lora.merge=True' if peft_config else 'none'}"
            )
        server = self._get_server()
        limit = self.config.checkpoint_engine.update_weights_bucket_megabytes << 20
        bucket: list[tuple[str, torch.Tensor]] = []
        size = 0
        async for name, weight in ensure_async_iterator(weights):
            # Copied: the tensor may alias a parameter that training goes on to change.
            bucket.append((name, weight.detach().cpu().clone()))
            size += weight.nbytes
            if size >= limit:
                await server.load_weights.remote(bucket)
                bucket, size = [], 0
        await server.load_weights.remote(bucket)
        await server.finish_weights.remote(global_steps)
