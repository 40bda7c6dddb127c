"""Ctrl-C and SIGTERM: heard at every moment, answered at once, never a traceback."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdjax import loop

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "delay", "number"),
    [
        ("experiments.distill", 0.15, signal.SIGINT),
        ("experiments.hinton2015.mnist", 0.6, signal.SIGTERM),
        ("kdjax", 1.2, signal.SIGINT),
        ("experiments.online", 2.5, signal.SIGTERM),
    ],
)
def test_a_script_ends_by_a_signal_of_its_first_seconds(module, delay, number, tmp_path):
    word = ["distill"] if module == "kdjax" else []
    command = [sys.executable, "-m", module, *word, "--workdir", str(tmp_path / "w")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(delay)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode in (128 + number, 130), errors
    assert errors.startswith("error: ") and errors.count("\n") == 1


def test_a_library_leaves_signals_alone():
    code = "import signal; before = signal.getsignal(signal.SIGINT)\n"
    code += "import experiments.distill, kdjax.runs.command\n"
    code += "assert signal.getsignal(signal.SIGINT) is before"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_answer_does_not_wait_for_what_runs_in_c(monkeypatch):
    said = []
    written = SimpleNamespace(
        write=lambda text: said.append((text, time.monotonic())), flush=lambda: None
    )
    monkeypatch.setattr(sys, "stdout", written)
    before = signal.set_wakeup_fd(-1)
    with loop.stop_on_signals() as stop_fn:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        # In C without a look at signals, as a compiler is.
        hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)
        end = time.monotonic()
        assert stop_fn()
    assert said[0][0].startswith("stopping after this step")
    assert said[0][1] < end - 0.1
    assert sum("stopping" in text for text, _ in said) == 1
    assert signal.set_wakeup_fd(before) == -1
