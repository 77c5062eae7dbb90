"""Rollouts that fail in every way, from the agent loop to the update, under each trainer.

verl's agent loop worker, reward manager, TransferQueue, replay buffer and trainers are real; the rollout engine's
answers are planted and the actor's worker group is no model.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from types import SimpleNamespace

import pytest
import torch
import transfer_queue as tq

from verl_care.testing import agent_loops, build_trainer, clips, read_rows, run_update, tiny_models
from verl_care.workers.liveness import RolloutError

pytestmark = pytest.mark.timeout(300)

N = 4
LIMIT = 32
"""Tokens that a response may have."""

RIGHT, WRONG = "<think>the shape is red</think><answer>A</answer>", "<think>the shape</think><answer>B</answer>"
RAISES, HANGS, EMPTY, SPECIAL, ENDLESS = "raises", "hangs", "empty", "special", "endless"

FINE = [RIGHT, WRONG, RIGHT, WRONG]
GROUPS = {
    "survivor": [RAISES, HANGS, EMPTY, RIGHT],
    "gone": [RAISES, RAISES, HANGS, EMPTY],
    "odd": [SPECIAL, ENDLESS, RIGHT, WRONG],
    "wrong": [WRONG, SPECIAL, WRONG, ENDLESS],
}
SEPARATE = (
    "trainer.v1.separate_async.parameter_sync_step=1",
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
)
MODES = {"care_sync": (), "care_colocate_async": (), "care_separate_async": SEPARATE}


class PlantedAnswers:
    """Stands for the rollout engine: the answers of each prompt in turn, told by the prompt's last word but one."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer
        self.answers: dict[tuple[int, ...], list[str]] = {}

    async def generate(self, *, prompt_ids, **_):
        from verl.workers.rollout.replica import TokenOutput

        answer = self.answers[tuple(prompt_ids)].pop(0)
        if answer == RAISES:
            raise RuntimeError("planted: the engine failed")
        if answer == HANGS:
            await asyncio.Event().wait()
        token_ids = {
            EMPTY: [],
            SPECIAL: [self.tokenizer.eos_token_id] * 3,
            ENDLESS: self.tokenizer.encode("red ") * 2 * LIMIT,
        }.get(answer)
        if token_ids is None:
            token_ids = [*self.tokenizer.encode(answer), self.tokenizer.eos_token_id]
        steps = {"global_steps": 1, "min_global_steps": 1, "max_global_steps": 1}
        return TokenOutput(token_ids=token_ids, log_probs=[-1.0] * len(token_ids), extra_fields=steps)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.save(tmp_path_factory.mktemp("model"), tiny_models.FAMILIES[0])


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


class Run:
    """A trainer, and an agent loop worker that answers its prompts as planted."""

    def __init__(self, model, folder, mode, num_prompts, *overrides) -> None:
        config = agent_loops.compose(
            model,
            f"actor_rollout_ref.rollout.n={N}",
            f"data.train_batch_size={num_prompts}",
            f"data.max_response_length={LIMIT}",
            f"trainer.v1.trainer_mode={mode}",
            f"trainer.default_local_dir={folder}",
            "trainer.logger=[]",
            "care.session_timeout_seconds=0.5",
            *MODES[mode],
            *overrides,
        )
        self.trainer = build_trainer(mode, config)
        self.client = PlantedAnswers(None)
        self._make_worker()
        self.client.tokenizer = self.trainer.tokenizer = self.worker.tokenizer
        self.names: dict[str, str] = {}
        self.drawn_answers = FINE
        self.drawn: list[int] = []
        self.trainer.replay_buffer.refill_fn = self._refill

    def _make_worker(self) -> None:
        handle = SimpleNamespace(compute_score=SimpleNamespace(remote=self._score))
        self.worker = agent_loops.make_worker(self.trainer.config, self.client, ours=True, reward_handles=[handle])

    async def _score(self, data):
        from verl.trainer.ppo.reward import load_reward_manager

        return await load_reward_manager(self.trainer.config, self.worker.tokenizer).run_single(data)

    def answer(self, groups, clip=None) -> None:
        """Runs a prompt for each group of planted answers, and one with a clip, to their end, as the trainer would."""
        prompts = []
        for name, answers in groups.items():
            uid = uuid.uuid4().hex
            number = len(self.names)
            # Prompts of different lengths, which also tell them apart.
            content = [{"type": "text", "text": "red " * (number + 1)}]
            if name == "clip":
                content.insert(0, {"type": "video", "video": str(clip), "nframes": 4})
            prompt = agent_loops.make_prompt(uid, content, index=number)
            self.client.answers[tuple(self._token_ids(prompt))] = list(answers)
            self.names[uid] = name
            tag = {"is_prompt": True, "status": "pending", "global_steps": 1}
            tq.kv_batch_put(keys=[uid], partition_id="train", tags=[tag])
            prompts.append(prompt)
        # A worker lives on one event loop, which ends with the call before.
        self._make_worker()
        agent_loops.run_prompts(self.worker, prompts, N)

    def _token_ids(self, prompt) -> list[int]:
        messages = prompt["raw_prompt"]
        text = self.worker.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.worker.tokenizer.encode(text)

    def _refill(self, num_prompts) -> None:
        self.drawn.append(num_prompts)
        self.answer({f"drawn {i}": self.drawn_answers for i in range(num_prompts)})

    def update(self, num_prompts):
        """One update, and its rows by (name of the group, session)."""
        update = run_update(self.trainer, num_prompts)
        found = {}
        for key, row in read_rows(update.batch, "rm_scores", "token_level_rewards", "advantages").items():
            uid, session, _ = key.split("_")
            if uid in self.names:
                found[self.names[uid], int(session)] = row
        return update.metrics, found


