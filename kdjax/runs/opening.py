"""Opening an experiment: data, mesh and work directory, and whether they fit together."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from jax.sharding import Mesh

import kdjax
from kdjax import data, distributed, sharding
from kdjax.checkpoint import lock
from kdjax.loop import stop_on_signals
from kdjax.runs import methods, networks, workdir
from kdjax.runs.console import say
from kdjax.runs.networks import Network, NetworkSpec
from kdjax.runs.settings import NetworkSettings
from kdjax.runs.training import Run

if TYPE_CHECKING:
    from kdjax.runs.distill import Settings


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Data, resolved settings and what all trainings of the run share."""

    settings: "Settings"
    dataset: data.Dataset
    run: Run
    given_teacher: Network | None


def load_dataset(settings: "Settings") -> data.Dataset:
    """Read the examples that the settings name."""
    return data.load(
        settings.data.name,
        data_dir=settings.data.dir,
        validation_fraction=settings.data.validation_fraction,
        image_size=settings.data.image_size,
        crop_fn={"stretch": data.stretch, "crop": data.centre_crop}[settings.data.resize],
        streaming=settings.data.streaming,
    )


@contextlib.contextmanager
def opened(
    settings: "Settings", resolve_fn: Callable[["Settings", data.Dataset], "Settings"]
) -> Iterator[Experiment]:
    """Read the data and open the experiment; Ctrl-C and SIGTERM ask it to stop meanwhile.

    Args:
        settings: as the flags gave them.
        resolve_fn: puts the data's defaults where a setting is None.

    Yields:
        The experiment; see `open_experiment`.
    """
    with stop_on_signals() as stop_fn:
        dataset = load_dataset(settings)
        resolved = resolve_fn(settings, dataset)
        with open_experiment(settings, resolved, dataset, stop_fn) as experiment:
            yield experiment


def seeds_of(settings: "Settings") -> range:
    """Return the seeds of the students."""
    return range(settings.seed, settings.seed + (settings.num_seeds or 1))


def facts(experiment: Experiment, command: str, **own: str) -> dict[str, str]:
    """Say where results come from.

    Args:
        experiment: what was done.
        command: what did it.
        own: what else a reader has to know, by name.

    Returns:
        Text by name: command, commit and device, what is given, and versions.
    """
    device = jax.devices()[0]
    return {
        "Command": command,
        "Commit": workdir.commit(),
        "Device": f"{experiment.run.mesh.size} x {device.device_kind} ({device.platform})",
        **own,
        "Versions": f"kdjax {kdjax.__version__}, jax {jax.__version__}",
    }


@contextlib.contextmanager
def open_experiment(
    requested: "Settings", settings: "Settings", dataset: data.Dataset, stop_fn: Callable[[], bool]
) -> Iterator[Experiment]:
    """Claim the work directory: write `config.json`, or hold it against that of an earlier run.

    It is locked against other runs meanwhile.

    Args:
        requested: the settings as the flags gave them.
        settings: the same with every None resolved by the data.
        dataset: the examples.
        stop_fn: says whether the run should stop.

    Yields:
        The experiment.

    Raises:
        ValueError: if the directory holds a run with other settings, or a setting does not fit the
            data or the devices.
        OSError: if the directory cannot be written, or another run is at work in it.
    """
    assert settings.workdir is not None
    mesh = _mesh(settings)
    _check_fit(settings, dataset, mesh)
    # Before the directory is claimed: a teacher that does not fit must not leave a trace.
    student, teacher = (spec_of(settings, dataset, x) for x in (settings.student, settings.teacher))
    networks.check_patches("--student", student)
    networks.check_patches("--teacher", teacher)
    given_teacher = None
    if settings.teacher.checkpoint is not None:
        given_teacher = networks.load_teacher(settings.teacher, teacher)
        teacher = given_teacher.spec
    if settings.rematerialise:
        trained = {"--student": student} | ({} if given_teacher else {"--teacher": teacher})
        networks.check_blocks(trained)
    methods.check(settings.method, student, teacher)
    with lock(settings.workdir):
        if _claim(settings.workdir, settings, requested):
            say(f"resuming the run in {settings.workdir}")
        run = _run_of(settings, mesh, stop_fn)
        _describe(settings, dataset, run)
        yield Experiment(settings, dataset, run, given_teacher)


