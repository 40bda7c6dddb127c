"""An experiment: data, mesh and work directory, and whether they fit together."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from kdjax import data, distributed, sharding
from kdjax._version import __version__
from kdjax.checkpoint import lock
from kdjax.loop import stop_on_signals
from kdjax.models import Network
from kdjax.runs import checks, fingerprints, methods, networks, processes, stored, tasks, workdir
from kdjax.runs.console import say
from kdjax.runs.evaluation import Run
from kdjax.runs.networks import spec_of
from kdjax.runs.report import format_table
from kdjax.runs.resolved import Resolved, narrowed, resolve
from kdjax.runs.settings import EMBEDDED, MeshSettings, RunSettings
from kdjax.types import Variables


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Data, resolved settings and what all trainings of the run share."""

    settings: Resolved
    dataset: data.Dataset
    run: Run
    given_teacher: Network | None
    student_start: Variables | None = None
    stored_logits: stored.Logits | None = None

    @functools.cached_property
    def task(self) -> tasks.Task:
        """What the task of the settings decides."""
        return tasks.of(self.settings.task, self.dataset)


def is_finished(run: Run, table_fn: Callable[[dict[str, Any]], str] = format_table) -> bool:
    """Whether the work directory holds this run, finished; its table is shown again then.

    A summary that is not the one that was written is made again, from the checkpoints.
    """
    path, finished = run.workdir / "summary.json", run.workdir / "finished"
    if not all(p.exists() for p in (path, finished, run.workdir / "report.html")):
        return False
    if finished.read_bytes() != _finished(run):
        say(f"{path} is damaged or of another run: it is made again from the checkpoints")
        return False
    say(table_fn(json.loads(path.read_bytes())))
    say(f"finished: nothing left to do in {run.workdir}")
    return True


def finish(run: Run) -> None:
    """Seal the summary of a run, when all that it leaves behind is written."""
    if distributed.is_leader():
        workdir.write_whole(run.workdir / "finished", _finished(run))


@contextlib.contextmanager
def opened(settings: RunSettings) -> Iterator[Experiment]:
    """Read the data and open the experiment; Ctrl-C and SIGTERM ask it to stop meanwhile.

    Args:
        settings: as the flags gave them, with a work directory.

    Yields:
        The experiment; see `open_experiment`.
    """
    with stop_on_signals() as stop_fn:
        processes.agree("settings", dataclasses.asdict(settings), prefix="--")
        dataset = load_dataset(settings)
        if stop_fn():
            raise KeyboardInterrupt
        with open_experiment(settings, dataset, stop_fn) as experiment:
            yield experiment


def load_dataset(settings: RunSettings) -> data.Dataset:
    """Read the examples that the settings name, and say what a folder of one's own holds."""
    asked = settings.data
    crop_fn = {"stretch": data.stretch, "crop": data.center_crop}[asked.resize]
    options: dict[str, Any] = {
        "validation_fraction": asked.validation_fraction,
        "split_seed": asked.split_seed,
        "image_size": asked.image_size,
        "crop_fn": crop_fn,
        "streaming": asked.streaming,
    }
    own = _own_folder(asked.name, asked.dir)
    try:
        if own is None:
            dataset = data.load(asked.name, data_dir=asked.dir, **options)
        else:
            labels_fn = tasks.LABELS_FNS[getattr(settings, "task", "single-label")]
            dataset = data.from_folder(own, **options, labels_fn=labels_fn)
            dataset = dataset._replace(found=_flagged(dataset.found))
            say(f"{own}: {dataset.found}; {dataset.splits}")
        if asked.classes is not None:
            dataset = data.only_classes(dataset, asked.classes)
        if asked.unlabelled is not None:
            # Where labeled images stream, all do: views by the reader are then of all.
            streaming = asked.streaming or data.is_lazy(dataset.train._asdict())
            dataset = data.with_unlabelled(
                dataset, asked.unlabelled, crop_fn=crop_fn, streaming=streaming
            )
            say(f"{asked.unlabelled}: {len(dataset.unlabelled)} images without labels")
    except ValueError as error:
        raise ValueError(_flagged(str(error))) from error
    return dataset


