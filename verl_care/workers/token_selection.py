"""Adapter: chooses the tokens that train, inside verl's V1 trainers.

Scores come from the weights that gave ``old_log_probs``, once for each batch; masks stay fixed over its mini-batches.
verl's GRPO collapses token advantages to one number a response, so masks are applied to what it gives, right before
the actor's update, and taken back after it: metrics, dumps and logs see unmasked advantages and whole responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils.debug import marked_timer
from verl.workers.utils.padding import response_from_nested

from verl_care.config import Config
from verl_care.shaping import capo, d3s
from verl_care.shaping import token_selection as ts
from verl_care.workers import counterfactual
from verl_care.workers.batch import as_list
from verl_care.workers.rollout_log import TOKEN_BITS
from verl_care.workers.trainer_part import TrainerPart

try:
    import transfer_queue as tq
    from transfer_queue import KVBatchMeta
except ImportError:
    from verl.utils.transferqueue_utils import KVBatchMeta, tq


def token_texts(tokenizer: Any, ids: Tensor) -> list[str]:
    """Text of each token by itself."""
    return [tokenizer.decode([token], skip_special_tokens=False) for token in ids.tolist()]


@dataclass
class TokenScores:
    """What the tokens of a batch are chosen by; rows as in verl's batch."""

    valid: Tensor
    """Places that hold tokens of the policy, (rows, T), bool."""
    signal: dict[str, Tensor] = field(default_factory=dict)
    """Signal -> scores, (rows, T), float32."""
    has: dict[str, Tensor] = field(default_factory=dict)
    """Signal -> whether a row has it, (rows,), bool."""
    prob: Tensor | None = None
    """Probability of each token, (rows, T); for CAPO."""
    sum_pi_squared: Tensor | None = None
    """Sum of squared probabilities over the vocabulary, (rows, T); for CAPO."""


@dataclass(frozen=True)
class SelectedRows:
    """The tokens of a batch that train."""

    keys: list[str]
    selected: Tensor
    """(rows, T), bool."""
    by_signal: Mapping[str, Tensor]
    """Signal -> what it chose by itself, (rows, T), bool."""


def check_loss_mode(config: Config, loss_agg_mode: str) -> None:
    """Refuses at start a normaliser that the loss cannot have.

    Raises:
        ValueError: see ``advantage_factor``.
    """
    if config.token_selections:
        nothing = torch.zeros(1, 1, dtype=torch.bool)
        ts.advantage_factor(nothing, nothing, loss_agg_mode, config.selected_tokens)


