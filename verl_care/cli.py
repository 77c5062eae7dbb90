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


@app.command(epilog="Example: verl-care demo --steps 50 --video-dir ~/my_clips -- data.seed=1")
def demo(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Further Hydra overrides for main_ppo; they win.", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimisation steps.")] = 50,
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


class LengthUnit(StrEnum):
    """Units in which a replay can measure verl's dumps."""

    tokens = "tokens"
    words = "words"
    characters = "characters"


@app.command(epilog="Example: verl-care rules alp")
def rules(
    name: Annotated[str | None, typer.Argument(help="One rule: its formula and constants.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the shaping rules and what each does to wrong answers, all-right groups and the order of verdicts."""
    from verl_care.rule_table import main

    raise typer.Exit(main(name, as_json=as_json))


@app.command(epilog="Example: verl-care replay outputs/run --rule care --rule alp:beta=1e-4 --plots plots")
def replay(
    run: Annotated[
        Path, typer.Argument(exists=True, help="A run's folder, its care_rollouts, or verl's rollout_data_dir.")
    ],
    rule: Annotated[
        list[str] | None,
        typer.Option(help="A rule, as name or name:constant=value,…; none, logged. Default: all that need nothing."),
    ] = None,
    fill: Annotated[
        list[str] | None, typer.Option(help="column=value for what a rule needs and the rollouts lack.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(file_okay=False, help="Folder for plots (PNG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer (name or path) that counts the tokens of verl's dumps.")
    ] = None,
    length_unit: Annotated[
        LengthUnit, typer.Option(help="Unit of length for verl's dumps; words and characters need no tokenizer.")
    ] = LengthUnit.tokens,
    correct_threshold: Annotated[float, typer.Option(help="Accuracies above this count as right.")] = 0.1,
    norm_by_std: Annotated[bool, typer.Option(help="verl's algorithm.norm_adv_by_std_in_grpo.")] = True,
) -> None:
    """Show what each shaping rule would have given on the rollouts of a finished run."""
    from verl_care.replay import main

    raise typer.Exit(
        main(
            run,
            rules=rule or (),
            fill=fill or (),
            out=plots,
            as_json=as_json,
            tokenizer=tokenizer,
            length_unit=length_unit.value,
            correct_threshold=correct_threshold,
            norm_by_std=norm_by_std,
        )
    )


@app.command(epilog="Example: verl-care simulate --sweep care.concise_threshold=0.7,0.75,0.8 --figure sweep.png")
def simulate(
    rule: Annotated[
        list[str] | None,
        typer.Option(help="A rule, as name or name:constant=value,…. Default: care, none, video_r1_band, a Kimi form."),
    ] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(help="rule.constant=value,value,…: one run for each value.", show_default=False)
    ] = None,
    set_parameter: Annotated[
        list[str] | None, typer.Option("--set", help="name=value: a parameter of the model.", show_default=False)
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each rule.")] = 3,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one a core.")] = None,
    sensitivity: Annotated[bool, typer.Option(help="Also vary the model's own parameters, for the first rule.")] = True,
    figure: Annotated[Path | None, typer.Option(dir_okay=False, help="Figure to write (PNG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the tables.")] = False,
) -> None:
    """Predict length, accuracy and competence over a training run under shaping rules, in a model of training."""
    from verl_care.simulate import main

    raise typer.Exit(
        main(
            rules=rule or (),
            sweeps=sweep or (),
            parameters=set_parameter or (),
            num_seeds=seeds,
            num_workers=workers,
            sensitivity=sensitivity,
            figure=figure,
            as_json=as_json,
        )
    )


@app.command(epilog="Example: verl-care report outputs/care outputs/naive --baseline outputs/naive --out report")
def report(
    runs: Annotated[list[Path], typer.Argument(exists=True, file_okay=False, help="Folders of runs.")],
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder of the report. Default: report in the first run's.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Run to measure token reduction against. Default: the first."),
    ] = None,
    metrics: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="File of verl's file logger, one a run, for competence."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table's figures as JSON.")] = False,
) -> None:
    """Make one page of runs, finished or going on: lengths, accuracy, stages, rewards, unparsed answers."""
    from verl_care.report.page import main

    raise typer.Exit(main(runs, out_dir=out, baseline=baseline, metrics=metrics or (), as_json=as_json))


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
