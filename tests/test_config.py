"""The typed ``care:`` node."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from verl_care.config import CareConfig, Config, load_config


def test_no_node_gives_the_published_defaults():
    assert load_config(None) == Config()
    assert load_config({}).shaping == CareConfig()


def test_values_are_taken_over_from_plain_and_omegaconf_nodes():
    node = {"shaping": {"explore": {"slope": 2.0}, "competence_scope": "replicas(8)"}, "rules": {"alp": {"beta": 0.1}}}
    for config in (load_config(node), load_config(OmegaConf.create(node))):
        assert config.shaping.explore.slope == 2.0 and config.shaping.explore.coefficient == 0.25
        assert config.shaping.num_competences == 8
        assert config.rules == {"alp": {"beta": 0.1}}


@pytest.mark.parametrize(
    ("node", "named"),
    [
        ({"shapping": {}}, "shapping"),
        ({"shaping": {"ema_decay": 1.5}}, "ema_decay"),
        ({"shaping": {"ema_decay": "high"}}, "care.shaping.ema_decay"),
        ({"shaping": {"explore": {"slope": -1}}}, "slope"),
        ({"shaping": {"refine_threshold": 0.9}}, "refine_threshold"),
        ({"shaping": {"competence_scope": "replicas(0)"}}, "competence_scope"),
        ({"shaping": {"competence_scope": "ranks"}}, "competence_scope"),
        ({"shaping": {"fixed_stage": "explode"}}, "fixed_stage"),
        ({"shaping": {"statistics": "rank"}}, "statistics"),
        ({"on_missing_state": "maybe"}, "on_missing_state"),
        ({"scoring": "kind"}, "scoring"),
        ({"contrast": {"bonus": -0.3}}, "bonus"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_key(node, named):
    with pytest.raises(ValueError) as error:
        load_config(node)
    assert str(error.value).startswith("care") and named in str(error.value) and "\n" not in str(error.value)


def test_config_imports_neither_torch_nor_verl():
    code = "import sys, verl_care.config as c; c.load_config({}); print('torch' in sys.modules, 'verl' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