class TokenSelectionMixin(TrainerPart):
    """Scores, selects and applies, where ``care.token_selection`` asks for it.

    Stands behind verl's trainers in the method resolution order: ``separate_async`` loads the weights of
    ``old_log_probs`` around this class's ``_compute_old_log_prob``.
    """

    care_config: Config
    token_scores: TokenScores | None = None
    selected_rows: SelectedRows | None = None
    _learning_rate: float | None = None
    _hidden_size: int | None = None

    @property
    def selects_tokens(self) -> bool:
        """Whether any selection is on."""
        return bool(self.care_config.token_selections)

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if "capo" in self.care_config.token_selections:
            # verl's own switch; the pass below gives it beside log-probabilities and entropies.
            batch.extra_info["calculate_sum_pi_squared"] = True
        batch = super()._compute_old_log_prob(batch, metrics)
        batch.extra_info.pop("calculate_sum_pi_squared", None)
        if self.selects_tokens:
            with marked_timer("care_token_scores", self.timing_raw):
                self.token_scores = self._score_tokens(batch)
        return batch

    def _score_tokens(self, batch: KVBatchMeta) -> TokenScores:
        correction = self.config.algorithm.get("rollout_correction", None)
        bypass = bool(correction and correction.get("bypass_mode", False))
        if bypass:
            # old_log_probs are the rollout engine's then, and there is no entropy: differences need the actor's own.
            with_squares = "capo" in self.care_config.token_selections
            self._forward(
                batch, "compute_log_prob", {"calculate_entropy": True, "calculate_sum_pi_squared": with_squares}
            )
            log_prob_field = "log_probs"
        else:
            log_prob_field = "old_log_probs"
        data = _get(batch, [log_prob_field, "entropy", "response_mask", "prompts", "sum_pi_squared"])
        response_mask = data["response_mask"]
        valid = _pad(response_mask).bool()
        scores = TokenScores(valid)
        log_prob, entropy = data[log_prob_field], data["entropy"]
        if bypass:
            log_prob, entropy = (response_from_nested(value, response_mask) for value in (log_prob, entropy))
        if "video_ktr" in self.care_config.token_selections:
            self._score_video_ktr(batch, data, _pad(log_prob).float(), scores)
        if "capo" in self.care_config.token_selections:
            scores.prob = _pad(log_prob).float().exp()
            scores.sum_pi_squared = _pad(response_from_nested(data["sum_pi_squared"], response_mask)).float()
        scores.signal["entropy"] = _pad(entropy).float()
        scores.has["entropy"] = torch.ones(len(valid), dtype=torch.bool)
        return scores

    def _score_video_ktr(self, batch: KVBatchMeta, data: Any, log_prob: Tensor, scores: TokenScores) -> None:
        config = self.care_config.video_ktr
        requests = self._counterfactual_requests()
        for signal in config.signals:
            if signal not in requests:
                continue
            vision = torch.tensor(requests[signal].pop("tokens"))
            has = torch.tensor([bool(torch.isin(prompt, vision).any()) for prompt in data["prompts"].unbind()])
            scores.has[signal] = has
            scores.signal[signal] = torch.zeros_like(log_prob)
            if not has.any():
                continue
            rows = self._rows_of_pass(batch, has)
            part = batch.select_keys([batch.keys[row] for row in rows])
            part.fields = counterfactual.INPUT_FIELDS
            extra_info = {"calculate_entropy": False, counterfactual.REQUEST: requests[signal]}
            self._forward(part, "compute_counterfactual_log_prob", extra_info)
            name = counterfactual.output_field(signal)
            without = log_prob.clone()
            padded = _pad(_get(part, [name])[name]).float()
            without[rows, : padded.shape[1]] = padded
            difference = ts.dependence(log_prob, without, config.difference)
            # Fill-up rows ran too; they have nothing to depend on.
            scores.signal[signal] = torch.where(has[:, None] & scores.valid, difference, 0.0)

    def _counterfactual_requests(self) -> dict[str, dict[str, Any]]:
        """What the workers are asked for each signal, and the tokens by which a row is known to have it."""
        config = self.care_config.video_ktr
        if not set(config.signals) & {"visual", "temporal"}:
            return {}
        if self.processor is None:
            raise ValueError(
                "care.video_ktr.signals: visual and temporal need a model with a processor; for a text model set "
                "care.video_ktr.signals=[entropy]"
            )
        image, video = (getattr(self.processor, f"{medium}_token_id", None) for medium in ("image", "video"))
        placeholders = [token for token in (image, video) if token is not None]
        requests: dict[str, dict[str, Any]] = {
            "visual": {"kind": "visual", "placeholder_ids": placeholders, "tokens": placeholders},
        }
        patches: Any = getattr(self.processor, "video_processor", None)
        if "temporal" in config.signals and (video is None or patches is None):
            raise ValueError(
                f"care.video_ktr.signals: {type(self.processor).__name__} has no videos, so no temporal signal; leave "
                "temporal out"
            )
        if "temporal" in config.signals:
            requests["temporal"] = {
                "kind": "temporal",
                "temporal_patch_size": patches.temporal_patch_size,
                "patch_size": patches.patch_size,
                "seed": config.seed,
                "step": self.global_steps,
                "tokens": [video],
            }
        return requests

    def _rows_of_pass(self, batch: KVBatchMeta, needed: Tensor) -> list[int]:
        """Rows that need a pass, with others that make their number divide, dealt to the ranks by length."""
        dp_size = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1
        rollout = self.config.actor_rollout_ref.rollout
        multiple = dp_size
        if not rollout.log_prob_use_dynamic_bsz:
            multiple *= rollout.log_prob_micro_batch_size_per_gpu
        rows = needed.nonzero().squeeze(1).tolist()
        rest = sorted((~needed).nonzero().squeeze(1).tolist(), key=lambda row: batch.tags[row]["seq_len"])
        rows += rest[: -len(rows) % multiple]
        rows.sort(key=lambda row: -batch.tags[row]["seq_len"])
        return [row for rank in range(dp_size) for row in rows[rank::dp_size]]

    def _forward(self, batch: KVBatchMeta, method: str, extra_info: dict[str, Any]) -> None:
        """One pass of the actor's workers over the batch, without loss."""
        batch = batch.select_keys(batch.keys)
        temperature = self.config.actor_rollout_ref.rollout.temperature
        batch.extra_info = {"compute_loss": False, "temperature": temperature, **extra_info}
        output = getattr(self.actor_rollout_wg, method)(batch)
        assert len(output) == len(batch)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._compute_advantage(batch, metrics)
        if self.selects_tokens:
            self.selected_rows = self._select_tokens(batch, metrics)
        return batch

    def _select_tokens(self, batch: KVBatchMeta, metrics: dict) -> SelectedRows:
        scores = self.token_scores
        assert scores is not None
        groups: dict[str, int] = {}
        names = [key.rsplit("_", 2) for key in batch.keys]
        group = torch.tensor([groups.setdefault(uid, len(groups)) for uid, *_ in names])
        selected = scores.valid.clone()
        by_signal: dict[str, Tensor] = {}
        if "video_ktr" in self.care_config.token_selections:
            chosen = ts.select_tokens(
                scores.signal, scores.has, scores.valid, group, self.care_config.video_ktr, self._identities(batch)
            )
            selected &= chosen.selected
            by_signal.update(chosen.by_signal)
        if {"d3s", "capo"} & set(self.care_config.token_selections):
            advantages = _pad(_get(batch, ["advantages"])["advantages"]).float()
            if "d3s" in self.care_config.token_selections:
                selected &= self._select_d3s(advantages, scores, group, metrics)
            if "capo" in self.care_config.token_selections:
                selected &= self._select_capo(advantages, scores, metrics)
        selected |= self._kept_tokens(batch, scores.valid)
        metrics.update(_selection_metrics(selected, by_signal, scores))
        return SelectedRows(list(batch.keys), selected, by_signal)

    def selection_columns(self, logged: list[int], responses: Tensor | None) -> dict[str, Any]:
        """Columns of the rollout log about the last selection; none without one.

        Args:
            logged: row of verl's batch for each row of the log.
            responses: token ids, jagged (rows, tokens); None where texts are not written.
        """
        if self.selected_rows is None or self.token_scores is None:
            return {}
        texts: dict[int, list[str]] = {}
        samples = min(self.care_config.rollout_log.token_samples, len(logged))
        if responses is not None and samples:
            ids = responses.unbind()
            for place in torch.linspace(0, len(logged) - 1, samples).round().long().tolist():
                texts[logged[place]] = token_texts(self.tokenizer, ids[logged[place]])
        return _log_columns(self.selected_rows, self.token_scores, logged, texts)

    def _select_d3s(self, advantages: Tensor, scores: TokenScores, group: Tensor, metrics: dict) -> Tensor:
        # One advantage a response: GRPO's are equal over its tokens.
        advantage = (advantages * scores.valid).sum(1) / scores.valid.sum(1).clamp(min=1)
        progress = min(1.0, (self.global_steps - 1) / max(1, self.total_training_steps - 1))
        chosen = d3s.select(advantage, scores.signal["entropy"], scores.valid, group, progress, self.care_config.d3s)
        metrics["care/tokens/d3s_response_share"] = float(chosen.responses.sum() / scores.valid.any(1).sum())
        return chosen.tokens

    def _select_capo(self, advantages: Tensor, scores: TokenScores, metrics: dict) -> Tensor:
        assert scores.prob is not None and scores.sum_pi_squared is not None
        config = self.care_config.capo
        # verl reports the rate of the next update with each update; before the first there is only the configured one.
        rate = self._learning_rate if self._learning_rate is not None else self.config.actor_rollout_ref.actor.optim.lr
        step = capo.predict_step(
            advantages,
            scores.prob,
            scores.sum_pi_squared,
            capo.bound_sum_pi_cubed(scores.prob, scores.sum_pi_squared),
            learning_rate=rate,
            hidden_norm_squared=config.hidden_norm_squared or self._read_hidden_size(),
        )
        accepted = capo.accept_tokens(step, config)
        if scores.valid.any():
            metrics["care/tokens/capo_accepted_share"] = float(accepted[scores.valid].float().mean())
            for name, values in (("fisher", step.policy_shift), ("hessian", step.objective_change.abs())):
                ordered = values[scores.valid].sort().values
                metrics[f"care/tokens/capo_{name}_p99"] = float(ordered[int(0.99 * (len(ordered) - 1))])
        return accepted & scores.valid

    def _read_hidden_size(self) -> float:
        if self._hidden_size is None:
            from transformers import AutoConfig
            from verl.utils.fs import copy_to_local

            model = self.config.actor_rollout_ref.model
            config = AutoConfig.from_pretrained(
                copy_to_local(model.path), trust_remote_code=model.get("trust_remote_code", False)
            )
            self._hidden_size = config.get_text_config().hidden_size
        return float(self._hidden_size)

    def _identities(self, batch: KVBatchMeta) -> list[str]:
        """Names of the rows that stay the same from run to run, for random draws."""
        config = self.care_config.video_ktr
        if not config.random:
            return [""] * len(batch)
        data = _get(batch, ["data_source", "index"])
        records = zip(batch.keys, as_list(data["data_source"]), as_list(data["index"]), strict=True)
        return [
            f"{config.seed}/{source}/{index}/{self.global_steps}/{key.partition('_')[2]}"
            for key, source, index in records
        ]

    def _kept_tokens(self, batch: KVBatchMeta, valid: Tensor) -> Tensor:
        """Tokens that train whatever is selected."""
        config = self.care_config.selected_tokens
        kept = torch.zeros_like(valid)
        if not (config.keep_eos or config.keep_answer):
            return kept
        responses = _get(batch, ["responses"])["responses"]
        if config.keep_eos:
            kept |= ts.eos_tokens(valid, _pad(responses) == self.tokenizer.eos_token_id)
        if config.keep_answer:
            for row, ids in enumerate(responses.unbind()):
                inside = ts.answer_tokens(token_texts(self.tokenizer, ids))
                kept[row, : len(inside)] |= torch.tensor(inside)
        return kept & valid

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        rows = self.selected_rows
        if not self.selects_tokens or rows is None:
            return super()._update_actor(batch, metrics)
        assert rows.keys == list(batch.keys)
        data = _get(batch, ["advantages", "response_mask", "loss_mask"])
        lengths = data["response_mask"].offsets().diff().tolist()
        valid = _pad(data["response_mask"]).bool()
        config = self.care_config.selected_tokens
        mode = self.config.actor_rollout_ref.actor.loss_agg_mode
        factor = ts.advantage_factor(rows.selected, valid, mode, config)
        changed = {"advantages": _unpad(_pad(data["advantages"]) * factor, lengths)}
        if config.kl == "selected":
            for name in ("response_mask", "loss_mask"):
                changed[name] = _unpad(_pad(data[name]) * rows.selected, lengths)
        self._put(batch, changed)
        result = super()._update_actor(batch, metrics)
        self._learning_rate = metrics.get("actor/lr", self._learning_rate)
        self._put(batch, {name: data[name] for name in changed})
        return result

    def _put(self, batch: KVBatchMeta, fields: Mapping[str, Tensor]) -> None:
        tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(dict(fields), batch_size=len(batch))
        )


