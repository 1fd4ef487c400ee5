"""`reperfuse <verb>`: reads the command line, calls one stage, says in one sentence what went wrong."""

import errno
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

from reperfuse import __version__
from reperfuse.errors import InputError
from reperfuse.files import FULL
from reperfuse.params import ARMS, Arm, load_params

app = typer.Typer(
    name="reperfuse",
    help="Experiment-tracked stroke imaging: perfusion maps, lesion masks, what resolution costs. Research use only.",
    epilog="Any verb takes --debug, which shows the traceback behind a one-sentence error.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

ArmArgument = Annotated[Arm, typer.Argument(help="lesion or perfusion", show_default=False)]
RunnerOption = Annotated[
    Literal["local", "dask"],
    typer.Option(help="local: in this process; dask: in several, which needs no server; the result is the same"),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        help="tcp://HOST:PORT of a running Dask cluster, whose workers see the same folders and have this package; "
        "left out: dask starts its workers on this machine",
        show_default=False,
    ),
]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


# ---- data in --------------------------------------------------------------------------------------------------------
@app.command("demo-data")
def demo_data(
    inbox: Annotated[
        Path, typer.Argument(help="folder to create; truth is written beside it, in INBOX-truth", show_default=False)
    ],
    arm: Annotated[Arm | None, typer.Option(help="only this arm; both when left out")] = None,
    subjects: Annotated[
        int | None, typer.Option(min=1, help="subjects per arm; left out: 20 lesion, 14 perfusion")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same bytes")] = 2026,
    small: Annotated[
        bool, typer.Option("--small", help="few, tiny subjects in seconds, for trying the plumbing")
    ] = False,
    real: Annotated[
        Path | None,
        typer.Option(help="folder with lesymap/ and soop_masks/: real lesions in a real T1w", show_default=False),
    ] = None,
) -> None:
    """Invented patients: DSC series as DICOM with a vendor's Tmax, and an ATLAS R2.0 tree of T1w with lesion masks."""
    from reperfuse.stages.demo_data import demo_data as write

    write(inbox, arms=ARMS if arm is None else (arm,), subjects=subjects, seed=seed, full_size=not small, real=real)


@app.command()
def ingest(
    inbox: Annotated[
        Path, typer.Argument(help="folder with DICOM series, or an ATLAS or ISLES tree", show_default=False)
    ],
    arm: Annotated[Arm, typer.Option(help="what the inbox holds", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="BIDS tree to write; left out: data/bids/ARM")] = None,
    quarantine: Annotated[Path, typer.Option(help="where refused subjects are copied, with the reason")] = Path(
        "quarantine"
    ),
    reference_scale: Annotated[
        float | None,
        typer.Option(help="seconds per stored unit of a reference Tmax whose headers name no unit", show_default=False),
    ] = None,
    runner: RunnerOption = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="processes of --runner dask; left out: one for each core", show_default=False
        ),
    ] = None,
    scheduler: SchedulerOption = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="file to write the table to as well, as JSON", show_default=False)
    ] = None,
) -> None:
    """Check, de-identify and convert an inbox; bad subjects go to quarantine, the others continue.

    A subject whose files are still being written is left for the next ingest. Exits 0 if any subject was accepted, 2 if
    none.
    """
    from reperfuse.stages.fanout import Runner
    from reperfuse.stages.ingest import ingest as run

    raise typer.Exit(
        run(
            inbox,
            arm=arm,
            out=out,
            quarantine=quarantine,
            reference_scale=reference_scale,
            root=Path.cwd(),
            runner=Runner(runner, workers, scheduler),
            table=as_json,
        )
    )


# ---- the stages of dvc.yaml, in its order ---------------------------------------------------------------------------
@app.command()
def cohort(arm: ArmArgument) -> None:
    """One tidy table of who is there: results/ARM/cohort.csv."""
    _stages(arm).cohort(load_params())


