"""A row's multi-modal inputs of which the large ones are stored once for all rows of the prompt.

verl stores ``multi_modal_inputs`` in every row, as a value of any type, and reads it as a mapping where a micro-batch
is made (``verl/utils/model.py``, ``extract_multi_modal_inputs``). Here the row holds the small tensors and the name of
the large ones; whoever reads a large one fetches it from TransferQueue, once a process as long as it is remembered.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

PARTITION = "care_media"
"""Partition of TransferQueue with the large tensors; its keys are the uids of prompts."""
LARGE = ("pixel_values", "pixel_values_videos")
"""Inputs that are stored once."""
MEMORY_BYTES = 1 << 30
"""What one process remembers of large inputs, the latest ones, at least one prompt's."""

_remembered: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
_lock = threading.Lock()


class SharedInputs(Mapping[str, Any]):
    """Reads like the ``multi_modal_inputs`` of stock verl.

    Not a ``dict``: TransferQueue would take one apart, and with it the reference.

    Args:
        uid: of the prompt; key of the large tensors.
        small: tensors that the row itself carries.
        large: names of the tensors that are stored once.
    """

    __slots__ = ("_large", "_small", "uid")

    def __init__(self, uid: str, small: dict[str, Any], large: tuple[str, ...]) -> None:
        self.uid = uid
        self._small = small
        self._large = large

    def __reduce__(self) -> tuple:
        return SharedInputs, (self.uid, self._small, self._large)

    def __iter__(self) -> Iterator[str]:
        yield from self._large
        yield from self._small

    def __len__(self) -> int:
        return len(self._small) + len(self._large)

    def __contains__(self, name: object) -> bool:
        return name in self._small or name in self._large

    def __getitem__(self, name: str) -> Any:
        if name in self._large:
            return _fetch(self.uid)[name]
        return self._small[name]

    def __repr__(self) -> str:
        return f"SharedInputs({self.uid}, {list(self)})"


def _fetch(uid: str) -> dict[str, Tensor]:
    """The prompt's large tensors; one fetch at a time, so that a process never has two copies on the way."""
    import transfer_queue as tq

    with _lock:
        if uid in _remembered:
            _remembered.move_to_end(uid)
            return _remembered[uid]
        try:
            data = tq.kv_batch_get(keys=[uid], partition_id=PARTITION)
        except ValueError as error:
            raise ValueError(
                f"prompt {uid}: its pixels are no longer in TransferQueue ({error}); rows that outlive their step need "
                "care.video.once=false"
            ) from error
        _remembered[uid] = {name: _only_row(data[name]) for name in data.keys()}
        while len(_remembered) > 1 and sum(map(_nbytes, _remembered.values())) > MEMORY_BYTES:
            _remembered.popitem(last=False)
        return _remembered[uid]


def _only_row(column: Tensor) -> Tensor:
    return column.unbind()[0]


def _nbytes(inputs: dict[str, Tensor]) -> int:
    return sum(value.nbytes for value in inputs.values())


async def store(uid: str, inputs: Mapping[str, Tensor]) -> None:
    """Put a prompt's large tensors into TransferQueue."""
    import transfer_queue as tq
    from tensordict import TensorDict

    fields = TensorDict({name: value.unsqueeze(0) for name, value in inputs.items()}, batch_size=1)
    await tq.async_kv_batch_put(keys=[uid], partition_id=PARTITION, fields=fields, tags=[{"is_prompt": False}])


async def drop_unused(uids: set[str]) -> set[str]:
    """Remove the large tensors of prompts that no row and no running prompt refers to any more.

    Args:
        uids: prompts whose tensors the caller has stored.

    Returns:
        Those that are still in use.
    """
    if not uids:
        return set()
    import transfer_queue as tq

    partitions = await tq.async_kv_list() or {}
    # verl's keys: the uid for a prompt, uid_session_index for a row.
    in_use = {key.split("_")[0] for name, keys in partitions.items() if name != PARTITION for key in keys}
    if unused := uids - in_use:
        await tq.async_kv_clear(keys=sorted(unused), partition_id=PARTITION)
    return uids & in_use
