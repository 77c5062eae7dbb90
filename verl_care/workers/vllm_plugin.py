"""Entry point of the group ``vllm.general_plugins``: real seconds for videos of Qwen2.5-VL, where it is asked for.

vLLM calls it in each of its processes, also where nobody uses verl_care: it then changes nothing and imports nothing.
"""


def register() -> None:
    """With ``VERL_CARE_POSITIONS=seconds``, put a model that keeps the videos' metadata in the place of vLLM's own."""
    from verl_care.workers.positions import SECONDS, positions_of_process

    if positions_of_process() != SECONDS:
        return
    from vllm import ModelRegistry

    name = "Qwen2_5_VLForConditionalGeneration"
    # By name: vLLM imports the module in the process that builds the model.
    ModelRegistry.register_model(name, f"verl_care.workers.vllm_models:{name}")
