"""Every section of the paper, one after the other, and one page of them.

    python -m experiments.hinton2015.all --data.dir DIR --teacher FILE

What is finished stays, and what was stopped goes on. The time is stated first.
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

import dataclasses
import importlib
import re
from collections.abc import Callable

from experiments.hinton2015 import regulariser_cifar100, report, study, temperature
from kdjax import loop, runs
from kdjax.runs import flags
from kdjax.runs.flags import flag

MINUTES = {
    "mnist": 40, "record": 15, "temperature": 120, "unseen_digit": 30, "gradient": 5,
    "ensemble": 60, "specialists": 85, "regulariser": 25, "regulariser_cifar100": 45,
}  # fmt: skip
"""What each takes on two cores, of those before it what it learns from."""
ON_CIFAR = ("ensemble", "specialists", "regulariser_cifar100")
PROGRAM = "python -m experiments.hinton2015"


@dataclasses.dataclass(frozen=True)
class Settings(temperature.Settings, regulariser_cifar100.Settings):
    """What this script asks besides."""

    sections: tuple[str, ...] = flag(
        f"Some of {', '.join(report.SECTIONS)}; all by default.", default=()
    )


def run(asked: Settings, command: str, stop_fn: Callable[[], bool]) -> None:
    """Do the sections that are not finished, and write the page of all."""
    root, say = study.root_of(asked), runs.console.say
    names = chosen(asked)
    left = [name for name in names if not (root / name / "result.json").exists()]
    if done := [name for name in names if name not in left]:
        say(f"finished already: {', '.join(done)}")
    if left:
        say(f"to do: {', '.join(left)}; {duration(asked, left)}")
    for name in left:
        module = importlib.import_module(f"experiments.hinton2015.{name}")
        about, data_name = module.__doc__ or "", "cifar100" if name in ON_CIFAR else "mnist"
        say(f"\n{study.title_of(about)}")
        own = command_of(name, command)
        study.conduct(asked, name, about, module.run, data_name, own, stop_fn)
    report.run(report.Settings(workdir=root))


def chosen(asked: Settings) -> list[str]:
    """Return the sections that are asked for, in the paper's order.

    Raises:
        ValueError: if there is no such section, or one set of data is asked for.
    """
    if asked.data.name is not None:
        raise ValueError("--data.name: each section has its own data; leave it out")
    known, wanted = report.SECTIONS, asked.sections or report.SECTIONS
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"--sections: no {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if name in wanted]


def duration(asked: Settings, names: list[str]) -> str:
    """Say how long sections take."""
    if asked.quick:
        return "a trial, a few minutes"
    minutes = sum(minutes_of(asked, name) for name in names)
    return f"about {minutes / 60:.1f} hours on two cores, less what their networks have behind them"


def minutes_of(asked: Settings, name: str) -> float:
    """Return what a section takes: the share that is asked for of widths and temperatures."""

    def weights(widths: tuple[int, ...], temperatures: tuple[float, ...]) -> int:
        return len({*temperatures}) * sum((784 + width + 10) * width for width in widths)

    if name != "temperature":
        return MINUTES[name]
    usual = temperature.WIDTHS, temperature.TEMPERATURES
    mine = asked.widths or usual[0], asked.temperatures or usual[1]
    return MINUTES[name] * weights(*mine) / weights(*usual)


def command_of(name: str, command: str) -> str:
    """Turn the command for all sections into that of one."""
    foreign = "sections" if name == "temperature" else "sections|widths|temperatures"
    command = re.sub(rf" --(?:{foreign})(?: [^-\s]\S*)+", "", command)
    own = study.portable(command.replace(f"{PROGRAM}.all", f"{PROGRAM}.{name}"))
    return own if name == "regulariser_cifar100" else own.replace(" --teacher FILE", "")


def main() -> None:
    """Read the flags, and do the sections."""
    asked, command = flags.read(Settings, f"{PROGRAM}.all", __doc__ or "", None)
    with flags.plain_errors(asked, resume_with=command):
        flags.check(asked)
        with loop.stop_on_signals() as stop_fn:
            run(asked, command, stop_fn)


if __name__ == "__main__":
    main()
