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


@app.command(epilog="Example: verl-care prepare video_r1 --source Video-R1-data --videos Video-R1-data")
def prepare(
    name: Annotated[str | None, typer.Argument(help="Data set; --list names them.", show_default=False)] = None,
    source: Annotated[
        Path | None, typer.Option(exists=True, help="Published file, or the folder that was downloaded.")
    ] = None,
    videos: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of the clips. Default: the source's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder to write. Default: $VERL_CARE_DATA_DIR/NAME.")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="key=value: an option of the data set; --list shows them.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Wording: video_r1, video_rts or temporal_rlt.")] = None,
    dev: Annotated[
        int | None, typer.Option(min=0, help="Records of the development split. Default: up to 500.")
    ] = None,
    dev_fraction: Annotated[float | None, typer.Option(min=0, max=0.99, help="The same, as a share.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the development split.")] = 0,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Leave out faulty records and clips, listed in the folder.")
    ] = False,
    max_errors: Annotated[int, typer.Option(min=0, help="Faulty records to collect before giving up.")] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a training set that overlaps an evaluation set.")
    ] = False,
    against: Annotated[
        list[Path] | None,
        typer.Option(exists=True, help="Prepared file or folder to compare with, besides those beside the output."),
    ] = None,
    ignore_column: Annotated[list[str] | None, typer.Option(help="An unknown column to let pass.")] = None,
    probe: Annotated[bool, typer.Option(help="Look at every clip.")] = True,
    min_seconds: Annotated[float, typer.Option(min=0, help="Shorter clips are listed.")] = 0.0,
    max_seconds: Annotated[float | None, typer.Option(min=0, help="Longer clips are listed.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that look at clips. Default: one a core.")] = None,
    probe_cache: Annotated[
        Path | None, typer.Option(dir_okay=False, help="File of what was found about clips. Default: in the output.")
    ] = None,
    list_sets: Annotated[bool, typer.Option("--list", help="List the data sets and their options.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest, or the list, as JSON.")] = False,
) -> None:
    """Turn a published data set into checked records for verl. 1 where records or clips are faulty."""
    from verl_care.data.prepare.command import list_preparers, main

    if list_sets:
        raise typer.Exit(list_preparers(as_json=as_json))
    if name is None or source is None:
        raise typer.BadParameter("give NAME and --source, or --list")
    if dev is not None and dev_fraction is not None:
        raise typer.BadParameter("give --dev or --dev-fraction, not both")
    pairs = [option.partition("=") for option in options or ()]
    if not all(key and equals for key, equals, _ in pairs):
        raise typer.BadParameter("--set: write key=value")
    raise typer.Exit(
        main(
            name,
            source=source,
            videos=videos,
            out=out,
            options={key: value for key, _, value in pairs},
            prompt=prompt,
            dev=dev,
            dev_fraction=dev_fraction,
            seed=seed,
            quarantine=quarantine,
            max_errors=max_errors,
            strict=strict,
            against=against or (),
            ignore_columns=ignore_column or (),
            probe=probe,
            min_seconds=min_seconds,
            max_seconds=max_seconds,
            workers=workers,
            probe_cache=probe_cache,
            as_json=as_json,
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
    like: Annotated[
        Path | None,
        typer.Option(exists=True, help="A run: the model begins with its batch, lengths and accuracy.", metavar="RUN"),
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
            like=like,
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


class EvalEngine(StrEnum):
    """Engines that answer benchmarks."""

    hf = "hf"
    vllm = "vllm"


class Positions(StrEnum):
    """How the videos of Qwen2.5-VL are placed in time."""

    seconds = "seconds"
    stock = "stock"


class Strategy(StrEnum):
    """How a question is asked."""

    single = "single"
    sparse_to_dense = "sparse_to_dense"


class Vote(StrEnum):
    """Answers that count where no level agrees: of the last level, or of all."""

    last = "last"
    pooled = "pooled"


@app.command(
    name="eval", epilog="Example: verl-care eval outputs/run vsi_bench/test.parquet --out eval/run --baseline eval/base"
)
def evaluate(
    model: Annotated[str, typer.Argument(help="Hugging Face folder or name, or a checkpoint or run folder of verl.")],
    data: Annotated[list[str], typer.Argument(help="Prepared Parquet files, or folders with test.parquet.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the run; a killed run goes on from there.")],
    engine: Annotated[EvalEngine, typer.Option(help="hf: transformers; vllm: vLLM offline.")] = EvalEngine.hf,
    seeds: Annotated[str, typer.Option(help="One answer an item for each: 0,1,2. Needs a temperature above 0.")] = "0",
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy. sparse_to_dense has its own.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    frames: Annotated[int | None, typer.Option(min=2, help="Frames of a video at most. Default: as recorded.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second before that cap. Default: as recorded.")] = None,
    min_pixels: Annotated[int | None, typer.Option(help="Pixels of a frame at least. Default: as recorded.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Pixels of a frame at most. Default: as recorded.")] = None,
    option_seed: Annotated[int | None, typer.Option(help="Order of the options of multiple-choice questions.")] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Also ask every question without its clip.")] = False,
    baseline: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of the run to compare with.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First so many items of each benchmark.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers that transformers generates at once.")] = 16,
    max_model_len: Annotated[
        int | None, typer.Option(help="Tokens of prompt and answer. Default: the model's.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, … Default: by device and checkpoint.")] = None,
    positions: Annotated[Positions, typer.Option(help="How Qwen2.5-VL's videos are placed; train alike.")] = (
        Positions.seconds
    ),
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="GPUs a copy is spread over (vllm).")] = 1,
    replicas: Annotated[int, typer.Option(min=1, help="Copies of the model, spread over GPUs by Ray.")] = 1,
    strategy: Annotated[Strategy, typer.Option(help="Ask once, or at more frames where answers disagree.")] = (
        Strategy.single
    ),
    levels: Annotated[str, typer.Option(help="Frames of the levels of sparse_to_dense.")] = "32,64,128",
    samples: Annotated[int, typer.Option(min=1, help="Answers a question and level.")] = 5,
    threshold: Annotated[float, typer.Option(help="Share of them that must agree; 1 is unanimity.")] = 1.0,
    vote: Annotated[Vote, typer.Option(help="What counts where no level agrees.")] = Vote.last,
    compare: Annotated[bool, typer.Option(help="Also run what sparse_to_dense is compared with.")] = True,
    write_every: Annotated[
        int | None, typer.Option(min=1, help="Answers asked and written at a time. Default: 64; vllm: 128.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again what failed before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Score a checkpoint on benchmarks: official scores with intervals, tokens, a comparison with a baseline run."""
    from verl_care.evaluation.engines import EngineConfig
    from verl_care.evaluation.evaluate import EvalConfig, main
    from verl_care.evaluation.sparse_to_dense import SparseToDense

    try:
        course = None
        if strategy is Strategy.sparse_to_dense:
            course = SparseToDense(
                frames=_numbers(levels, "--levels"),
                samples=samples,
                threshold=threshold,
                vote=vote.value,
                max_tokens=max_tokens,
            )
        config = EvalConfig(
            engine=EngineConfig(
                model=model,
                name=engine.value,
                batch_size=batch_size,
                max_model_len=max_model_len,
                dtype=dtype,
                positions=positions.value,
                tensor_parallel_size=tensor_parallel_size,
                replicas=replicas,
            ),
            data=tuple(data),
            out_dir=str(out),
            seeds=_numbers(seeds, "--seeds"),
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            max_frames=frames,
            fps=fps,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            option_seed=option_seed,
            blind=blind,
            baseline=None if baseline is None else str(baseline),
            limit=limit,
            batch_size=write_every or (64 if engine is EvalEngine.hf else 128),
            retry_failed=retry_failed,
            strategy=course,
            compare_strategies=compare,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(main(config, as_json=as_json))


class Balance(StrEnum):
    """How a budget is shared among data sources and problem types."""

    proportional = "proportional"
    equal = "equal"


class Scoring(StrEnum):
    """Which accuracy counts."""

    strict = "strict"
    lenient = "lenient"


@app.command(
    epilog="Example: verl-care select train.parquet --model Qwen/Qwen2.5-VL-7B-Instruct --keep 32000 --out kept"
)
def select(
    data: Annotated[list[str], typer.Argument(help="Parquet files of records.")],
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder of the selection; a killed one goes on from there.")
    ],
    model: Annotated[str | None, typer.Option(help="Model to ask: a Hugging Face folder or name, or verl's.")] = None,
    from_run: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Training run whose rollouts to read instead.")
    ] = None,
    first_step: Annotated[int, typer.Option(help="Of that run's rollouts: none of earlier steps.")] = 0,
    last_step: Annotated[int | None, typer.Option(help="Of that run's rollouts: none of later steps.")] = None,
    runs: Annotated[int, typer.Option("--runs", "-k", min=1, help="Answers a record.")] = 8,
    keep: Annotated[int | None, typer.Option(min=1, help="Records to keep at most. Default: all that pass.")] = None,
    balance: Annotated[
        Balance, typer.Option(help="How that is shared among sources and types.")
    ] = Balance.proportional,
    min_pass_rate: Annotated[float, typer.Option(help="Questions: the share of right runs is above this.")] = 0.0,
    max_pass_rate: Annotated[float, typer.Option(help="Questions: the share of right runs is below this.")] = 1.0,
    min_variance: Annotated[float, typer.Option(help="Spans: the variance of the IoU is at least this.")] = 0.0,
    variance_quantile: Annotated[float | None, typer.Option(help="Spans: … or at least this quantile of all.")] = None,
    correct_threshold: Annotated[float, typer.Option(help="Questions: a run is right from this accuracy on.")] = 0.5,
    min_runs: Annotated[int, typer.Option(min=1, help="Records with fewer runs are dropped.")] = 2,
    seed: Annotated[int, typer.Option(help="Of answers and of the draw inside a budget.")] = 0,
    scoring: Annotated[Scoring, typer.Option(help="Which accuracy counts.")] = Scoring.strict,
    engine: Annotated[EvalEngine, typer.Option(help="hf: transformers; vllm: vLLM offline.")] = EvalEngine.hf,
    replicas: Annotated[int, typer.Option(min=1, help="Copies of the model, spread over GPUs by Ray.")] = 1,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="GPUs a copy is spread over (vllm).")] = 1,
    temperature: Annotated[float, typer.Option(help="Of the answers; above 0.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    frames: Annotated[int | None, typer.Option(min=2, help="Frames of a video at most. Default: as recorded.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second before that cap. Default: as recorded.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Pixels of a frame at most. Default: as recorded.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers that transformers generates at once.")] = 16,
    write_every: Annotated[
        int | None, typer.Option(min=1, help="Answers asked and written at a time. Default: 64; vllm: 128.")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Tokens of prompt and answer. Default: the model's.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again what failed before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Keep the records on which several answers of a model differ: a subset, a score table and a page."""
    from verl_care.data.selection import KeepRules
    from verl_care.evaluation.engines import EngineConfig
    from verl_care.evaluation.select_records import SelectConfig, main

    try:
        rules = KeepRules(
            min_runs=min_runs,
            correct_threshold=correct_threshold,
            min_pass_rate=min_pass_rate,
            max_pass_rate=max_pass_rate,
            min_variance=min_variance,
            variance_quantile=variance_quantile,
            keep=keep,
            balance=balance.value,
            seed=seed,
        )
        asked = model and EngineConfig(
            model=model,
            name=engine.value,
            batch_size=batch_size,
            max_model_len=max_model_len,
            tensor_parallel_size=tensor_parallel_size,
            replicas=replicas,
        )
        config = SelectConfig(
            data=tuple(data),
            out_dir=str(out),
            rules=rules,
            engine=asked or None,
            run_dir=None if from_run is None else str(from_run),
            first_step=first_step,
            last_step=last_step,
            runs=runs,
            temperature=temperature,
            max_tokens=max_tokens,
            scoring=scoring.value,
            max_frames=frames,
            fps=fps,
            max_pixels=max_pixels,
            batch_size=write_every or (64 if engine is EvalEngine.hf else 128),
            retry_failed=retry_failed,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(main(config, as_json=as_json))


@app.command(
    epilog="Example: verl-care calibrate train.parquet --model my_sft_checkpoint --engine vllm --steps 2000 "
    "--out calibration"
)
def calibrate(
    data: Annotated[list[str] | None, typer.Argument(help="Parquet files of records; with --model.")] = None,
    model: Annotated[str | None, typer.Option(help="Start checkpoint: a Hugging Face folder or name, or verl's.")] = (
        None
    ),
    from_run: Annotated[
        Path | None, typer.Option(exists=True, help="Read the first rollouts of this run instead; asks no model.")
    ] = None,
    first_step: Annotated[int, typer.Option(help="Of that run's rollouts: none of earlier steps.")] = 0,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts.")] = 200,
    runs: Annotated[int, typer.Option("--runs", "-k", min=1, help="Responses a prompt.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the planned run.")] = 1000,
    prompts_per_step: Annotated[int, typer.Option(min=1, help="Its data.train_batch_size.")] = 256,
    set_constant: Annotated[
        list[str] | None, typer.Option("--set", help="name=value: a constant of care.shaping.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for the responses, with --model; a killed one goes on from there."),
    ] = None,
    engine: Annotated[EvalEngine, typer.Option(help="hf: transformers; vllm: vLLM offline.")] = EvalEngine.hf,
    temperature: Annotated[float, typer.Option(help="Of the responses, as in training.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Of the responses, as in training.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 768,
    batch_size: Annotated[int, typer.Option(min=1, help="Responses that transformers generates at once.")] = 16,
    seed: Annotated[int, typer.Option(help="Of prompts and responses.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the tables.")] = False,
) -> None:
    """Predict when a start checkpoint's competence crosses CARE's thresholds; suggest thresholds, floor and decay."""
    from functools import partial

    from verl_care.calibrate import main, rollouts_of_model, rollouts_of_run
    from verl_care.config import CareConfig
    from verl_care.replay import ReplayError, parse_assignments

    try:
        config = CareConfig(**parse_assignments(set_constant or ()))
    except (ReplayError, TypeError, ValueError) as error:
        raise typer.BadParameter(f"--set: {error}") from None
    predict = partial(main, config=config, steps=steps, prompts_per_step=prompts_per_step, as_json=as_json)
    if from_run is not None:
        if model is not None or data:
            raise typer.BadParameter("--from-run asks no model: leave out --model and the data files")
        raise typer.Exit(predict(partial(rollouts_of_run, from_run, prompts, first_step)))
    if model is None or not data or out is None:
        raise typer.BadParameter("expected --from-run, or data files with --model and --out")

    def sample() -> list:
        from verl_care.data.selection import KeepRules
        from verl_care.evaluation.asking import progress_bar
        from verl_care.evaluation.checkpoints import find_model
        from verl_care.evaluation.engines import EngineConfig
        from verl_care.evaluation.select_records import SelectConfig

        asked = SelectConfig(
            data=tuple(data),
            out_dir=str(out),
            rules=KeepRules(seed=seed),
            engine=EngineConfig(model=find_model(model), name=engine.value, batch_size=batch_size),
            runs=runs,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            batch_size=64 if engine is EvalEngine.hf else 1024,
        )
        with progress_bar("asking") as on_progress:
            return rollouts_of_model(asked, prompts, seed, on_progress)

    raise typer.Exit(predict(sample))


class Benchmark(StrEnum):
    """Measurements of `verl-care bench`."""

    video = "video"
    step = "step"
    reward = "reward"
    shaping = "shaping"
    import_ = "import"


@app.command(epilog="Example: verl-care bench video >> results.jsonl")
def bench(
    name: Annotated[Benchmark, typer.Argument(help="What is measured.", show_default=False)],
    repeats: Annotated[int | None, typer.Option(min=1, help="Runs of each arm, besides one to warm up.")] = None,
) -> None:
    """Measure verl_care against stock verl on this machine and print one JSON line: both, the ratio, the machine."""
    from verl_care.bench import run

    options: dict[str, int] = {} if repeats is None else {"steps" if name is Benchmark.step else "repeats": repeats}
    raise typer.Exit(run(name.value, **options))


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{option}: expected whole numbers with commas; got {text!r}") from None


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
