"""Seeds of rollouts, and second answers on shuffled frames."""

import asyncio
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.workers.rollout.replica import TokenOutput

from verl_care.data.shuffle import (
    SHUFFLED_DELAY_FIELD,
    SHUFFLED_FIELD,
    SHUFFLED_RESPONSES_COLUMN,
    SHUFFLED_SECONDS_FIELD,
    SHUFFLED_TOKENS_FIELD,
    permute_frames,
)
from verl_care.workers.agent_loop import CareAgentLoop, rollout_seed

ROW = {"data_source": "demo", "index": 4, "session_id": 2, "global_steps": 9, "uid": "u", "raw_prompt": []}


def test_a_seed_is_the_same_on_every_machine_and_in_every_version():
    # printf 0/demo/4/2/9 | b2sum -l 64: e6edaa9deea5b2d9, without its last bit.
    assert rollout_seed(0, "demo", 4, 2, 9) == 8320071896747137388


def test_every_part_of_the_identity_counts():
    base = (0, "demo", 4, 2, 9)
    changed = [
        (1, *base[1:]),
        (0, "other", *base[2:]),
        (0, "demo", 5, 2, 9),
        (0, "demo", 4, 3, 9),
        (0, "demo", 4, 2, 8),
    ]
    seeds = {rollout_seed(*identity) for identity in [base, *changed]}
    assert len(seeds) == 6 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("custom", [{"seed": 3}, {"seed": None}, None])
def test_the_loop_seeds_its_own_copy_of_the_sampling_parameters(monkeypatch, custom):
    seen = []

    async def run(self, sampling_params, priority=0, **kwargs):
        seen.append((sampling_params, priority, kwargs))
        return SimpleNamespace(response_ids=[1], extra_fields={})

    monkeypatch.setattr(SingleTurnAgentLoop, "run", run)
    loop = object.__new__(CareAgentLoop)
    loop.config = OmegaConf.create()
    loop.rollout_config = OmegaConf.create({"custom": custom})
    shared = {"temperature": 1.0}
    asyncio.run(loop.run(shared, priority=2, **ROW))
    [(params, priority, kwargs)] = seen
    assert shared == {"temperature": 1.0} and priority == 2 and kwargs == ROW
    if custom and custom["seed"] is not None:
        assert params == {"temperature": 1.0, "seed": rollout_seed(3, "demo", 4, 2, 9)}
    else:
        assert params == shared


def test_verl_knows_the_loop_by_name():
    assert _agent_loop_registry["care_agent"] == {"_target_": "verl_care.workers.agent_loop.CareAgentLoop"}


# ---------------------------------------------------------------- answers on shuffled frames

VIDEO_ROW = {**ROW, "raw_prompt": [{"role": "user", "content": "?"}], SHUFFLED_RESPONSES_COLUMN: 4}
FIELDS = {SHUFFLED_FIELD, SHUFFLED_TOKENS_FIELD, SHUFFLED_SECONDS_FIELD, SHUFFLED_DELAY_FIELD}
PROMPT_IDS = [5, 6, 7]
METADATA = {"fps": 2.0, "frames_indices": [0, 5, 10, 15]}


