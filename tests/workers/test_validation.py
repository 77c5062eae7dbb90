"""Validation of our trainers: which rows a step reads, and lengths beside accuracy."""

from types import SimpleNamespace

import datasets
import pytest
from omegaconf import OmegaConf
from torch.utils.data import Dataset
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from verl_care.data.records import DataError
from verl_care.workers.trainer import CarePPOTrainerSync
from verl_care.workers.validation import final_lengths


class Rows(Dataset):
    def __init__(self, *rows):
        self.dataframe = datasets.Dataset.from_list(
            [
                {"data_source": source, "extra_info": {"index": i, "split": split}}
                for i, (source, split) in enumerate(rows)
            ]
        )

    def __len__(self):
        return len(self.dataframe)

    def __getitem__(self, item):
        return self.dataframe[item]


class ReplayBuffer:
    """Hands out one session of two outputs for each row, of 3 and 5 + index tokens."""

    def sample(self, rows):
        keys = [f"{row['extra_info']['index']}_0_{output}" for row in rows for output in (0, 1)]
        lengths = [length for row in rows for length in (3, 5 + row["extra_info"]["index"])]
        return SimpleNamespace(keys=keys, tags=[{"response_len": length} for length in lengths]), {}


def validate(self):
    """What verl's `_validate` does with loader, replay buffer and metrics, without a rollout."""
    rows = [row for batch in self.val_dataloader for row in batch]
    self.dumps.append(self.config.trainer.validation_data_dir)
    self.replay_buffer.sample(rows)
    return self._val_metrics_update(
        [row["data_source"] for row in rows],
        [str(row["extra_info"]["index"]) for row in rows],
        {"reward": [1.0] * len(rows), "acc": [float(row["extra_info"]["index"] % 2) for row in rows]},
        [2] * len(rows),
    )


@pytest.fixture
def make_trainer(monkeypatch, tmp_path):
    monkeypatch.setattr(PPOTrainer, "_validate", validate)
    monkeypatch.setattr("verl_care.workers.validation.collate_fn", lambda rows: rows)

    def make_trainer(*rows, **changes):
        trainer = CarePPOTrainerSync.__new__(CarePPOTrainerSync)
        settings = {"test_freq": 10, "val_before_train": False, "validation_data_dir": str(tmp_path / "dumps")}
        trainer.config = OmegaConf.create(
            {
                "care": {"test_sets_at_steps": changes.pop("steps", ["last"])},
                "data": {"val_batch_size": None, "dataloader_num_workers": 0, "validation_shuffle": False},
                "trainer": {**settings, "default_local_dir": str(tmp_path / "run"), **changes},
            }
        )
        trainer.total_training_steps = 40
        trainer.replay_buffer = ReplayBuffer()
        trainer.dumps = []
        trainer.val_dataset = Rows(*rows)
        trainer.val_dataloader = trainer._build_val_dataloader(range(len(rows)))
        trainer._hold_back_test_sets()
        return trainer

    return make_trainer


MIXED = [("video_r1", "dev"), ("mvbench", "test"), ("video_r1", "dev"), ("longvideobench", "validation")]


def sources(metrics):
    return {key.split("/")[1] for key in metrics if key.startswith("val-core/")}


def at(trainer, step):
    trainer.global_steps = step
    return trainer._validate()


def test_steps_that_are_not_named_read_the_development_split(make_trainer, tmp_path):
    trainer = make_trainer(*MIXED)
    metrics = at(trainer, 10)
    assert sources(metrics) == {"video_r1"}
    assert "care/test_sets/readings" not in metrics
    assert not (tmp_path / "run").exists()


def test_the_named_step_reads_all_and_counts_it(make_trainer, tmp_path):
    trainer = make_trainer(*MIXED, steps=[20, "last"])
    first, last = at(trainer, 20), at(trainer, 40)
    assert sources(first) == sources(last) == {"video_r1", "mvbench", "longvideobench"}
    assert (first["care/test_sets/readings"], last["care/test_sets/readings"]) == (1, 2)
    # Two dumps a step, in two folders.
    assert trainer.dumps == [str(tmp_path / "dumps"), str(tmp_path / "dumps" / "test_sets")] * 2
    assert trainer.config.trainer.validation_data_dir == str(tmp_path / "dumps")


def test_lengths_of_final_outputs_stand_beside_accuracy(make_trainer):
    metrics = at(make_trainer(*MIXED), 40)
    # Rows 0 and 2; 5 + index tokens in the second output, which is the session's final one.
    assert metrics["val-core/video_r1/response_length/mean@1"] == 6.0
    assert metrics["val-core/mvbench/response_length/mean@1"] == 6.0
    assert metrics["val-core/longvideobench/response_length/mean@1"] == 8.0
    assert metrics["val-core/mvbench/acc/mean@1"] == 1.0
    assert "val-aux/mvbench/response_length/mean@1" not in metrics


def test_a_name_of_both_splits_keeps_them_apart(make_trainer):
    metrics = at(make_trainer(("nextgqa", "dev"), ("nextgqa", "test")), 40)
    assert metrics["val-core/nextgqa/acc/mean@1"] == 0.0
    assert metrics["val-core/nextgqa_test/acc/mean@1"] == 1.0


def test_without_test_sets_nothing_changes(make_trainer):
    trainer = make_trainer(("video_r1", "dev"), ("mine", None), test_freq=-1)
    assert sources(at(trainer, 40)) == {"video_r1", "mine"}


def test_test_sets_alone_are_read_at_their_step(make_trainer):
    trainer = make_trainer(("mvbench", "test"))
    assert at(trainer, 10) == {}
    assert sources(at(trainer, 40)) == {"mvbench"}


def test_a_validation_that_would_have_nothing_to_read_is_an_error(make_trainer):
    with pytest.raises(DataError, match="test sets alone"):
        make_trainer(("mvbench", "test"), val_before_train=True)
    make_trainer(("mvbench", "test"), val_before_train=True, steps=[0])


def test_a_named_step_at_which_verl_does_not_validate_is_an_error(make_trainer):
    with pytest.raises(DataError, match="care.test_sets_at_steps: 15"):
        make_trainer(*MIXED, steps=[15])


def test_final_lengths_come_in_the_order_of_verls_sessions():
    keys = ["u1_0_0", "u2_0_0", "u1_0_1", "u2_1_0"]
    tags = [{"response_len": length} for length in (1, 2, 3, 4)]
    # u1's final output stands third.
    assert final_lengths(keys, tags) == [2, 3, 4]
