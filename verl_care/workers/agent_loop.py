"""Agent loop ``care_agent``: verl's single turn, with a seed of its own for every rollout, and T-GRPO's second answer.

Under `CareAgentLoopWorker` the sessions of a prompt share its media: the first one decodes and processes them.

T-GRPO (arXiv 2503.21776 §3) compares answers on ordered frames with answers on shuffled ones. The second answer is
generated beside the first, in the same session: no rows are added to the batch, and padding, group filtering and batch
sizes stay as they are.
"""

import asyncio
import hashlib
import time
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.workers.rollout.replica import TokenOutput

from verl_care.data.shuffle import (
    SHUFFLED_DELAY_FIELD,
    SHUFFLED_FIELD,
    SHUFFLED_RESPONSES_COLUMN,
    SHUFFLED_SECONDS_FIELD,
    SHUFFLED_TOKENS_FIELD,
    shuffle_videos,
)
from verl_care.shaping.annealing import ANNEALING_COLUMN
from verl_care.shaping.siri import MAX_TOKENS_COLUMN
from verl_care.workers.prompt_media import CURRENT, Frames, PackedVideos, Prepared, PromptMedia, row_inputs
from verl_care.workers.shared_inputs import LARGE, SharedInputs, store


def rollout_seed(seed: int, data_source: str, index: int, session_id: int, step: int, variant: str = "") -> int:
    """Return the sampling seed of one rollout, a 63-bit hash of what identifies it.

    It depends on the record, not on verl's uid (new in every run) nor on the order of arrival.

    Args:
        seed: the run's seed, ``actor_rollout_ref.rollout.custom.seed``.
        data_source: the record's data source.
        index: the record's ``extra_info.index``.
        session_id: number of the rollout within its prompt, from 0.
        step: training step the prompt was drawn for.
        variant: tells a further response of the same session from its first.
    """
    identity = f"{seed}/{data_source}/{index}/{session_id}/{step}" + (f"/{variant}" if variant else "")
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big") >> 1


class CareAgentLoop(SingleTurnAgentLoop):
    """One turn; sets ``seed`` in the sampling parameters when ``rollout.custom.seed`` is given.

    The first sessions of a training prompt with a video, as many as the row's ``care_shuffled_responses`` says, also
    answer on shuffled frames; ``extra_fields`` then hold that answer's text, tokens and seconds.
    """

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        """Generate one response for a dataset row (verl passes its fields, ``session_id`` and ``global_steps``)."""
        seed = (self.rollout_config.get("custom") or {}).get("seed")
        if kwargs.get(MAX_TOKENS_COLUMN):
            # By this name each of verl's rollout servers knows it.
            sampling_params = {**sampling_params, "max_new_tokens": int(kwargs[MAX_TOKENS_COLUMN])}
        if kwargs.get(ANNEALING_COLUMN):
            sampling_params = {**sampling_params, "extra_args": {ANNEALING_COLUMN: dict(kwargs[ANNEALING_COLUMN])}}
        shuffled_params = dict(sampling_params)
        if seed is not None:
            identity = (
                int(seed),
                str(kwargs["data_source"]),
                int(kwargs["index"]),
                int(kwargs["session_id"]),
                int(kwargs["global_steps"]),
            )
            # Copied: verl hands one dict to all sessions of a prompt.
            sampling_params = {**sampling_params, "seed": rollout_seed(*identity)}
            # Its own: the two accuracies that are compared are drawn independently of each other.
            shuffled_params["seed"] = rollout_seed(*identity, variant="shuffled")

        fields = {
            SHUFFLED_FIELD: None,
            SHUFFLED_TOKENS_FIELD: 0,
            SHUFFLED_SECONDS_FIELD: 0.0,
            SHUFFLED_DELAY_FIELD: 0.0,
        }
        self._row, self._seed = kwargs, int(seed or 0)
        if CURRENT.get() is not None:
            self.server_manager: Any = _ByReference(self.server_manager)
        if int(kwargs.get("session_id", 0)) < int(kwargs.get(SHUFFLED_RESPONSES_COLUMN) or 0):
            # verl makes a loop for every session, so that the stand-in is this session's alone.
            self.server_manager = _TwoAnswers(self, shuffled_params, fields)
        name = f"record {kwargs.get('data_source')}/{kwargs.get('index')}, session {kwargs.get('session_id')}"
        seconds = (self.config.get("care") or {}).get("session_timeout_seconds")
        try:
            output = await asyncio.wait_for(super().run(sampling_params, priority=priority, **kwargs), seconds)
        except TimeoutError:
            raise TimeoutError(f"{name}: no response after {seconds} s (care.session_timeout_seconds)") from None
        if not output.response_ids:
            # verl would place the reward on its last token.
            raise ValueError(f"{name}: the rollout engine returned no tokens")
        # In every row, so that rows have the same keys.
        output.extra_fields.update(fields)
        return output

    async def process_multi_modal_info(self, messages: list[dict]) -> dict[str, Any]:
        """The prompt's media as verl returns them; shared ones are stand-ins (`Frames`)."""
        prompt = CURRENT.get()
        if prompt is None:
            return await super().process_multi_modal_info(messages)
        return dict((await prompt.prepare(lambda: self._prepare(prompt, messages))).data)

    async def ct_build_initial_tokens(
        self,
        messages: list[dict],
        tools: list[dict] | None = None,
        images: Any = None,
        videos: Any = None,
        audios: Any = None,
        mm_inputs_out: dict[str, Any] | None = None,
    ) -> list[int]:
        """The prompt's tokens; those of shared media were made with them."""
        prompt = CURRENT.get()
        prepared = None if prompt is None else prompt.prepared
        media = {"images": images, "videos": videos, "audios": audios}
        if prepared is None or not prepared.holds(media) or tools:
            return await super().ct_build_initial_tokens(messages, tools, images, videos, audios, mm_inputs_out)
        if mm_inputs_out is not None:
            mm_inputs_out.update(prepared.features)
        return list(prepared.token_ids)

    async def _prepare(self, prompt: PromptMedia, messages: list[dict]) -> Prepared:
        """Decode, process and store the media of a prompt, all of it off the event loop."""
        data = await super().process_multi_modal_info(messages)
        self._assert_mm_supported(bool(data))
        features: dict[str, Any] = {}
        token_ids = await super().ct_build_initial_tokens(
            messages,
            images=data.get("images"),
            videos=data.get("videos"),
            audios=data.get("audios"),
            mm_inputs_out=features,
        )
        inputs: Any = row_inputs(features)
        if large := {name: inputs.pop(name) for name in LARGE if name in inputs}:
            prompt.stored.add(prompt.uid)
            await store(prompt.uid, large)
            inputs = SharedInputs(prompt.uid, inputs, tuple(large))
        # SGLang takes features instead of frames, and a teacher (audio too) takes what is in the output.
        if self.rollout_config.name != "sglang":
            features = {name: value for name, value in features.items() if name not in LARGE}
            data = data | await asyncio.to_thread(self._by_reference, data)
        return Prepared(data=data, token_ids=token_ids, features=features, inputs=inputs)

    def _by_reference(self, data: dict[str, Any]) -> dict[str, Frames]:
        """Puts images and videos into the object store, from which each request takes them."""
        import ray

        references = {}
        if (images := data.get("images")) is not None:
            references["images"] = Frames(ray.put(images))
        if (videos := data.get("videos")) is not None:
            shuffled = self._shuffle(videos) if self._row.get(SHUFFLED_RESPONSES_COLUMN) else None
            references["videos"] = Frames(
                ray.put(PackedVideos(videos)), None if shuffled is None else ray.put(PackedVideos(shuffled))
            )
        return references

    def _shuffle(self, videos: list[Any] | None) -> list[Any] | None:
        return shuffle_videos(
            videos,
            prompt_key=f"{self._row['data_source']}/{self._row['index']}",
            step=int(self._row["global_steps"]),
            seed=self._seed,
        )


