"""The reward manager ``care``."""

from __future__ import annotations

from verl.experimental.reward_loop.reward_manager import register

from verl_care.config import Config
from verl_care.reward_manager.base import CareRewardManagerBase
from verl_care.shaping.base import Rule
from verl_care.shaping.care import CareRule


@register("care")
class CareRewardManager(CareRewardManagerBase):
    """Competence-aware reward shaping (arXiv 2606.19927), with the constants of ``care.shaping``."""

    rule_name = "care"

    @classmethod
    def build_rule(cls, config: Config) -> Rule:
        return CareRule(config=config.shaping)