def _flagged(message: str) -> str:
    """Name the flags for what the library calls by its parameters."""
    other = "; is another --task meant?" if "labels have shape" in message else ""
    for name, flag in (("image_size", "--data.image-size"), ("only_classes", "--data.classes")):
        message = message.replace(name, flag)
    return message + other


def _own_folder(name: str, folder: Path | None) -> Path | None:
    """Return where a set of one's own is: in the folder that is given, or in that of its name.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if sets of TFDS are, and none was named.
    """
    if folder is None:
        return None
    if name != EMBEDDED:
        inner = folder / name
        return inner if inner.is_dir() and data.kind_of(inner) != "tfds" else None
    if data.kind_of(folder) != "tfds":
        return folder
    there = sorted(path.name for path in folder.iterdir())
    if name not in there:
        raise ValueError(
            f"--data.dir {folder} (there: {', '.join(there[:8])}) holds no digits, which are "
            "embedded: leave it out, or name the set that is meant with --data.name"
        )
    return None


@contextlib.contextmanager
def open_experiment(
    asked: RunSettings, dataset: data.Dataset, stop_fn: Callable[[], bool]
) -> Iterator[Experiment]:
    """Claim the work directory: write `config.json`, or hold it against that of an earlier run.

    It is locked against other runs meanwhile.

    Args:
        asked: the settings as the flags gave them.
        dataset: the examples.
        stop_fn: whether the run should stop.

    Yields:
        The experiment.

    Raises:
        ValueError: if the directory holds a run with other settings, data or teacher, if processes
            that train together differ in theirs, or a setting does not fit the data or the devices.
        OSError: if the directory cannot be written, or another run is at work in it.
    """
    settings = resolve(asked, dataset)
    if getattr(asked, "extend", False):
        settings = extended(asked, settings)
    mesh = mesh_of(settings.mesh)
    checks.check(asked, settings, dataset, mesh)
    # Before the directory is claimed: a teacher that does not fit must not leave a trace.
    settings, said_by_teacher = _with_stored(settings, dataset)
    settings, given_teacher, student_start = _checked_networks(settings, dataset)
    with lock(settings.workdir):
        content = {
            "data": fingerprints.of_data(dataset),
            "teacher": fingerprints.of_path(settings.stored_logits or settings.teacher.checkpoint),
            "student": fingerprints.of_path(settings.student.checkpoint),
        }
        claimed = claim(content, asked, _named(settings, dataset))
        if claimed.resumed:
            say(f"resuming the run in {settings.workdir}")
        log = log_of(settings.workdir, claimed.run)
        own = {"mesh": mesh, "log": log, "stop_fn": stop_fn, "workers": settings.data.workers}
        own["claim"] = claimed
        run = narrowed(Run, settings, **own)
        _describe(asked, settings, dataset, run)
        yield Experiment(settings, dataset, run, given_teacher, student_start, said_by_teacher)


def open_run(
    directory: Path, stop_fn: Callable[[], bool], claim: workdir.Claim | None = None
) -> Run:
    """Return a run on all devices, with a log in a directory and everything else by default."""
    return Run(directory, sharding.make_mesh(), log_of(directory, None), stop_fn, claim)


def facts(run: Run, command: str, **own: str) -> dict[str, str]:
    """Return where results come from.

    Args:
        run: what was done.
        command: what did it.
        **own: what else a reader has to know, by name.

    Returns:
        Text by name: command, what is given, and what `origin` says of the work directory.
    """
    noted = workdir.trained_by(run.claim.path) if run.claim else []
    return {"Command": command, **own, **origin(noted)}