def _log_columns(
    rows: SelectedRows, scores: TokenScores, logged: list[int], texts: Mapping[int, list[str]]
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "tokens_selected": rows.selected[logged].sum(1).tolist(),
        "tokens": [None] * len(logged),
        "token_signals": [None] * len(logged),
    }
    num_tokens = scores.valid[logged].sum(1).clamp(min=1)
    for signal, chosen in rows.by_signal.items():
        shares = zip((chosen[logged].sum(1) / num_tokens).tolist(), scores.has[signal][logged].tolist(), strict=True)
        columns[f"{signal}_share"] = [share if has else None for share, has in shares]
        columns[f"{signal}_scores"] = [None] * len(logged)
    for place, row in enumerate(logged):
        if row not in texts:
            continue
        length = len(texts[row])
        bits = TOKEN_BITS["selected"] * rows.selected[row].long()
        for signal, chosen in rows.by_signal.items():
            bits += TOKEN_BITS[signal] * chosen[row]
            if scores.has[signal][row]:
                columns[f"{signal}_scores"][place] = scores.signal[signal][row, :length].tolist()
        columns["tokens"][place] = texts[row]
        columns["token_signals"][place] = bits[:length].tolist()
    return columns


def _selection_metrics(selected: Tensor, by_signal: Mapping[str, Tensor], scores: TokenScores) -> dict[str, float]:
    """Shares of the tokens that could train; a signal's over the responses that have it."""
    metrics = {"care/tokens/selected_share": float(selected.sum() / scores.valid.sum())}
    for signal, chosen in by_signal.items():
        inside = scores.valid & scores.has[signal][:, None]
        if inside.any():
            metrics[f"care/tokens/{signal}_share"] = float(chosen[inside].float().mean())
            metrics[f"care/tokens/{signal}_score"] = float(scores.signal[signal][inside].mean())
    return metrics


def _get(batch: KVBatchMeta, fields: list[str]) -> Any:
    return tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)


def _pad(nested: Tensor) -> Tensor:
    return nested.to_padded_tensor(padding=0)


def _unpad(padded: Tensor, lengths: list[int]) -> Tensor:
    rows = [row[:length] for row, length in zip(padded, lengths, strict=True)]
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)
