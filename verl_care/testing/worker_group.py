"""Stand-ins for what a trainer talks to: the actor's worker group and the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta


class ByteTokenizer:
    """One token a UTF-8 byte: id = byte + 3; 0 pads, 1 ends."""

    pad_token_id = 0
    eos_token_id = 1

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without EOS."""
        return [byte + 3 for byte in text.encode()]

    def decode(self, token_ids: Any, skip_special_tokens: bool = True) -> str:
        """Text of token ids; ids that stand for no byte are left out."""
        return bytes(int(i) - 3 for i in token_ids if 3 <= int(i) < 259).decode(errors="replace")

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = True) -> list[str]:
        """Text of each sequence."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]


class MockWorkerGroup:
    """Worker group of an actor that is no model: log-probabilities follow from token ids and the weights' version.

    Reads and writes the real TransferQueue in this process as verl's workers do through ``tqbridge``: it fetches the
    fields named in ``batch.fields`` (all of them for None), so that a field put after the batch's last put is not seen.

    Args:
        dp_size: data-parallel ranks, which a batch's number of rows must divide by.
    """

    def __init__(self, dp_size: int = 2) -> None:
        self._dispatch_info = {"actor": list(range(dp_size))}
        self.dp_size = dp_size
        self.version = 0
        """Updates that the weights have seen."""
        self.calls: list[tuple[str, Any]] = []
        """What was called, in order: the method's name and its first argument."""
        self.trained: list[dict[str, dict[str, Any]]] = []
        """Rows that each ``update_actor`` saw: ``{row key: {field: value}}``."""
        self._saved: dict[int, int] = {}

    @property
    def world_size(self) -> int:
        return self.dp_size

    def compute_log_prob(self, batch: KVBatchMeta) -> KVBatchMeta:
        """Puts ``log_probs`` and ``entropy`` for every token of every row; ``sum_pi_squared`` where it is asked for."""
        return self._forward("compute_log_prob", batch, self.version)

    def compute_ref_log_prob(self, batch: KVBatchMeta) -> KVBatchMeta:
        """Puts ``log_probs`` of weights at version 0."""
        return self._forward("compute_ref_log_prob", batch, 0)

    def compute_counterfactual_log_prob(self, batch: KVBatchMeta) -> KVBatchMeta:
        """Puts log-probabilities of the responses without the picture, or on shuffled frames, as the batch asks for.

        Taking the picture away costs the second token of a response 1, the fourth 2, the sixth 3 and so on; another
        order of the frames gives the last token 1 more. All other tokens stay as they are.
        """
        from verl.workers.utils.padding import response_from_nested

        from verl_care.workers.counterfactual import REQUEST, output_field

        self.calls.append(("compute_counterfactual_log_prob", batch))
        self._check(batch)
        kind = batch.extra_info[REQUEST]["kind"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=batch.fields)
        changed = []
        for row in response_from_nested(self._log_probs(data["input_ids"], self.version), data["response_mask"]):
            row = row.clone()
            if kind == "visual":
                row[1::2] -= torch.arange(1, len(row[1::2]) + 1)
            else:
                row[-1] += 1.0
            changed.append(row)
        return self._put(batch, {output_field(kind): torch.nested.as_nested_tensor(changed, layout=torch.jagged)})

    def update_actor(self, batch: KVBatchMeta) -> dict[str, Any]:
        """Notes the rows it would train on and counts the weights' version up."""
        from verl_care.testing.rows import read_rows

        self.calls.append(("update_actor", batch))
        self._check(batch)
        self.trained.append(read_rows(batch, *(batch.fields or ())))
        self.version += 1
        return {"metrics": {"mfu": [0.0], "pg_loss": [0.0], "grad_norm": [1.0]}}

    def save_checkpoint(self, local_path: str, remote_path: Any = None, global_step: int = 0, **_: Any) -> None:
        """Writes the weights' version."""
        self.calls.append(("save_checkpoint", local_path))
        folder = Path(local_path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "version.txt").write_text(str(self.version))

    def load_checkpoint(self, local_path: str, **_: Any) -> None:
        """Reads what ``save_checkpoint`` wrote."""
        self.calls.append(("load_checkpoint", local_path))
        self.version = int((Path(local_path) / "version.txt").read_text())

    def save_model_to_cpu(self, n: int) -> None:
        """Keeps the present weights under a number."""
        self.calls.append(("save_model_to_cpu", n))
        self._saved[n] = self.version

    def restore_model_from_cpu(self, n: int) -> None:
        """Takes kept weights back."""
        self.calls.append(("restore_model_from_cpu", n))
        self.version = self._saved[n]

    def clear_cpu_model(self, n: int) -> None:
        """Forgets kept weights."""
        self.calls.append(("clear_cpu_model", n))
        del self._saved[n]

    def _forward(self, name: str, batch: KVBatchMeta, version: int) -> KVBatchMeta:
        self.calls.append((name, batch))
        self._check(batch)
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=batch.fields)
        log_probs = self._log_probs(data["input_ids"], version)
        output = {"log_probs": log_probs, "entropy": -log_probs}
        if batch.extra_info.get("calculate_sum_pi_squared"):
            # As if what a token leaves were spread over a vocabulary without end.
            output["sum_pi_squared"] = (2 * log_probs).exp()
        return self._put(batch, output)

    @staticmethod
    def _log_probs(input_ids: torch.Tensor, version: int) -> torch.Tensor:
        """A number for every token, jagged as ``input_ids``."""
        rows = [-0.1 - 0.05 * (ids % 7).float() - 0.01 * version for ids in input_ids.unbind(0)]
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    @staticmethod
    def _put(batch: KVBatchMeta, fields: dict[str, torch.Tensor]) -> KVBatchMeta:
        return tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(fields, batch_size=len(batch))
        )

    def _check(self, batch: KVBatchMeta) -> None:
        if len(batch) % self.dp_size:
            raise ValueError(f"{len(batch)} rows do not divide among {self.dp_size} data-parallel ranks")