@pytest.fixture
def run(model, tmp_path, train_partition, mode):
    return lambda num_prompts, *overrides: Run(model, tmp_path, mode, num_prompts, *overrides)


@pytest.fixture
def broken_clip(tmp_path):
    path = clips.write_clip(tmp_path / "cut.mp4", seconds=2, fps=4)
    os.truncate(path, path.stat().st_size // 2)
    return path


def test_every_fault_has_its_outcome_and_its_count(run, mode, broken_clip, caplog):
    started = run(6)
    with caplog.at_level(logging.ERROR):
        started.answer({"fine": FINE, **GROUPS, "clip": FINE}, clip=broken_clip)
    metrics, rows = started.update(6)
    answered = {name: sorted(session for group, session in rows if group == name) for name in started.names.values()}
    assert answered.pop("fine") == answered.pop("odd") == answered.pop("wrong") == [0, 1, 2, 3]
    if mode == "care_sync":
        # Who is left is trained on; of the groups that are gone, nothing.
        assert answered == {"survivor": answered["survivor"], "gone": [], "clip": []}
        (alone,) = answered["survivor"]
        assert metrics["care/rollouts/missing"] == pytest.approx(11 / 24)
        assert metrics["care/groups/short"] == metrics["care/groups/single"] == pytest.approx(1 / 4)
        row = rows["survivor", alone]
        # verl's GRPO leaves a group of one as it is.
        assert torch.allclose(row["advantages"], row["token_level_rewards"].sum(), atol=1e-4)
    else:
        # verl's asynchronous trainers drop a group with a failure, and draw others.
        assert answered == {"survivor": [], "gone": [], "clip": []} | {f"drawn {i}": [0, 1, 2, 3] for i in range(3)}
        assert started.drawn == [3] and metrics["training/rollout_failure/evicted_samples"] == 3
        assert metrics["care/rollouts/missing"] == metrics["care/groups/short"] == 0

    # Only special tokens, and more tokens than there may be: wrong, without a format, and counted.
    assert metrics["care/unparsed"] == pytest.approx(4 / (13 if mode == "care_sync" else 24))
    scores = [float(row["rm_scores"].sum()) for (name, _), row in rows.items() if name == "odd"]
    assert sorted(scores) == [0.0, 0.0, 1.0, 2.0]
    lengths = [len(row["rm_scores"]) for (name, _), row in rows.items() if name in ("odd", "wrong")]
    assert max(lengths) == LIMIT and lengths.count(3) == 2
    assert all(bool(row["token_level_rewards"].isfinite().all()) for row in rows.values())
    errors = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    for said in ("the engine failed", "no response after 0.5 s", "returned no tokens", str(broken_clip)):
        assert any(said in error for error in errors), said


def test_a_batch_in_which_all_is_wrong_moves_by_format_alone(run, mode):
    started = run(2)
    started.answer({"wrong": GROUPS["wrong"], "too": [WRONG, WRONG, SPECIAL, SPECIAL]})
    metrics, rows = started.update(2)
    assert metrics["care/groups/all_wrong"] == 1 and metrics["care/pass_rate"] == 0
    assert len(rows) == 2 * N
    for row in rows.values():
        assert torch.equal(row["rm_scores"], row["token_level_rewards"])


def test_a_batch_of_which_nothing_is_left(run, mode):
    started = run(2)
    started.answer({"gone": [RAISES] * N, "too": [EMPTY] * N})
    if mode == "care_sync":
        with pytest.raises(RuntimeError, match="no materializable trajectories"):
            started.update(2)
    else:
        _, rows = started.update(2)
        assert started.drawn == [2] and {name for name, _ in rows} == {"drawn 0", "drawn 1"}


@pytest.mark.parametrize("mode", ["care_colocate_async", "care_separate_async"], indirect=True)
def test_a_run_ends_in_which_every_prompt_fails(run):
    started = run(2)
    started.drawn_answers = [RAISES] * N
    started.answer({"fine": FINE, "gone": [RAISES] * N})
    with pytest.raises(RolloutError, match="^7 prompts failed one after another"):
        started.update(2)
