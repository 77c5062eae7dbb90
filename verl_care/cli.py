"""The command ``verl-care``. Exit status: 0, 1 when the work failed, 2 for a wrong call.

Commands import what they need when they run, so that ``--help`` answers at once.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from verl_care import __version__

app = typer.Typer(
    name="verl-care",
    help="CARE, competence-aware reward shaping for video MLLMs, on stock verl.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"verl-care {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: verl-care doctor --json")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look at this install: versions, plugin, registries, recipes, video reader, GPU, Ray. 1 where something fails."""
    from verl_care.doctor import main

    raise typer.Exit(main(as_json=as_json))


class Engine(StrEnum):
    """Rollout engines that the demo can use."""

    hf = "hf"
    vllm = "vllm"


@app.command(epilog="Example: verl-care demo --steps 40 --video-dir ~/my_clips -- data.seed=1")
def demo(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Further Hydra overrides for main_ppo; they win.", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimisation steps.")] = 40,
    engine: Annotated[Engine, typer.Option(help="Rollout engine: transformers, or vLLM where it is installed.")] = (
        Engine.hf
    ),
    manager: Annotated[str, typer.Option(help="Reward manager: care, naive, dapo, or the name of a rule.")] = "care",
    video_dir: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder with mp4 files of your own, to ask about instead."),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for what the run leaves. Default: outputs/care_demo/<date>."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of assets and run.")] = 0,
    assets_only: Annotated[bool, typer.Option("--assets-only", help="Make clips and model, and stop there.")] = False,
) -> None:
    """Train a tiny video model with CARE on this machine, through verl's own main_ppo, and draw the curve."""
    from verl_care.demo import run_demo

    raise typer.Exit(
        run_demo(
            steps=steps,
            engine=engine.value,
            manager=manager,
            video_dir=video_dir,
            out_dir=out_dir,
            seed=seed,
            assets_only=assets_only,
            overrides=overrides or (),
        )
    )


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