@app.command()
def preprocess(arm: ArmArgument) -> None:
    """Arrays on the model's grid, a folder per subject: data/processed/ARM/."""
    _stages(arm).preprocess(load_params())


@app.command()
def folds(arm: ArmArgument) -> None:
    """Hold-out and cross-validation folds by subject or centre: results/ARM/folds.csv."""
    _stages(arm).folds(load_params())


@app.command()
def tune(
    arm: ArmArgument,
    join: Annotated[
        bool, typer.Option("--join", help="be one more worker of a search that is already running")
    ] = False,
) -> None:
    """Search with cross-validation, resumable, by one or several workers: results/ARM/tune/."""
    _stages(arm).tune(load_params(), join=join)


@app.command()
def train(arm: ArmArgument) -> None:
    """The final training on all training subjects, with what tuning chose: models/ARM/."""
    _stages(arm).train(load_params())


@app.command()
def evaluate(arm: ArmArgument) -> None:
    """The untouched hold-out, model beside baselines: results/ARM/evaluate/."""
    _stages(arm).evaluate(load_params())


@app.command()
def resolution(
    arm: ArmArgument,
    model: Annotated[
        str | None,
        typer.Option(
            help="any model instead of models/ARM: models:/lesion@champion, runs:/…, or a folder", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="where the tables go; left out: results/ARM/resolution, or results/ARM/resolution-of-MODEL",
            show_default=False,
        ),
    ] = None,
    runner: RunnerOption = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="subjects at once; left out: ARM.resolution.workers of params",
            show_default=False,
        ),
    ] = None,
    scheduler: SchedulerOption = None,
) -> None:
    """Score against slice thickness [mm] (lesion) or repetition time [s] (perfusion): results/ARM/resolution/.

    Every subject of the hold-out at every level, with a test and a sentence for each expectation about coarser scans.
    Stopped, the same command goes on behind the last whole subject. With --model the study is a run of its own.
    """
    from reperfuse.stages.fanout import Runner

    _stages(arm).resolution(load_params(), model=model, out=out, runner=Runner(runner, workers, scheduler))
    if model is not None:  # the pipeline's own model has its report
        from reperfuse.stages.reporting import draw_study
        from reperfuse.stages.study import study_folder

        draw_study(arm, study_folder(arm, model, out))


@app.command()
def report(arm: ArmArgument) -> None:
    """One self-contained page: reports/ARM.html."""
    _stages(arm).report(load_params())


# ---- studies beside the pipeline ------------------------------------------------------------------------------------
@app.command()
def experiment(
    name: Annotated[
        str | None, typer.Argument(help="a preset, experiments/NAME.yaml; left out: list them", show_default=False)
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="the same study sized for a CPU: fewer folds and epochs")
    ] = False,
) -> None:
    """Run a published study or an open question on your data, beside the workspace: experiments/results/NAME/.

    It is a DVC experiment (`dvc exp run --temp`): params.yaml and the workspace stay as they are. All trials and the
    baselines come in one table. Started again after a stop, it goes on where it was.
    """
    from reperfuse.stages.experiment import experiment as run

    run(name, small=small)


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="folder for weights, description, scores and card")] = Path("build/learned"),
    small: Annotated[bool, typer.Option("--small", help="a short training, for trying the recipe")] = False,
) -> None:
    """Train the network behind `maps --method learned` anew, on the reference object alone."""
    from reperfuse.stages.pretrain import pretrain as run

    run(out, small=small)