def origin(trained_by: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return by what networks were trained, whatever makes a table of them later.

    Args:
        trained_by: what was noted while they were, see `workdir.begin`.

    Returns:
        Text by name: commit, device, versions and time; several where trainings went on elsewhere.
    """

    def said(name: str) -> str:
        return ", ".join(dict.fromkeys(by[name] for by in trained_by)) or "not known"

    names = {"Commit": "commit", "Device": "device", "Versions": "versions"}
    return {**{name: said(key) for name, key in names.items()}, "Training began": said("time")}


def _with_stored(
    settings: Resolved, dataset: data.Dataset
) -> tuple[Resolved, stored.Logits | None]:
    """Read what a teacher said, where it is given; the size of embeddings is that of its own."""
    if settings.stored_logits is None:
        return settings, None
    free = settings.task == "embeddings" and settings.embedding_size is None
    size = tasks.num_outputs(settings.task, dataset, settings.embedding_size)
    said = stored.read(settings.stored_logits, dataset, None if free else size)
    if free:
        settings = dataclasses.replace(settings, embedding_size=said["train"].shape[-1])
    return settings, said


def _checked_networks(
    settings: Resolved, dataset: data.Dataset
) -> tuple[Resolved, Network | None, Variables | None]:
    """Read the teacher and the student's start where they are given.

    Returns:
        The settings, with the size of embeddings that the teacher has; the teacher; and the start.

    Raises:
        ValueError: where networks do not fit.
    """
    teacher, task = spec_of(settings, dataset, settings.teacher), tasks.of(settings.task, dataset)
    networks.check_own("--teacher", teacher, learns=False)
    networks.check_patches("--teacher", teacher)
    any_size = task.name == "embeddings" and settings.embedding_size is None
    given = networks.given_teacher(settings.teacher, teacher, any_size=any_size)
    teacher = given.spec if given else teacher
    if any_size:
        settings = dataclasses.replace(settings, embedding_size=teacher.num_classes)
    if task.hard is None and given is None and settings.stored_logits is None:
        raise ValueError(
            "--task embeddings without labels needs a teacher that is given: --teacher.checkpoint, "
            "or .module, or --stored-logits"
        )
    student = spec_of(settings, dataset, settings.student)
    networks.check_own("--student", student, learns=True)
    networks.check_patches("--student", student)
    for flag, spec in {"--student": student, "--teacher": teacher}.items():
        networks.check_answers(flag, spec, task.name)
    if settings.teacher.head == "probe" and given is None:
        raise ValueError(
            "--teacher.head probe needs a teacher that is trained, and "
            f"{teacher.name} has no weights yet: give --teacher.checkpoint"
        )
    if settings.rematerialise:
        trained = {"--student": student} | ({} if given else {"--teacher": teacher})
        networks.check_blocks(trained)
    methods.check(settings.method, student, teacher, task)
    return settings, given, networks.starting_values(settings.student, student)


def log_of(directory: Path, run: str | None) -> workdir.MetricsLog:
    """Return the log of a directory; of several processes the first writes it."""
    path, writes = directory / "metrics.jsonl", distributed.is_leader()
    return workdir.MetricsLog(path, writes=writes, run=run)


def _finished(run: Run) -> bytes:
    """Digest the summary as that of this run."""
    own = run.claim.run if run.claim else None
    return f"{own} {fingerprints.of_path(run.workdir / 'summary.json')}\n".encode()


def claim(content: dict[str, Any], asked: Any, settings: Any) -> workdir.Claim:
    """Let process 0 claim the work directory, and the others see that it is the same for them.

    Args:
        content: fingerprints of what the settings' paths lead to.
        asked: the settings as the flags gave them.
        settings: the same, decided, with a work directory.
    """
    directory, path = settings.workdir, settings.workdir / "config.json"
    requested, decided = (workdir.plain(dataclasses.asdict(x)) for x in (asked, settings))
    # What was decided, and what a script asks besides.
    config = {**requested, **decided}
    before = workdir.read_json(path) if getattr(asked, "extend", False) else None
    if before is not None:
        # Held against what is there as it was; then it is written what it becomes.
        config["epochs"] = before["epochs"]
    processes.agree("content", {**content, "kdjax": __version__, "code": fingerprints.of_code()})
    said, claimed = "", workdir.Claim(path, False, None)
    if distributed.is_leader():
        directory.mkdir(parents=True, exist_ok=True)
        usual = workdir.flatten(workdir.plain(dataclasses.asdict(type(asked)())))
        given = workdir.flatten(requested)
        claimed = workdir.claim(
            *(path, config),
            otherwise="a run with other settings",
            content=content,
            defaults=[n for n in workdir.flatten(config) if given.get(n) == usual.get(n)],
            orphans=("checkpoints", "metrics.jsonl", "summary.json"),
            requested=requested,
        )
        if before is not None and before["epochs"] != settings.epochs:
            workdir.extend(path, epochs=settings.epochs)
        said = claimed.run or ""
    claimed = claimed._replace(run=distributed.exchange("claim", said)[0] or None)
    if not path.exists():
        raise ValueError(
            f"--workdir {directory} must be on a file system that all processes share: process "
            f"{jax.process_index()} does not see what process 0 has written there"
        )
    return claimed


def _named(settings: Resolved, dataset: data.Dataset) -> Resolved:
    """Return settings with the name of the data: that of one's own may change, and stays."""
    if dataset.version:
        return settings
    there = workdir.read_json(settings.workdir / "config.json")
    name = str(there["data"]["name"]) if there else dataset.name
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, name=name))


