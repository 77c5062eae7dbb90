"""The group `care_methods`: methods beside shaping and token selection, and their ablations, on any recipe."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import verl_care.conf
from verl_care.config import load_config

GROUP = Path(verl_care.conf.__path__[0]) / "care_methods"

CHANGED = {
    "siri": {"siri.enabled": True},
    "siri_stair": {"siri.enabled": True, "siri.schedule": "stair"},
    "annealing": {"annealing.enabled": True},
    "favchat": {"favchat.enabled": True},
    "favchat_keep_useful": {"favchat.enabled": True, "favchat.cool_above": 1.0},
    "bapo": {"bapo.enabled": True},
    "bapo_code": {
        "bapo.enabled": True,
        "bapo.target_share": 0.5,
        "bapo.order": "low_first",
        "bapo.weight": "none",
    },
    "bapo_gradient": {"bapo.enabled": True, "bapo.contribution": "gradient"},
    "contrast_paper": {"contrast.factor": 1.0},
    "contrast_margin": {"contrast.factor": 1.0, "contrast.margin": 0.1},
}


@pytest.fixture(scope="module")
def plain(compose_job):
    return OmegaConf.to_container(compose_job("+recipe=care_video").care)


def test_every_file_is_tried():
    assert {path.stem for path in GROUP.glob("*.yaml")} == set(CHANGED)


@pytest.mark.parametrize("method", CHANGED)
def test_a_choice_changes_its_own_fields_alone(method, plain, compose_job):
    expected = OmegaConf.create(plain)
    for key, value in CHANGED[method].items():
        assert OmegaConf.select(expected, key) != value
        OmegaConf.update(expected, key, value)
    chosen = compose_job("+recipe=care_video", f"+care_methods={method}").care
    assert OmegaConf.to_container(chosen) == OmegaConf.to_container(expected)
    load_config(chosen)


def test_methods_go_together_and_with_ablations_of_care_and_of_tokens(compose_job):
    words = ("care=no_effort", "+care_tokens=ktr_random", "+care_methods=[siri,annealing,favchat,bapo]")
    config = load_config(compose_job("+recipe=care_demo", *words).care)
    assert config.siri.enabled and config.annealing.enabled and config.favchat.enabled and config.bapo.enabled
    assert config.video_ktr.random and config.shaping.explore.coefficient == 0.0