# ---- on one examination ---------------------------------------------------------------------------------------------
@app.command()
def maps(
    source: Annotated[
        Path, typer.Argument(help="DICOM folder of one DSC series, or a 4D NIfTI (.nii, .nii.gz)", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="folder for maps, aif.csv, summary.json, qc.png", show_default=False)],
    method: Annotated[
        str | None,
        typer.Option(
            help="osvd, csvd, ssvd or tikhonov (deconvolution); learned (the network that comes with the package); "
            "champion; a model of the perfusion arm (models:/…, runs:/…, a folder). Left out: perfusion.maps.method",
            show_default=False,
        ),
    ] = None,
    te: Annotated[float | None, typer.Option(help="echo time [s], over what headers say", show_default=False)] = None,
    tr: Annotated[
        float | None, typer.Option(help="time between frames [s], over what headers say", show_default=False)
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="brain mask, NIfTI; left out: found by threshold", show_default=False)
    ] = None,
    aif: Annotated[
        str, typer.Option(help="auto, a NIfTI mask of the artery, or a CSV with its curve (such as an aif.csv)")
    ] = "auto",
    adc: Annotated[
        Path | None,
        typer.Option(help="ADC map, NIfTI, any grid: core is then ADC < 620·10⁻⁶ mm²/s", show_default=False),
    ] = None,
) -> None:
    """CBF, CBV, MTT, Tmax, TTP and delay of one DSC series, with volumes, mismatch and quality flags.

    Read the flags before the maps: they say what makes this examination unreliable. The physics is in
    docs/perfusion.md, its choices in params.yaml under perfusion.maps.
    """
    from reperfuse.stages.maps import maps as run

    settings = load_params().perfusion.maps
    run(source, out, settings=settings, method=method, te_s=te, tr_s=tr, mask=mask, aif=aif, adc=adc)


@app.command()
def segment(
    image: Annotated[
        Path,
        typer.Argument(help="T1w, or what the model takes first; NIfTI, any orientation", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="lesion mask to write, .nii.gz, on the image's grid", show_default=False)],
    model: Annotated[
        str, typer.Option(help="champion, or a model of the lesion arm (models:/…, runs:/…, a folder)")
    ] = "champion",
    modality: Annotated[
        list[str] | None,
        typer.Option(help="further image of a model with several, such as adc=FILE; repeat", show_default=False),
    ] = None,
    brain: Annotated[
        Path | None, typer.Option(help="brain mask, for a model trained behind given ones", show_default=False)
    ] = None,
    probability: Annotated[
        Path | None, typer.Option(help="probability of lesion to write, .nii.gz", show_default=False)
    ] = None,
    mirror: Annotated[
        bool | None,
        typer.Option(
            help="average over the eight mirror images: eight times as long; left out, as the model was scored",
            show_default=False,
        ),
    ] = None,
) -> None:
    """The lesion in one image by a model of the lesion arm, back on the image's own grid."""
    from reperfuse.stages.segment import named_images
    from reperfuse.stages.segment import segment as run

    others = named_images(modality or [])
    run(image, out, model=model, others=others, brain=brain, probability=probability, mirror=mirror)


