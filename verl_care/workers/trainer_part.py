"""What the parts of the trainer hook derive from: verl's trainer for type checkers, nothing at run time.

Importing verl's trainers has the plugin import ``verl_care.workers.trainer``, and that needs the parts: a part that
imported them itself could not be imported first.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer as TrainerPart
else:
    TrainerPart = object