def extended(asked: Any, settings: Any) -> Any:
    """Return settings of a run that goes on beyond its end: its teacher is trained already.

    Raises:
        ValueError: if there is no run to go on with, or it would not become longer.
    """
    before = workdir.read_json(settings.workdir / "config.json")
    if before is None:
        raise ValueError(
            f"--extend takes a run further: give its --workdir; {settings.workdir} holds none"
        )
    if asked.epochs is None:
        raise ValueError("--extend takes a run further: give the new --epochs, all in all")
    old, new = before["epochs"], settings.epochs
    if new < old:
        raise ValueError(f"--extend takes a run further, but --epochs was {old}, is now {new}")
    if new > old:
        say(
            f"extended from {old} to {new} epochs: students go on from their last step, and the "
            "learning rate from where the schedule of the new length has it then: after a cosine, "
            "which had come down to zero, it rises again"
        )
    if asked.teacher.epochs is not None:
        return settings
    own = dataclasses.replace(settings.teacher, epochs=before["teacher"]["epochs"])
    return dataclasses.replace(settings, teacher=own)


def mesh_of(asked: MeshSettings) -> Mesh:
    """Arrange the devices as the flags say."""
    sizes = {"data": asked.data, "fsdp": asked.fsdp, "tensor": asked.tensor}
    try:
        return sharding.make_mesh(**sizes)
    except ValueError as error:
        flags = ", ".join(f"--mesh.{name} {size}" for name, size in sizes.items())
        raise ValueError(f"{flags}: {str(error).removeprefix('make_mesh: ')}") from error


def _describe(asked: RunSettings, settings: Resolved, dataset: data.Dataset, run: Run) -> None:
    device, processes = jax.devices()[0], jax.process_count()
    where = f" in {processes} processes" if processes > 1 else ""
    say(
        f"{dataset.name}: {len(dataset.train.label)} training, {len(dataset.validation.label)} "
        f"validation, {len(dataset.test.label)} test images {dataset.image_shape}, "
        f"{dataset.num_classes} classes; students see "
        f"{'none of them' if asked.made_up else settings.data.student_examples}"
    )
    what = f"{run.mesh.size} x {device.device_kind} ({device.platform}){where}"
    for line in checks.unread(asked, settings):
        say(line)
    say(f"{what}, writing to {run.workdir}")
