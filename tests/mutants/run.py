"""Plant faults one by one and see the tests find them.

    python tests/mutants/run.py                 # all of them, some 15 minutes on two cores
    python tests/mutants/run.py kd-weight ...   # these

Each fault of `faults.py` changes one place of a copy of the sources, in which the tests named
beside it must fail. The copy has nothing beside it, as a public clone: golden vectors do not help.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
NEEDED = ("kdjax", "experiments", "benchmarks", "tests", "docs", "pyproject.toml", "setup.cfg")


def main(names: list[str]) -> int:
    """Plant the faults of these names, or all; return how many survived."""
    unknown = set(names) - {fault.name for fault in FAULTS}
    if unknown:
        sys.exit(f"no fault has the name {', '.join(sorted(unknown))}")
    chosen = [fault for fault in FAULTS if not names or fault.name in names]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "kdjax"
        copy.mkdir()
        for name in NEEDED:
            whole = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            whole(ROOT / name, copy / name)
        survivors = [fault.name for fault in chosen if survives(fault, copy)]
    print(f"{len(survivors)} of {len(chosen)} survive: {', '.join(survivors) or 'none'}")
    return len(survivors)


def survives(fault: Fault, copy: Path) -> bool:
    """Plant a fault, run its tests, take it out again; say whether they all passed."""
    path = copy / fault.path
    sound = path.read_text()
    if sound.count(fault.was) != 1:
        sys.exit(f"{fault.name}: {fault.path} has {sound.count(fault.was)} places of {fault.was!r}")
    path.write_text(sound.replace(fault.was, fault.now))
    options = ["-n0", "-x", "-q", "-p", "no:cacheprovider", "-m", ""]
    command = [sys.executable, "-m", "pytest", *options, *fault.tests.split()]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)
    path.write_text(sound)
    if done.returncode not in (0, 1):
        sys.exit(f"{fault.name}: the tests did not run\n{done.stdout}{done.stderr}")
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    found = failed[0][:100] if failed else "SURVIVES"
    print(f"{fault.name:28} {found}", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