def clip(num_frames=4):
    frames = torch.arange(num_frames, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return frames, METADATA


def order_of(video):
    return video[0][:, 0, 0, 0].int().tolist()


class Server:
    """Records requests; answers one only when as many as `together` wait, so that one after the other never ends."""

    def __init__(self, together=1, fails=False):
        self.requests = []
        self.together = together
        self.fails = fails
        self.all_here = asyncio.Event()

    async def generate(self, **request):
        self.requests.append(request)
        if len(self.requests) >= self.together:
            self.all_here.set()
        await asyncio.wait_for(self.all_here.wait(), 20)
        is_shuffled = bool(request["video_data"]) and order_of(request["video_data"][0]) != [0, 1, 2, 3]
        if is_shuffled and self.fails:
            raise RuntimeError("out of memory")
        return TokenOutput(
            token_ids=[ord(c) for c in ("shuffled answer" if is_shuffled else "ordered")],
            log_probs=None,
            extra_fields={"global_steps": 9},
        )


class Tokenizer:
    def decode(self, token_ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(map(chr, token_ids))


class Loop(CareAgentLoop):
    """The loop with media and tokens that need neither files nor a processor; verl's `run` is its own."""

    def __init__(self, server, media, engine="vllm", response_length=64):
        self.config = OmegaConf.create()
        self.server_manager = server
        self.tokenizer = Tokenizer()
        self.rollout_config = OmegaConf.create({"name": engine, "custom": {"seed": 3}})
        self.response_length = response_length
        self.mm_processor_kwargs = {}
        self.media = media
        self.built = []

    async def process_multi_modal_info(self, messages):
        return dict(self.media)

    def _assert_mm_supported(self, has_multi_modal):
        pass

    async def ct_build_initial_tokens(self, messages, images=None, videos=None, audios=None, mm_inputs_out=None):
        self.built.append(videos)
        if videos:
            mm_inputs_out |= {"pixel_values_videos": order_of(videos[0]), "video_grid_thw": "grid"}
        return list(PROMPT_IDS)

    async def ct_merge_assistant_token(self, prompt_ids, token_ids, mask, logprobs, assistant_logprobs=None):
        return SimpleNamespace(token_ids=[*prompt_ids, *token_ids]), [1] * len(token_ids), None


def answer(server, media, row=VIDEO_ROW, params=None, **arguments):
    return asyncio.run(Loop(server, media, **arguments).run({"temperature": 1.0} if params is None else params, **row))


def test_a_session_answers_on_ordered_and_on_shuffled_frames_at_once():
    server = Server(together=2)
    shared = {"temperature": 1.0, "top_p": 0.95}
    output = answer(server, {"videos": [clip()]}, params=shared)
    ordered, shuffled = server.requests
    assert order_of(ordered["video_data"][0]) == [0, 1, 2, 3]
    assert order_of(shuffled["video_data"][0]) == permute_frames(4, "3/demo/4/9/0")
    assert ordered["prompt_ids"] == shuffled["prompt_ids"] == PROMPT_IDS
    assert shuffled["video_data"][0][1] == METADATA and ordered["request_id"] != shuffled["request_id"]

    assert ordered["sampling_params"] == {**shared, "seed": rollout_seed(3, "demo", 4, 2, 9)}
    assert shuffled["sampling_params"] == {**shared, "seed": rollout_seed(3, "demo", 4, 2, 9, "shuffled")}
    assert shuffled["sampling_params"]["seed"] != ordered["sampling_params"]["seed"]
    assert shared == {"temperature": 1.0, "top_p": 0.95}

    # What trains is the ordered response with ordered frames.
    assert "".join(map(chr, output.response_ids)) == "ordered"
    assert order_of(output.multi_modal_data["videos"][0]) == [0, 1, 2, 3]
    assert output.extra_fields[SHUFFLED_FIELD] == "shuffled answer"
    assert output.extra_fields[SHUFFLED_TOKENS_FIELD] == len("shuffled answer")
    assert output.extra_fields[SHUFFLED_SECONDS_FIELD] >= output.extra_fields[SHUFFLED_DELAY_FIELD] >= 0


def test_all_sessions_of_a_prompt_share_one_order_which_changes_with_the_step():
    def order(**changed):
        server = Server()
        answer(server, {"videos": [clip(16)]}, {**VIDEO_ROW, **changed})
        return order_of(server.requests[1]["video_data"][0])

    orders = [order(session_id=session) for session in range(4)]
    assert orders == [orders[0]] * 4 and orders[0] != list(range(16))
    assert order(global_steps=10) != orders[0] and order(index=5) != orders[0]


@pytest.mark.parametrize(
    ("media", "row"),
    [
        pytest.param({"images": ["picture"]}, VIDEO_ROW, id="image"),
        pytest.param({}, VIDEO_ROW, id="text"),
        pytest.param({"videos": [clip(1)]}, VIDEO_ROW, id="one frame"),
        pytest.param({"videos": [clip()]}, {**VIDEO_ROW, "session_id": 4}, id="a later session"),
        pytest.param({"videos": [clip()]}, {**VIDEO_ROW, SHUFFLED_RESPONSES_COLUMN: 0}, id="none wanted"),
        pytest.param({"videos": [clip()]}, {k: v for k, v in VIDEO_ROW.items() if k in ROW}, id="validation"),
    ],
)
def test_one_answer_where_shuffling_has_no_place_and_the_same_fields(media, row):
    server = Server()
    output = answer(server, media, row)
    [request] = server.requests
    assert request["video_data"] == media.get("videos")
    assert {k: v for k, v in output.extra_fields.items() if k in FIELDS} == {
        SHUFFLED_FIELD: None,
        SHUFFLED_TOKENS_FIELD: 0,
        SHUFFLED_SECONDS_FIELD: 0.0,
        SHUFFLED_DELAY_FIELD: 0.0,
    }


def test_rows_with_and_without_a_second_answer_have_the_same_fields():
    with_one = answer(Server(), {"videos": [clip()]}).extra_fields
    without = answer(Server(), {}).extra_fields
    assert with_one.keys() == without.keys() >= FIELDS


def test_a_long_answer_is_scored_as_far_as_a_response_goes():
    output = answer(Server(), {"videos": [clip()]}, response_length=8)
    assert output.extra_fields[SHUFFLED_FIELD] == "shuffled" and output.extra_fields[SHUFFLED_TOKENS_FIELD] == 8


def test_sglang_gets_the_features_of_the_shuffled_frames():
    server = Server()
    answer(server, {"videos": [clip()]}, engine="sglang")
    ordered, shuffled = (request["mm_processor_output"][0]["pixel_values_videos"] for request in server.requests)
    assert ordered == [0, 1, 2, 3] and shuffled == permute_frames(4, "3/demo/4/9/0")


def test_other_engines_process_the_frames_themselves_and_the_loop_does_not_do_it_twice():
    server = Server()
    loop = Loop(server, {"videos": [clip()]})
    asyncio.run(loop.run({}, **VIDEO_ROW))
    assert len(loop.built) == 1 and server.requests[1].get("mm_processor_output") is None


def test_a_failure_on_shuffled_frames_fails_the_session():
    with pytest.raises(RuntimeError, match="out of memory"):
        answer(Server(fails=True), {"videos": [clip()]})
