"""What vLLM's CPU backend needs inside a rollout server of verl: an entry point of the group ``vllm.general_plugins``.

vLLM calls it in each of its processes. It changes nothing where verl does not run on the CPU platform.
"""

import os


def register() -> None:
    """Keep Linear weights in place, so that verl can load new ones into them at every step.

    With oneDNN, vLLM packs the weight of each Linear layer when it has loaded it, and leaves an empty tensor in its
    place (`vllm/model_executor/layers/utils.py`, `dispatch_cpu_unquantized_gemm`). The next load then fails in the
    engine while the trainer waits for it for ever. Without oneDNN the layer calls `torch.nn.functional.linear` on the
    weight itself.
    """
    # Set for rollout servers by the CPU platform: a GPU, or vLLM used by itself, is left alone.
    if os.environ.get("VERL_PLATFORM") != "cpu":
        return
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm import _custom_ops

    _custom_ops._supports_onednn = False