@app.command()
def score(
    prediction: Annotated[Path, typer.Argument(help="predicted lesion mask, NIfTI, 0 and 1", show_default=False)],
    truth: Annotated[Path, typer.Argument(help="true lesion mask on the same grid", show_default=False)],
    probability: Annotated[
        Path | None, typer.Option(help="probability of lesion on the same grid", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, undefined as null")] = False,
) -> None:
    """Overlap, surface distances [mm], volumes [mL] and lesion-wise scores of one predicted mask."""
    from reperfuse.stages.scoring import score as run

    run(prediction, truth, probability=probability, as_json=as_json)


@app.command()
def degrade(
    image: Annotated[Path, typer.Argument(help="NIfTI, 3D or 4D, any orientation", show_default=False)],
    thickness_mm: Annotated[
        float,
        typer.Option(help="slice thickness, full width at half maximum of the profile [mm]", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option(help="image to write, .nii.gz or .nii, float32; not the image itself", show_default=False)
    ],
    axis: Annotated[
        Literal["i", "j", "k"],
        typer.Option(help="array axis of the file as stored; k is usually axial (in ATLAS and other RAS files)"),
    ] = "k",
    profile: Annotated[
        str,
        typer.Option(
            help="slice profile: gaussian, box, or a CSV with the header position_mm,weight, of which the shape counts"
        ),
    ] = "gaussian",
    spacing_mm: Annotated[
        float | None,
        typer.Option(
            help="between slice centres [mm], larger than the thickness leaves gaps; left out: the thickness",
            show_default=False,
        ),
    ] = None,
    offset_mm: Annotated[float, typer.Option(help="shift of the slices toward the far end of the axis [mm]")] = 0.0,
    keep_thick: Annotated[
        bool, typer.Option("--keep-thick", help="write the thick slices as they are; else on the image's own grid")
    ] = False,
) -> None:
    """An image as a scanner with thicker slices would have seen it."""
    from reperfuse.stages.degrade import degrade as run

    run(
        image,
        out,
        thickness_mm=thickness_mm,
        axis=axis,
        profile=profile,
        spacing_mm=spacing_mm,
        offset_mm=offset_mm,
        keep_thick=keep_thick,
    )


# ---- what comes after -----------------------------------------------------------------------------------------------
@app.command()
def drift(
    arm: ArmArgument, as_json: Annotated[bool, typer.Option("--json", help="the same as JSON on stdout")] = False
) -> None:
    """What the data hold that the champion was not trained on, and how far it lies from what the champion knows."""
    from reperfuse.stages.drift import drift as run

    typer.echo(run(arm, as_json=as_json))


@app.command()
def promote(
    arm: ArmArgument,
    report: Annotated[
        Path | None, typer.Option(help="Markdown file to write the decision to, condition by condition")
    ] = None,
) -> None:
    """Register the trained model and hold it against the champion by the gate of its training; safe to repeat."""
    from reperfuse.stages.promotion import promote as run

    typer.echo(run(arm, load_params(), report=report))


@app.command()
def rollback(arm: ArmArgument) -> None:
    """Give the alias `champion` back to the version named `previous`; the one that goes stays out."""
    from reperfuse.stages.promotion import rollback as run

    typer.echo(run(arm))


@app.command()
def lineage(
    model: Annotated[
        str,
        typer.Argument(
            help="models:/lesion@champion, models:/lesion/3, models:/m-…, runs:/ID/model", show_default=False
        ),
    ],
    checkout: Annotated[
        Path | None,
        typer.Option(help="new folder in which to recreate the workspace: code, parameters, data", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout")] = False,
) -> None:
    """What a model came from: revisions of code and data, parameters, environment, seed, the study that chose it.

    In the folder of --checkout, `dvc repro` gives the same metrics.
    """
    from reperfuse.stages.lineage import lineage as run

    run(model, checkout=checkout, as_json=as_json)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 5000,
    host: Annotated[
        str, typer.Option(help="address to listen on; any but this machine's own needs REPERFUSE_PASSWORD")
    ] = "127.0.0.1",
) -> None:
    """The MLflow UI over this repository's store, on this machine only unless another address is named."""
    from reperfuse.tracking import serve_ui

    serve_ui(port, host)


def _stages(arm: Arm):  # type: ignore[no-untyped-def]  # a module
    if arm == "lesion":
        from reperfuse.stages import lesion as module
    else:
        from reperfuse.stages import perfusion as module  # type: ignore[no-redef]
    return module


STOPPED = "reperfuse: stopped by Ctrl-C; what is finished is whole, and the same command goes on from there."


def main() -> None:
    """Entry point: exit status 0, 2 with one sentence, or 130 for Ctrl-C."""
    debug = "--debug" in sys.argv
    problem: Exception
    try:
        app([argument for argument in sys.argv[1:] if argument != "--debug"], prog_name="reperfuse")
    except SystemExit as end:
        if end.code == 130:
            print(STOPPED, file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        sys.exit(130)
    except InputError as error:
        problem, sentence = error, str(error)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM, *FULL):
            raise
        problem, sentence = error, f"{error.filename or 'A file'} cannot be read or written: {error.strerror}."
        if error.errno in FULL:
            sentence = f"{sentence[:-1]}. What is finished is whole: make room, then give the same command again."
    if debug:
        traceback.print_exception(problem)
    print(f"reperfuse: {sentence}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
