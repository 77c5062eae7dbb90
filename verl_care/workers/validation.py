"""Validation inside verl's V1 trainers: test sets at named steps alone, and response lengths beside accuracy."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import open_dict
from torch.utils.data import Subset
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.utils.dataset.rl_dataset import collate_fn

from verl_care.config import load_config
from verl_care.data.records import DataError
from verl_care.data.val_sets import check_test_steps, is_test_row, is_test_step, record_reading
from verl_care.workers.trainer_part import TrainerPart

LENGTH_KEY = "response_length"
"""Name under which the tokens of a response stand in ``val-core/<data source>/``."""


def final_lengths(keys: Sequence[str], tags: Sequence[dict[str, Any]]) -> list[int]:
    """Tokens of each session's final output, in the order in which verl's ``_validate`` lists the sessions.

    Args:
        keys: ``{uid}_{session}_{index}``; the highest index is the session's final output.
        tags: with ``response_len``, tokens.
    """
    final: dict[str, tuple[int, int]] = {}
    for place, key in enumerate(keys):
        session, _, index = key.rpartition("_")
        if session not in final or int(index) > final[session][0]:
            final[session] = (int(index), place)
    return [int(tags[place]["response_len"]) for _, place in sorted(final.values(), key=lambda item: item[1])]


class ValidationMixin(TrainerPart):
    """Keeps rows of test sets for the steps of ``care.test_sets_at_steps``; adds mean lengths to every validation."""

    _test_dataloader: StatefulDataLoader | None = None
    _val_lengths: Sequence[int] = ()

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        self._hold_back_test_sets()

    def _hold_back_test_sets(self) -> None:
        """Splits the validation set in two: what every validation reads, and the test sets.

        Raises:
            DataError: a named step at which verl does not validate, or nothing but test sets to validate on.
        """
        rows = getattr(self.val_dataset, "dataframe", None)
        infos = rows["extra_info"] if rows is not None and "extra_info" in rows.column_names else ()
        test = [number for number, info in enumerate(infos) if is_test_row(info)]
        if not test:
            return
        steps = load_config(self.config.get("care")).test_sets_at_steps
        trainer = self.config.trainer
        try:
            check_test_steps(
                steps,
                test_freq=trainer.test_freq,
                last_step=self.total_training_steps,
                val_before_train=trainer.get("val_before_train", True),
                val_only=trainer.get("val_only", False),
            )
        except ValueError as error:
            raise DataError(str(error)) from None
        held_back = set(test)
        others = [number for number in range(len(self.val_dataset)) if number not in held_back]
        reads_first = trainer.get("val_only", False) or 0 in steps
        if not others and trainer.get("val_before_train", True) and not reads_first:
            raise DataError(
                "data.val_files: holds test sets alone, and trainer.val_before_train=true has nothing to read; add a "
                "development split to data.care.val_sets, or set trainer.val_before_train=false"
            )
        self._test_dataloader = self._build_val_dataloader(test)
        self.val_dataloader = self._build_val_dataloader(others)

    def _build_val_dataloader(self, rows: Sequence[int]) -> StatefulDataLoader:
        """verl's own validation loader over some of the rows."""
        data = self.config.data
        return StatefulDataLoader(
            dataset=Subset(self.val_dataset, rows),
            batch_size=data.val_batch_size or max(1, len(rows)),
            num_workers=data["dataloader_num_workers"],
            shuffle=bool(data.get("validation_shuffle", True) and rows),
            drop_last=False,
            collate_fn=collate_fn,
        )

    def _validate(self) -> dict[str, float]:
        metrics = self._validate_on(self.val_dataloader)
        if self._test_dataloader is not None and is_test_step(
            load_config(self.config.get("care")).test_sets_at_steps,
            self.global_steps,
            self.total_training_steps,
            val_only=self.config.trainer.get("val_only", False),
        ):
            test_metrics = self._validate_on(self._test_dataloader, dump_to="test_sets")
            for key, value in test_metrics.items():
                section, _, rest = key.partition("/")
                source, _, name = rest.partition("/")
                # A data set whose development split and test set share a name.
                metrics[f"{section}/{source}_test/{name}" if key in metrics else key] = value
            metrics["care/test_sets/readings"] = record_reading(
                self.config.trainer.default_local_dir, self.global_steps
            )
        return metrics

    def _validate_on(self, loader: StatefulDataLoader, dump_to: str | None = None) -> dict[str, float]:
        """One of verl's validations over one of the two loaders; ``dump_to`` names a folder of its own for dumps."""
        if not len(loader.dataset):
            return {}
        trainer = self.config.trainer
        usual = self.val_dataloader, trainer.get("validation_data_dir", None)
        self.val_dataloader = loader
        try:
            with self._recorded_lengths(), open_dict(trainer):
                if usual[1] and dump_to:
                    # One file a step in verl, which the second validation of a step would overwrite.
                    trainer.validation_data_dir = os.path.join(usual[1], dump_to)
                return super()._validate()
        finally:
            self.val_dataloader = usual[0]
            if usual[1]:
                trainer.validation_data_dir = usual[1]

    @contextmanager
    def _recorded_lengths(self) -> Iterator[None]:
        """Notes the response lengths of what the replay buffer hands out; verl drops them before the metrics."""
        lengths: list[int] = []
        self._val_lengths = lengths
        sample = self.replay_buffer.sample

        def recording(*args: Any, **kwargs: Any) -> Any:
            batch, metrics = sample(*args, **kwargs)
            lengths.extend(final_lengths(batch.keys, batch.tags))
            return batch, metrics

        self.replay_buffer.sample = recording
        try:
            yield
        finally:
            del self.replay_buffer.sample

    def _val_metrics_update(
        self,
        data_sources: list,
        sample_uids: list,
        reward_extra_infos_dict: dict[str, list],
        sample_turns: list,
        expected_acc_counts: dict[tuple[str, str], int] | None = None,
    ) -> dict[str, float]:
        infos = dict(reward_extra_infos_dict)
        if self._val_lengths:
            infos[LENGTH_KEY] = [float(length) for length in self._val_lengths]
        metrics = super()._val_metrics_update(
            data_sources, sample_uids, infos, sample_turns, expected_acc_counts=expected_acc_counts
        )
        # verl counts accuracy alone as core; a length rule is judged by both.
        for key in [key for key in metrics if f"/{LENGTH_KEY}/mean@" in key]:
            metrics[key.replace("val-aux/", "val-core/", 1)] = metrics.pop(key)
        return metrics
