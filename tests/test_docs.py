"""What the documents name exists: functions, config fields, tests, files."""

import importlib
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from verl_care.config import Config

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/**/*.md")]
METHOD_MAP = (ROOT / "docs" / "method_map.md").read_text()
FIELDS = OmegaConf.structured(Config)


def named(pattern: str, text: str = METHOD_MAP) -> list[str]:
    found = sorted(set(re.findall(pattern, text)))
    assert found
    return found


@pytest.mark.parametrize("name", named(r"`(verl_care\.[\w.]+)`"))
def test_function_exists(name):
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            target = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        break
    for part in parts[cut:]:
        target = getattr(target, part)
    assert callable(target)


@pytest.mark.parametrize("field", named(r"`care\.([\w.]+)`"))
def test_field_exists(field):
    node = FIELDS
    for part in field.split("."):
        assert part in node
        node = node[part]


@pytest.mark.parametrize("test", named(r"`(tests/[\w/]+\.py::\w+)`"))
def test_test_exists(test):
    path, name = test.split("::")
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_choices_of_config_groups_exist(document):
    for group, choice in re.findall(r"\b(care|care_\w+|recipe)(?:@_global_)?=(\w+)", document.read_text()):
        assert (ROOT / "conf" / group / f"{choice}.yaml").exists(), f"{group}={choice}"


def test_make_targets_of_the_documents_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        # A command, not the verb: in a code block or between backquotes.
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text(), re.MULTILINE):
            assert target in targets, f"{document}: make {target}"


RECIPES = sorted(path.stem for path in (ROOT / "conf" / "recipe").glob("*.yaml") if not path.stem.startswith("val_"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_its_folder_and_its_line(recipe):
    assert (ROOT / "recipes" / recipe / "README.md").exists()
    assert (ROOT / "recipes" / recipe / "run.sh").stat().st_mode & 0o111
    assert f"[{recipe}]({recipe}/README.md)" in (ROOT / "recipes" / "README.md").read_text()


def test_every_validation_set_has_its_line():
    table = (ROOT / "recipes" / "README.md").read_text()
    for path in (ROOT / "conf" / "recipe").glob("val_*.yaml"):
        assert f"| `{path.stem}` |" in table, path


def test_every_choice_is_in_the_table_of_recipes():
    table = (ROOT / "recipes" / "README.md").read_text()
    for path in (ROOT / "conf").glob("care*/*.yaml"):
        row = re.search(rf"^\| `{path.parent.name}` \| (.*?) \|", table, re.MULTILINE).group(1)
        assert path.stem in row.split(", "), path
