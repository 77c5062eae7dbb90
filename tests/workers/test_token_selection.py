"""Token selection inside verl's trainers, on a real TransferQueue: what the actor trains on, and what is left after."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf

from verl_care.shaping import token_selection as ts
from verl_care.testing import build_config, build_trainer, make_group, put_rows, read_rows, run_update
from verl_care.testing.rows import PLACEHOLDER_TOKEN_ID
from verl_care.workers import counterfactual
from verl_care.workers.rollout_log import TOKEN_BITS, log_files

N = 4
PROMPTS = {
    "a": {"accuracy": [1, 0, 0, 1], "length": [10, 25, 7, 15]},
    "b": {"accuracy": [1, 0, None, 1], "length": [20, 5, 5, 30], "modality": "text"},
}
IMAGE_TOKEN_ID = PLACEHOLDER_TOKEN_ID + 1
PROCESSOR = SimpleNamespace(
    image_token_id=IMAGE_TOKEN_ID,
    video_token_id=PLACEHOLDER_TOKEN_ID,
    video_processor=SimpleNamespace(temporal_patch_size=2, patch_size=14),
)


@functools.cache
def compose(overrides, mode):
    return build_config(
        [
            "+care=base",
            "data.train_batch_size=2",
            "actor_rollout_ref.actor.ppo_mini_batch_size=2",
            "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
            "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=true",
            f"actor_rollout_ref.rollout.n={N}",
            f"trainer.v1.trainer_mode={mode}",
            "reward.reward_manager.name=naive",
            "care.token_selection=video_ktr",
            *overrides,
        ]
    )


def make_trainer(tmp_path, *overrides, mode="care_sync", processor=PROCESSOR):
    config = compose(overrides, mode).copy()
    config.trainer.default_local_dir = str(tmp_path)
    return build_trainer(mode, config, processor=processor)


def update(trainer, partition, prompts=PROMPTS, **arguments):
    groups = [make_group(uid, index=i, **group, **arguments) for i, (uid, group) in enumerate(prompts.items())]
    return run_update(trainer, put_rows([row for rows in groups for row in rows], partition))


def trained(trainer):
    return trainer.actor_rollout_wg.trained[-1]


def nonzero(row):
    return "".join("#" if value else "." for value in row.tolist())


def expected_union(num_tokens, entropy):
    """Visual: the last odd tokens; temporal: the last token; entropy: the highest."""
    k = -(-num_tokens // 5)
    odd = list(range(1, num_tokens, 2))[-k:]
    # With one signal moved in a single token, the others are equal: of equal scores the earlier tokens.
    temporal = [num_tokens - 1, *range(k - 1)]
    top = sorted(range(num_tokens), key=lambda t: (-entropy[t], t))[:k]
    return {"visual": set(odd), "temporal": set(temporal), "entropy": set(top)}


def test_the_actor_trains_on_the_union_and_everything_is_put_back(partition, tmp_path):
    trainer = make_trainer(tmp_path)
    out = update(trainer, partition)
    after = read_rows(out.batch, "advantages", "response_mask", "loss_mask", "entropy")
    shares = []
    for key, row in trained(trainer).items():
        if key.startswith("pad"):
            assert not row["advantages"].any()
            continue
        num = len(row["response_mask"])
        signals = expected_union(num, after[key]["entropy"].tolist())
        chosen = set.union(*(signals[name] for name in (signals if key.startswith("a") else ["entropy"])))
        want = torch.tensor([t in chosen for t in range(num)])
        # Advantages of GRPO are equal over a response and none is 0 here.
        assert torch.equal(row["advantages"] != 0, want), key
        assert torch.equal(row["advantages"], after[key]["advantages"] * want)
        assert row["response_mask"].all() and row["loss_mask"].all() and after[key]["advantages"].all()
        shares.append((int(want.sum()), num))
    share = sum(n for n, _ in shares) / sum(n for _, n in shares)
    assert out.metrics["care/tokens/selected_share"] == pytest.approx(share)
    assert out.metrics["care/tokens/visual_share"] == pytest.approx((2 + 5 + 2 + 3) / 57)
    # One token of each of four responses moved by 1.
    assert out.metrics["care/tokens/temporal_score"] == pytest.approx(4 / 57)
    assert out.metrics["critic/advantages/max"] > 0 and "timing_s/care_token_scores" in out.metrics


def passes(trainer):
    return [call for name, call in trainer.actor_rollout_wg.calls if name == "compute_counterfactual_log_prob"]


def test_passes_run_on_the_rows_that_have_the_medium(partition, tmp_path):
    trainer = make_trainer(tmp_path, "care.video_ktr.seed=5")
    update(trainer, partition)
    visual, temporal = passes(trainer)
    assert sorted(visual.keys) == sorted(temporal.keys) == ["a_0_0", "a_1_0", "a_2_0", "a_3_0"]
    assert visual.extra_info[counterfactual.REQUEST] == {
        "kind": "visual",
        "placeholder_ids": [IMAGE_TOKEN_ID, PLACEHOLDER_TOKEN_ID],
    }
    assert temporal.extra_info[counterfactual.REQUEST] == {
        "kind": "temporal",
        "temporal_patch_size": 2,
        "patch_size": 14,
        "seed": 5,
        "step": 1,
    }
    assert visual.extra_info["temperature"] == 1.0 and visual.extra_info["compute_loss"] is False


def test_rows_without_the_medium_fill_a_pass_up_and_keep_no_score_of_it(partition, tmp_path):
    trainer = make_trainer(tmp_path)
    prompts = {"a": {**PROMPTS["a"], "accuracy": [1, 0, None, 1]}, "b": PROMPTS["b"]}
    update(trainer, partition, prompts)
    visual, temporal = passes(trainer)
    assert len(visual) == 4 and sum(key.startswith("a") for key in visual.keys) == 3
    for key, row in trained(trainer).items():
        if key.startswith("b"):
            assert (row["advantages"] != 0).sum() == -(-len(row["advantages"]) // 5), key


def test_without_dynamic_batches_a_pass_divides_into_micro_batches(partition, tmp_path):
    trainer = make_trainer(
        tmp_path,
        "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=false",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    )
    update(trainer, partition)
    assert {len(batch) for batch in passes(trainer)} == {8}


def test_text_alone_costs_no_pass(partition, tmp_path):
    trainer = make_trainer(tmp_path)
    update(trainer, partition, {"b": PROMPTS["b"], "c": {"accuracy": [1, 0], "length": 6, "modality": "text"}})
    assert passes(trainer) == []


def test_only_the_passes_of_the_chosen_signals_run(partition, tmp_path):
    for signals, kinds in (("[entropy]", []), ("[temporal,entropy]", ["temporal"]), ("[visual]", ["visual"])):
        trainer = make_trainer(tmp_path, f"care.video_ktr.signals={signals}")
        update(trainer, partition)
        assert [batch.extra_info[counterfactual.REQUEST]["kind"] for batch in passes(trainer)] == kinds


@pytest.mark.parametrize("kl", ["all", "selected"])
@pytest.mark.parametrize("normalise_by", ["all", "selected"])
def test_normaliser_and_kl(partition, tmp_path, normalise_by, kl):
    trainer = make_trainer(
        tmp_path, f"care.selected_tokens.normalise_by={normalise_by}", f"care.selected_tokens.kl={kl}"
    )
    out = update(trainer, partition)
    after = read_rows(out.batch, "advantages", "response_mask", "loss_mask")
    for key, row in trained(trainer).items():
        if key.startswith("pad"):
            continue
        chosen = row["advantages"] != 0
        num, kept = len(chosen), int(chosen.sum())
        divided_by = kept if kl == "selected" else num
        wanted = kept if normalise_by == "selected" else num
        assert torch.equal(row["response_mask"].bool(), chosen if kl == "selected" else torch.ones(num).bool())
        assert torch.equal(row["loss_mask"], row["response_mask"])
        expected = after[key]["advantages"] * chosen * divided_by / wanted
        assert torch.allclose(row["advantages"], expected, rtol=1e-6)
        # Metrics, dumps and the next stages see whole responses.
        assert after[key]["response_mask"].all() and after[key]["loss_mask"].all()


def test_what_is_always_kept(partition, tmp_path):
    responses = ["<think>x</think><answer>A</answer>", "no tags at all", "<answer>B</answer> and more", "zz"]
    prompt = {"a": {"accuracy": [1, 0, 0, 1], "length": 5, "modality": "text", "responses": responses}}
    base = make_trainer(tmp_path, "care.video_ktr.entropy_ratio=0")
    update(base, partition, prompt)
    assert not any(row["advantages"].any() for row in trained(base).values())
    both = make_trainer(
        tmp_path,
        "care.video_ktr.entropy_ratio=0",
        "care.selected_tokens.keep_eos=true",
        "care.selected_tokens.keep_answer=true",
    )
    update(both, partition, prompt)
    for session, text in enumerate(responses):
        kept = nonzero(trained(both)[f"a_{session}_0"]["advantages"])
        block = text.find("<answer>"), text.find("</answer>") + len("</answer>")
        want = ["#" if block[0] >= 0 and block[0] <= i < block[1] else "." for i in range(len(text))]
        assert kept == "".join(want) + "#"


def test_the_random_control_has_the_same_count_and_repeats(partition, tmp_path):
    real, first, again = make_trainer(tmp_path), *(make_trainer(tmp_path, "care.video_ktr.random=true") for _ in "ab")
    masks = []
    for trainer in (real, first, again):
        update(trainer, partition)
        masks.append({key: row["advantages"] != 0 for key, row in trained(trainer).items() if key[:3] != "pad"})
    assert all(masks[0][key].sum() == masks[1][key].sum() for key in masks[0])
    assert any(not torch.equal(masks[0][key], masks[1][key]) for key in masks[0])
    assert all(torch.equal(masks[1][key], masks[2][key]) for key in masks[0])


def test_in_bypass_mode_the_actor_s_own_pass_is_added(partition, tmp_path):
    trainer = make_trainer(tmp_path, "algorithm.rollout_correction.bypass_mode=true")
    out = update(trainer, partition)
    # verl took the rollout engine's log-probabilities, and made no pass for them.
    old = read_rows(out.batch, "old_log_probs", "rollout_log_probs")
    assert all(torch.equal(row["old_log_probs"], row["rollout_log_probs"]) for row in old.values())
    names = [name for name, _ in trainer.actor_rollout_wg.calls]
    assert names.count("compute_log_prob") == 1 and names.count("compute_counterfactual_log_prob") == 2
    share = out.metrics["care/tokens/entropy_share"]
    assert share == pytest.approx(sum(-(-n // 5) for n in (10, 25, 7, 15, 20, 5, 30)) / 112)


@pytest.mark.parametrize(
    "option",
    ["care.video_ktr.difference=signed", "care.video_ktr.scope=group", "care.video_ktr.combine=intersection"],
)
def test_options_reach_the_selection(partition, tmp_path, option):
    trainer = make_trainer(tmp_path, option)
    seen = []
    original = ts.select_tokens

    def spy(*arguments):
        seen.append((arguments, original(*arguments)))
        return seen[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ts, "select_tokens", spy)
        out = update(trainer, partition)
    (scores, _, valid, group, config, _), chosen = seen[0]
    name, value = option.removeprefix("care.video_ktr.").split("=")
    assert getattr(config, name) == value
    if value == "signed":
        # The order of frames made the last token less likely.
        assert float(scores["temporal"].min()) == pytest.approx(-1.0, abs=1e-6)
    rows = [row for row, key in enumerate(out.batch.keys) if not key.startswith("pad")]
    for row in rows:
        num = int(valid[row].sum())
        assert nonzero(trained(trainer)[out.batch.keys[row]]["advantages"]) == nonzero(chosen.selected[row, :num])
    uids = [out.batch.keys[row].split("_")[0] for row in rows]
    assert len(set(group[rows].tolist())) == len(set(uids)) == 2


def test_separate_async_scores_under_the_weights_of_the_old_log_probs(partition, tmp_path):
    trainer = make_trainer(
        tmp_path,
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
        "trainer.v1.separate_async.parameter_sync_step=2",
        "data.train_batch_size=4",
        mode="care_separate_async",
    )
    trainer.local_trigger_step = 1
    trainer.actor_rollout_wg._saved[0] = 0
    update(trainer, partition)
    names = [name for name, _ in trainer.actor_rollout_wg.calls]
    first = names.index("compute_counterfactual_log_prob")
    assert names.index("restore_model_from_cpu") < first
    assert names[first + 2 :].index("restore_model_from_cpu") == 0


def test_d3s_trains_few_responses_first_and_more_later(partition, tmp_path):
    options = ["care.token_selection=d3s", "care.d3s.tokens_initial=1", "care.d3s.tokens_final=1"]
    shares = []
    for step in (1, 1000):
        trainer = make_trainer(tmp_path, *options)
        trainer.global_steps = step
        out = update(trainer, partition)
        assert passes(trainer) == []
        rows = {key: row["advantages"] for key, row in trained(trainer).items() if key[:3] != "pad"}
        trains = {key: bool(row.any()) for key, row in rows.items()}
        assert sum(trains.values()) == (2 if step == 1 else 4)
        shares.append(out.metrics["care/tokens/d3s_response_share"])
        after = read_rows(out.batch, "advantages")
        advantage = {key: float(after[key]["advantages"][0]) for key in rows}
        # Group b has one wrong answer among three: its advantage is the smallest of all.
        assert trains["b_1_0"] and advantage["b_1_0"] == min(advantage.values())
    assert shares == [pytest.approx(2 / 7), pytest.approx(4 / 7)]


def test_capo_rejects_the_tokens_whose_step_is_too_large(partition, tmp_path):
    # With sum pi^2 = pi_a^2: ||v||^2 = (1 - pi_a)^2, so the least likely tokens have the largest steps.
    trainer = make_trainer(
        tmp_path,
        "care.token_selection=capo",
        "care.capo.hidden_norm_squared=100",
        "care.capo.hessian_threshold=0",
        "care.capo.fisher_threshold=2e-5",
        "actor_rollout_ref.actor.optim.lr=1e-3",
    )
    out = update(trainer, partition)
    after = read_rows(out.batch, "advantages", "old_log_probs")
    counts = [0, 0]
    for key, row in trained(trainer).items():
        if key.startswith("pad"):
            continue
        shift = 0.5 * 1e-6 * (after[key]["advantages"] * 100) ** 2 * (1 - after[key]["old_log_probs"].exp()) ** 4
        assert torch.equal(row["advantages"] != 0, shift < 2e-5), key
        counts[0] += int((shift < 2e-5).sum())
        counts[1] += len(shift)
    assert 0 < counts[0] < counts[1]
    assert out.metrics["care/tokens/capo_accepted_share"] == pytest.approx(counts[0] / counts[1])
    assert out.metrics["care/tokens/capo_fisher_p99"] > 2e-5


def test_selections_joined_by_a_plus_must_all_agree(partition, tmp_path):
    options = ["care.d3s.tokens_initial=0.3", "care.video_ktr.signals=[visual,entropy]"]
    masks = {}
    for name in ("video_ktr", "d3s", "video_ktr+d3s"):
        trainer = make_trainer(tmp_path, f"care.token_selection={name}", *options)
        update(trainer, partition)
        masks[name] = {key: row["advantages"] != 0 for key, row in trained(trainer).items() if key[:3] != "pad"}
    for key, both in masks["video_ktr+d3s"].items():
        assert torch.equal(both, masks["video_ktr"][key] & masks["d3s"][key])
    assert any(both.any() for both in masks["video_ktr+d3s"].values())


def test_the_rollout_log_tells_tokens_from_signals(partition, tmp_path):
    trainer = make_trainer(tmp_path, "care.rollout_log.token_samples=3", "care.selected_tokens.keep_eos=true")
    update(trainer, partition)
    rows = {f"{row['uid']}_{row['session']}_0": row for row in pq.read_table(log_files(tmp_path)[0]).to_pylist()}
    assert sum(row["tokens"] is not None for row in rows.values()) == 3
    for key, row in rows.items():
        chosen = (trained(trainer)[key]["advantages"] != 0).tolist()
        assert row["tokens_selected"] == sum(chosen)
        video = key.startswith("a")
        assert (row["visual_share"] is None) == (row["temporal_share"] is None) == (not video)
        assert row["entropy_share"] == pytest.approx(-(-len(chosen) // 5) / len(chosen))
        if row["tokens"] is None:
            continue
        assert "".join(row["tokens"]) == row["response"] and row["tokens"][-1] == ""  # EOS is no byte
        bits = row["token_signals"]
        assert [bool(b & TOKEN_BITS["selected"]) for b in bits] == chosen
        signals = expected_union(len(chosen), row["entropy_scores"])
        for name, places in signals.items():
            found = {t for t, b in enumerate(bits) if b & TOKEN_BITS[name]}
            assert found == (places if video or name == "entropy" else set()), (key, name)
        if video:
            assert row["temporal_scores"] == pytest.approx([0.0] * (len(chosen) - 1) + [1.0], abs=1e-6)
        else:
            assert row["visual_scores"] is None


def test_without_texts_the_log_has_no_tokens(partition, tmp_path):
    trainer = make_trainer(tmp_path, "care.rollout_log.max_gib=0")
    update(trainer, partition)
    rows = pq.read_table(log_files(tmp_path)[0]).to_pylist()
    assert all(row["tokens"] is None and row["tokens_selected"] > 0 for row in rows)


def test_an_unreachable_normaliser_ends_the_start(transfer_queue, tmp_path):
    with pytest.raises(ValueError, match="loss_agg_mode=seq-mean-token-sum"):
        make_trainer(
            tmp_path,
            "care.selected_tokens.normalise_by=selected",
            "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum",
        )


@pytest.mark.parametrize(
    ("processor", "match"),
    [(None, "signals=\\[entropy\\]"), (SimpleNamespace(image_token_id=3), "leave temporal out")],
)
def test_a_model_without_the_medium_is_an_error_that_says_what_to_set(partition, tmp_path, processor, match):
    trainer = make_trainer(tmp_path, processor=processor)
    with pytest.raises(ValueError, match=match):
        update(trainer, partition)


@pytest.mark.parametrize("name", ["video_kt", "video_ktr+video_ktr", "none+video_ktr", ""])
def test_an_unknown_selection_is_an_error(name):
    from verl_care.config import load_config

    with pytest.raises(ValueError, match="token_selection"):
        load_config(OmegaConf.create({"token_selection": name}))
