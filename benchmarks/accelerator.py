"""What an accelerator makes of all this: one command, ten minutes at most on one H100.

    python -m benchmarks.accelerator --out accelerator.json --data.dir DIR
    python -m benchmarks.accelerator --tiny --out accelerator.json

Steps a second of four distillations against steps by hand in JAX and, where it is installed, in
PyTorch; what they use of the device's peaks; the chunked head; the feed; ten trainings in one
program; peak memory. In what is left of `--minutes`, resnet8x4 learns CIFAR-100 from labels, by KD
and by DKD (`benchmarks.cifar`). A table is printed, and the file written, line by line: a run that
is cut off leaves what it has, and a part that fails is one line. `--tiny` has the same parts on
networks of a few numbers, for a CPU.
"""

import argparse
import functools
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# PyTorch shares the device.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.7")

import jax
import jax.numpy as jnp

from benchmarks import cifar, devices, feed, heads, sweep, training, works
from benchmarks.timing import in_turn

Row = dict[str, Any]
Part = Callable[[argparse.Namespace], Iterator[Row]]
# Seconds that have to be left for a part to be begun.
LEAST, LEAST_FOR_CIFAR = 30, 120


def parsed(args: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--out", type=Path, default=Path("accelerator.json"), help="the JSON file")
    parser.add_argument("--minutes", type=float, default=10.0, help="all together; default 10")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data.dir", dest="data_dir", help="where CIFAR-100 is prepared")
    parser.add_argument("--num-seeds", type=int, default=3, help="students of CIFAR-100 each way")
    parser.add_argument("--tiny", action="store_true", help="networks of a few numbers")
    return parser.parse_args(args)


def steps(flags: argparse.Namespace, *, half: bool) -> Iterator[Row]:
    """Time the steps in one precision, in turn; each work by itself."""
    precision = "bfloat16" if half else "float32"
    for name, work in (works.TINY if flags.tiny else works.WORKS).items():
        part = functools.partial(step_rows, name, work, half)
        for row in guarded(f"{name}, {precision}", part, flags):
            yield {**row, "what": f"{name}, {precision}: {row['what']}"}


def step_rows(name: str, work: works.Work, half: bool, flags: argparse.Namespace) -> Iterator[Row]:
    """Time one work: here, by hand, in PyTorch."""
    tiny = flags.tiny
    dtype = jnp.bfloat16 if half else None
    programs = {"kdjax": works.library(work, dtype), "JAX by hand": works.by_hand(work, dtype)}
    takes = {way: program.take for way, program in programs.items()}
    if importlib.util.find_spec("torch"):
        try:
            from benchmarks.works_torch import take_of

            takes["PyTorch"] = take_of(name, work, programs["kdjax"].num_params, half=half)
            takes["PyTorch"](1)
        except Exception as error:
            takes.pop("PyTorch", None)
            yield {"what": "PyTorch", "failed": said(error)}
    peak = devices.peak_of(jax.local_devices()[0].device_kind)
    timed = in_turn(takes, wanted=0.01 if tiny else 0.4, repeats=2 if tiny else 5)
    for way, (seconds, quotient) in timed.items():
        row = {
            "what": way,
            "steps/s": 1 / seconds,
            "examples/s": work.inputs[0] / seconds,
            "time over kdjax's": quotient,
        }
        if way in programs:
            own = programs[way]
            row |= devices.shares(peak, seconds, own.flops, own.traffic, half=half)
            row |= {"GFLOP": (own.flops or 0) / 1e9, "program's bytes": own.peak_bytes}
            row |= {"compiled in s": own.compile_seconds}
        yield row


def head(flags: argparse.Namespace) -> Iterator[Row]:
    """Time losses on heads over a large vocabulary, whole and a chunk at a time."""
    tokens, vocab, width = (64, 512, 16) if flags.tiny else (4096, 131_072, 512)
    args = heads.drawn(tokens, vocab, width)
    sizes = (16, 32) if flags.tiny else (128, 512, 1024)
    ways = {"all logits": functools.partial(heads.plain, heads.KD)}
    ways["all logits, the textbook's formula"] = functools.partial(heads.plain, heads.textbook)
    ways |= {f"chunks of {size}": functools.partial(heads.chunked, size) for size in sizes}
    programs = {name: heads.compiled(way, args) for name, way in ways.items()}

    def take_of(program: Any) -> Callable[[int], None]:
        return lambda count: jax.block_until_ready([program(*args) for _ in range(count)][-1])

    takes = {name: take_of(program) for name, program in programs.items()}
    timed = in_turn(takes, wanted=0.01 if flags.tiny else 0.3, repeats=2 if flags.tiny else 5)
    for name, (seconds, quotient) in timed.items():
        yield {
            "what": f"{tokens} tokens, {vocab} words: {name}",
            "ms": seconds * 1e3,
            "time over the first's": quotient,
            "temporary MiB": heads.mebibytes(programs[name]),
        }


def feeding(flags: argparse.Namespace) -> Iterator[Row]:
    """Time photographs fed, and trained on, by themselves and together."""
    own = argparse.Namespace(workers=0, batch_size=8, image_size=16, steps=3)
    if not flags.tiny:
        own = argparse.Namespace(
            workers=os.cpu_count() or 1, batch_size=256, image_size=224, steps=30
        )
    for rates in feed.measured(own):
        yield {
            "what": rates.name,
            "fed/s": own.batch_size / rates.fed,
            "trained on/s": own.batch_size / rates.alone,
            "together/s": own.batch_size / rates.together,
            "together over the slower": rates.ratio,
        }


def loop(flags: argparse.Namespace) -> Iterator[Row]:
    """Time whole trainings of MNIST's student against its steps alone."""
    for name, (alone, whole, quotient) in training.measured(10 if flags.tiny else 1000):
        yield {
            "what": f"training of MNIST's student, {name}",
            "seconds": whole,
            "steps alone": alone,
            "steps alone over training": quotient,
        }


def seeds(flags: argparse.Namespace) -> Iterator[Row]:
    """Time ten trainings in one program against one by one."""
    shape = (2, 2, 4) if flags.tiny else (sweep.NUM_MEMBERS, sweep.NUM_STEPS, sweep.BATCH_SIZE)
    batches = jax.device_put(sweep.random_batches(shape))
    for width in (8,) if flags.tiny else (100, 800):
        temperatures = jnp.geomspace(1.0, 40.0, shape[0])
        for method, one, together, quotient in sweep.compare(width, batches, temperatures):
            yield {
                "what": f"{shape[0]} students of width {width}, {method}",
                "one by one, examples/s": one,
                "together, examples/s": together,
                "times as fast": quotient,
            }


def pair(flags: argparse.Namespace) -> Iterator[Row]:
    """Train the pair of the CIFAR-100 table in what is left of the time."""
    sets = cifar.drawn() if flags.tiny else cifar.read(flags.data_dir)
    sizes = cifar.TINY if flags.tiny else cifar.FULL
    left = flags.began + 60 * flags.minutes - time.monotonic()
    yield from cifar.table(sets, sizes, num_seeds=flags.num_seeds, seconds=left)


PARTS: dict[str, Part] = {
    "steps-bfloat16": functools.partial(steps, half=True),
    "head": head,
    "loop": loop,
    "seeds": seeds,
    "feed": feeding,
    "steps-float32": functools.partial(steps, half=False),
    "cifar": pair,
}


def said(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def guarded(name: str, part: Part, flags: argparse.Namespace) -> Iterator[Row]:
    """Yield a part's rows; one that fails, or for which there is no time, is one row."""
    left = flags.began + 60 * flags.minutes - time.monotonic()
    least = 0 if flags.tiny else LEAST_FOR_CIFAR if name == "cifar" else LEAST
    if left < least:
        yield {"what": name, "failed": f"left out, {left:.0f} s were left of {flags.minutes:g} min"}
        return
    try:
        yield from part(flags)
    except Exception as error:
        yield {"what": name, "failed": said(error)}


def shown(row: Row) -> str:
    """Format a row for Markdown."""
    values = {name: x for name, x in row.items() if name not in ("part", "what")}
    cells = (f"{k} {x:.4g}" if isinstance(x, float) else f"{k} {x}" for k, x in values.items())
    return f"| {row['part']} | {row['what']} | {', '.join(cells)} |"


def main(args: list[str] | None = None) -> None:
    """Run the parts that are asked for; keep what each says as soon as it does."""
    flags = parsed(args)
    flags.began = time.monotonic()
    device = jax.local_devices()[0]
    report: dict[str, Any] = {
        "device": f"{device.device_kind} ({device.platform})",
        "jax": jax.__version__,
        "tiny": flags.tiny,
        "rows": [],
    }
    print(f"{report['device']}, jax {jax.__version__}\n")
    print("| part | what | figures |\n| --- | --- | --- |", flush=True)
    for name in flags.parts:
        for row in guarded(name, PARTS[name], flags):
            row = {"part": name, **row}
            report["rows"].append(row)
            report["seconds"] = time.monotonic() - flags.began
            report["peak bytes of the device so far"] = devices.peak_memory(device)
            flags.out.write_text(json.dumps(report, indent=1) + "\n")
            print(shown(row), flush=True)
    print(f"\n{report['seconds']:.0f} s, peak memory {report['peak bytes of the device so far']}")


if __name__ == "__main__":
    main()
