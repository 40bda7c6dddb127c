"""Tables, figures and one self-contained HTML page about a teacher and its students.

A summary is `{"teacher" | "scratch" | "distilled": {"num_params": int, "test_errors": [int], ...}}`
with one entry per seed in each list; the scratch student is trained on the labels alone, the
distilled one with the teacher. Rows are those of the log: one dictionary per step and split.
"""

import base64
import html
import io
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdjax import _page

_NAMES = {
    "teacher": "teacher",
    "scratch": "student, labels only",
    "distilled": "student, distilled",
}
