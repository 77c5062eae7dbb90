"""The group `care_tokens`: token selections and their ablations on any recipe, beside the group `care`."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import verl_care.conf
from verl_care.config import load_config

GROUP = Path(verl_care.conf.__path__[0]) / "care_tokens"

CHANGED = {
    "video_ktr": {},
    "ktr_visual": {"video_ktr.signals": ["visual"]},
    "ktr_temporal": {"video_ktr.signals": ["temporal"]},
    "ktr_entropy": {"video_ktr.signals": ["entropy"]},
    "ktr_intersection": {"video_ktr.combine": "intersection"},
    "ktr_random": {"video_ktr.random": True},
    "ktr_published": {
        "video_ktr.difference": "signed",
        "video_ktr.scope": "group",
        "selected_tokens.normalise_by": "selected",
        "selected_tokens.kl": "selected",
    },
    "d3s": {"selected_tokens.normalise_by": "selected"},
    "capo": {"selected_tokens.normalise_by": "selected"},
}
SELECTION = {name: name if name in ("d3s", "capo") else "video_ktr" for name in CHANGED}


def test_every_file_is_tried():
    assert {path.stem for path in GROUP.glob("*.yaml")} == set(CHANGED)


@pytest.mark.parametrize("recipe", ["care_video", "care_demo"])
@pytest.mark.parametrize("tokens", CHANGED)
def test_a_choice_changes_its_own_fields_alone(recipe, tokens, compose_job):
    expected = OmegaConf.create(OmegaConf.to_container(compose_job(f"+recipe={recipe}").care))
    assert expected.token_selection == "none"
    expected.token_selection = SELECTION[tokens]
    for key, value in CHANGED[tokens].items():
        assert OmegaConf.select(expected, key) != value
        OmegaConf.update(expected, key, value)
    chosen = compose_job(f"+recipe={recipe}", f"+care_tokens={tokens}").care
    assert OmegaConf.to_container(chosen) == OmegaConf.to_container(expected)
    load_config(chosen)


def test_ablations_of_care_and_of_tokens_go_together(compose_job):
    config = compose_job("+recipe=care_video", "care=no_effort", "+care_tokens=ktr_random")
    assert config.care.video_ktr.random and config.care.shaping.explore.coefficient == 0.0


def test_video_ktr_is_the_published_run_and_a_word_takes_the_selection_away(compose_job):
    config = compose_job("+recipe=video_ktr")
    assert load_config(config.care).token_selections == ("video_ktr",)
    assert config.actor_rollout_ref.actor.optim.lr == 2e-6 and config.actor_rollout_ref.actor.kl_loss_coef == 0.04
    assert config.reward.reward_manager.name == "video_r1_band" and not config.care.contrast.enabled
    assert "video_holmes_mix" in config.data.train_files
    assert load_config(compose_job("+recipe=video_ktr", "care.token_selection=none").care).token_selections == ()