def spec_of(settings: "Settings", dataset: data.Dataset, network: NetworkSettings) -> NetworkSpec:
    """Describe a network of the settings for the data."""
    return networks.make_spec(
        network,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        precision=settings.precision,
    )


def _run_of(settings: "Settings", mesh: Mesh, stop_fn: Callable[[], bool]) -> Run:
    assert settings.workdir is not None
    return Run(
        workdir=settings.workdir,
        mesh=mesh,
        log=workdir.MetricsLog(settings.workdir / "metrics.jsonl", writes=distributed.is_leader()),
        stop_fn=stop_fn,
        log_every=settings.log_every,
        eval_every=settings.eval_every,
        checkpoint_every=settings.checkpoint_every,
        keep_last=settings.keep_last,
        keep_best=settings.keep_best,
        profile=settings.profile,
        workers=settings.data.workers,
        steps_per_call=settings.steps_per_call,
    )


def _claim(directory: Path, settings: "Settings", requested: "Settings") -> bool:
    """Let process 0 claim the work directory, and the others see that it is the same for them.

    Returns:
        Whether a run is resumed.
    """
    resumed = False
    if distributed.is_leader():
        directory.mkdir(parents=True, exist_ok=True)
        config, asked = (workdir.plain(dataclasses.asdict(x)) for x in (settings, requested))
        resumed = workdir.claim(directory, config, asked)
    distributed.exchange("claim", "done")
    if not (directory / "config.json").exists():
        raise ValueError(
            f"--workdir {directory} must be on a file system that all processes share: process "
            f"{jax.process_index()} does not see what process 0 has written there"
        )
    return resumed


def _mesh(settings: "Settings") -> Mesh:
    """Arrange the devices as the flags say."""
    sizes = {"data": settings.mesh.data, "fsdp": settings.mesh.fsdp, "tensor": settings.mesh.tensor}
    try:
        return sharding.make_mesh(**sizes)
    except ValueError as error:
        flags = ", ".join(f"--mesh.{name} {size}" for name, size in sizes.items())
        raise ValueError(f"{flags}: {str(error).removeprefix('make_mesh: ')}") from error


def _check_fit(settings: "Settings", dataset: data.Dataset, mesh: Mesh) -> None:
    """Raise a ValueError where settings and data, or settings and devices, do not fit together."""
    asked, present = settings.data.student_examples or 0, len(dataset.train.label)
    if asked > present:
        raise ValueError(
            f"--data.student-examples is {asked}, but there are {present} training examples"
        )
    views = {*(settings.augment or ()), *(settings.teacher.augment or ())}
    lazy = data.is_lazy(dataset.train._asdict())
    if lazy and (settings.steps_per_call or 1) > 1:
        raise ValueError(
            f"--steps-per-call {settings.steps_per_call}: examples that stream are on no device"
        )
    if "resized-crop" in views and not lazy:
        raise ValueError("--augment resized-crop needs --data.streaming: it crops what is read")
    batch_size = settings.batch_size or 0
    try:
        sharding.check_batch_size(batch_size, mesh, num_micro_batches=settings.num_micro_batches)
    except ValueError as error:
        raise ValueError(f"--batch-size: {error}") from error


def _describe(settings: "Settings", dataset: data.Dataset, run: Run) -> None:
    device, processes = jax.devices()[0], jax.process_count()
    where = f" in {processes} processes" if processes > 1 else ""
    say(
        f"{dataset.name}: {len(dataset.train.label)} training, {len(dataset.validation.label)} "
        f"validation, {len(dataset.test.label)} test images {dataset.image_shape}, "
        f"{dataset.num_classes} classes; students see {settings.data.student_examples}"
    )
    what = f"{run.mesh.size} x {device.device_kind} ({device.platform}){where}"
    say(f"{what}, writing to {run.workdir}")