class _ByReference:
    """Stands for the rollout servers: hands on references of media, which Ray resolves where they arrive."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def generate(self, *, image_data: Any = None, video_data: Any = None, **request: Any) -> TokenOutput:
        return await self._client.generate(
            image_data=image_data.reference if isinstance(image_data, Frames) else image_data,
            video_data=video_data.reference if isinstance(video_data, Frames) else video_data,
            **request,
        )


class _TwoAnswers:
    """Stands for the rollout servers: answers a request, and beside it the same request on shuffled frames.

    Prompt ids are those of the first request: same placeholders, same positions, same timestamps.
    """

    def __init__(self, loop: CareAgentLoop, sampling_params: dict[str, Any], fields: dict[str, Any]) -> None:
        self._loop = loop
        self._client = loop.server_manager
        self._sampling_params = sampling_params
        self._fields = fields

    async def generate(self, *, video_data: Any = None, **request: Any) -> TokenOutput:
        if isinstance(video_data, Frames):
            shuffled_data: Any = None if video_data.shuffled is None else Frames(video_data.shuffled)
        else:
            shuffled_data = self._loop._shuffle(video_data)
        if shuffled_data is None:
            return await self._client.generate(video_data=video_data, **request)

        start = time.perf_counter()
        (ordered, ordered_end), (shuffled, shuffled_end) = await asyncio.gather(
            self._timed(video_data=video_data, **request),
            self._timed(**await self._shuffled_request(shuffled_data, request)),
        )
        token_ids = list(shuffled.token_ids)[: self._loop.response_length]
        self._fields |= {
            SHUFFLED_FIELD: self._loop.tokenizer.decode(token_ids, skip_special_tokens=True),
            SHUFFLED_TOKENS_FIELD: len(token_ids),
            SHUFFLED_SECONDS_FIELD: shuffled_end - start,
            SHUFFLED_DELAY_FIELD: max(0.0, shuffled_end - ordered_end),
        }
        return ordered

    async def _timed(self, **request: Any) -> tuple[TokenOutput, float]:
        return await self._client.generate(**request), time.perf_counter()

    async def _shuffled_request(self, videos: Any, request: dict[str, Any]) -> dict[str, Any]:
        request = {
            **request,
            "request_id": f"{request['request_id']}-shuffled",
            "sampling_params": self._sampling_params,
            "video_data": videos,
        }
        if self._loop.rollout_config.name == "sglang":
            # SGLang takes processed features instead of frames, and those of the first request are in order.
            features: dict[str, Any] = {}
            await self._loop.ct_build_initial_tokens(
                list(self._loop._row["raw_prompt"]),
                images=request.get("image_data"),
                videos=videos,
                audios=request.get("audio_data"),
                mm_inputs_out=features,
            )
            request["mm_processor_output"] = self._loop.build_sglang_video_payload(videos, features)
        else:
            request.pop("mm_processor_output", None)
        return request
