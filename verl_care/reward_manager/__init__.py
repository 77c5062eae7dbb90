"""Reward managers ``care`` and each rule by its name; importing this package registers them with verl's reward loop."""

from verl.experimental.reward_loop.reward_manager import register

from verl_care.reward_manager.base import CareRewardManagerBase
from verl_care.reward_manager.care import CareRewardManager
from verl_care.shaping import list_rules

__all__ = ["CareRewardManager", "CareRewardManagerBase"]

for _name in list_rules():
    if _name != CareRewardManager.rule_name:
        _class_name = "".join(part.capitalize() for part in _name.split("_")) + "RewardManager"
        register(_name)(type(_class_name, (CareRewardManagerBase,), {"rule_name": _name, "__module__": __name__}))
