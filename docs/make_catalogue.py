"""Make docs/catalogue.md from docstrings and results.

    python docs/make_catalogue.py > docs/catalogue.md

A method's formula, paper and needs come from its loss function; cost and gain from the files in
docs/results, which `python -m benchmarks.methods --json` and `python -m experiments.compare` write.
"""

import inspect
import json
import re
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from kdjax import losses  # noqa: E402
from kdjax.runs import comparison, methods, settings  # noqa: E402


class Row(NamedTuple):
    """A method: its loss functions, what it learns or remembers, whose code it was held against."""

    losses: tuple[str, ...]
    golden: tuple[str, ...] = ()
    learns: str = ""


ROWS: dict[str, Row] = {
    "scratch": Row(("cross_entropy",)),
    "kd": Row(
        ("soft_target_loss",),
        ("RepDistiller/KD", "mdistiller/kd_loss", "mdistiller/KD_total", "MLKD/kd_loss",
         "big_vision/kl", "tunix/LogitStrategy", "torchdistill/KDLoss", "cls_KD/KDLoss",
         "attention-transfer/distillation", "keras/LogitsDistillation_KLD_instance"),
    ),
    "logit-std": Row(
        ("standardize_logits", "soft_target_loss"),
        ("logit-standardization-KD/kd_loss", "logit-standardization-KD/dkd_loss",
         "torchdistill/LogitStdKDLoss"),
    ),
    "dkd": Row(("dkd_loss",), ("mdistiller/dkd_loss", "logit-standardization-KD/dkd_loss")),
    "nkd": Row(("nkd_loss",), ("cls_KD/NKDLoss",)),
    "wsld": Row(
        ("wsld_loss",),
        ("Weighted-Soft-Label-Distillation/WSLDistiller", "cls_KD/WSLDLoss"),
    ),
    "dist": Row(
        ("dist_loss",),
        ("DIST_KD/DIST", "image_classification_sota/DIST", "torchdistill/DISTLoss"),
    ),
    "ttm": Row(("ttm_loss",), ("TTM/TTM",)),
    "wttm": Row(("wttm_loss",), ("TTM/WTTM",)),
    "mlkd": Row(("multi_level_loss",), ("MLKD/bc_loss", "MLKD/cc_loss", "MLKD/kd_loss")),
    "ctkd": Row(("curriculum_temperature", "soft_target_loss"), learns="temperature"),
    "logit-mse": Row(("logit_mse_loss",), ("big_vision/l2",)),
    "skd": Row(("direction_relation_loss",), ("torchdistill/SKDDirectionLoss",)),
    "tfkd": Row(("virtual_teacher_loss",)),
    "uskd": Row(("self_target_loss", "self_rank_loss"), ("cls_KD/USKDLoss",), "classifier"),
    "reverse-kl": Row(
        ("reverse_kl_divergence",),
        ("DSKD/reverse_kl", "TAID/ReverseKL", "distillm/reverse_kl"),
    ),
    "js": Row(
        ("generalized_js_divergence",),
        ("Liger-Kernel/jsd", "TAID/JS", "trl/generalized_jsd_loss",
         "trl/generalized_jsd_loss_red", "DSKD/js_divergence", "distillm/js_distance"),
    ),
    "skew-kl": Row(
        ("skew_kl_divergence",),
        ("DSKD/skewed_forward_kl", "TAID/SkewForwardKL", "distillm/skewed_forward_kl"),
    ),
    "skew-reverse-kl": Row(
        ("skew_reverse_kl_divergence",),
        ("DSKD/skewed_reverse_kl", "TAID/SkewReverseKL", "distillm/skewed_reverse_kl"),
    ),
    "total-variation": Row(("total_variation",), ("TAID/TVD", "distillm/tv_distance")),
    "akl": Row(("adaptive_kl_divergence",), ("DSKD/adaptive_kl",)),
    "taid": Row(("taid_loss",), ("TAID/TAID", "TAID/TAID_schedule"), "schedule's state"),
    "hint": Row(
        ("hint_loss",),
        ("RepDistiller/Hint", "mdistiller/FitNet", "keras/FeatureDistillation_mse",
         "tunix/FeatureProjection", "tunix/FeaturePooling"),
        "1x1 convolution",
    ),
    "at": Row(
        ("attention_transfer_loss",),
        ("RepDistiller/AT", "attention-transfer/at_loss", "mdistiller/at_loss",
         "torchdistill/ATLoss_code", "torchdistill/ATLoss_paper",
         "torchdistill/AltActTransferLoss"),
    ),
    "nst": Row(("neuron_selectivity_loss",), ("RepDistiller/NST", "mdistiller/nst_loss")),
    "fsp": Row(("flow_loss",), ("RepDistiller/FSP", "torchdistill/FSPLoss")),
    "ft": Row(
        ("factor_transfer_loss",),
        ("RepDistiller/FT", "RepDistiller/FT_modules", "torchdistill/FTLoss"),
        "paraphraser, translator",
    ),
    "ab": Row(
        ("activation_boundary_loss",),
        ("AB_distillation/criterion", "RepDistiller/AB"),
        "1x1 convolutions",
    ),
    "ofd": Row(("overhaul_loss",), ("mdistiller/OFD",), "1x1 convolutions"),
    "vid": Row(
        ("variational_information_loss",),
        ("RepDistiller/VID", "mdistiller/vid_loss"),
        "means and variances",
    ),
    "review": Row(
        ("hierarchical_context_loss",),
        ("ReviewKD/hcl", "mdistiller/ReviewKD", "mdistiller/hcl_loss",
         "torchdistill/HierarchicalContextLoss"),
        "fusion of stages",
    ),
    "cat": Row(("class_attention_loss",), ("CAT-KD/CAT_loss",)),
    "cwd": Row(("channel_wise_loss",), ("TorchDistiller/CWD",)),
    "mgd": Row(("masked_generation_loss",), ("MGD/cls", "MGD/det"), "generator"),
    "simkd": Row(("projected_feature_loss",), ("SimKD/SimKD",), "projector, kept"),
    "semckd": Row(("semantic_calibration_loss",), ("SimKD/SemCKD",), "attention, projections"),
    "ickd": Row(("inter_channel_correlation_loss",), (), "1x1 convolution"),
    "pad": Row(("prime_aware_loss",), ("torchdistill/PADL2Loss",), "projection, variance"),
    "srrl": Row(("softmax_regression_loss",), ("cls_KD/SRRLLoss",), "projection"),
    "rkd": Row(
        ("distance_relation_loss", "angle_relation_loss"),
        ("RKD/RkdDistance", "RKD/RKdAngle", "RepDistiller/RKD", "mdistiller/rkd_loss",
         "torchdistill/RKDLoss"),
    ),
    "sp": Row(("similarity_preserving_loss",), ("RepDistiller/SP", "mdistiller/sp_loss")),
    "cc": Row(
        ("correlation_congruence_loss",),
        ("torchdistill/CCKD_gaussian", "torchdistill/CCKD_bilinear"),
    ),
    "cc-neighbours": Row(
        ("consecutive_correlation_loss",),
        ("RepDistiller/CC", "RepDistiller/CC_embed"),
        "linear maps",
    ),
    "pkt": Row(
        ("probabilistic_transfer_loss",),
        ("RepDistiller/PKT", "mdistiller/pkt_loss", "probabilistic_kt/PKT",
         "torchdistill/PKTLoss"),
    ),
    "darkrank": Row(("hard_dark_rank_loss",), ("RKD/HardDarkRank",)),
    "itrd": Row(
        ("itrd_correlation_loss", "itrd_mutual_loss"),
        ("TTM/ITRD_correlation", "TTM/ITRD_mutual"),
        "projection",
    ),
    "crd": Row(
        ("contrastive_representation_loss",),
        ("RepDistiller/CRD", "mdistiller/CRD", "torchdistill/CRDLoss"),
        "projections; remembers an embedding per example",
    ),
}  # fmt: skip
COLUMNS = (
    "method", "name", "formula", "paper", "kind", "needs", "golden entries", "time", "memory",
    "gain",
)  # fmt: skip
HEAD = """# The catalogue

What `python -m experiments.distill --method NAME` knows, and the functions of `kdjax.losses` behind
it, each with a term of `kdjax.terms` for your own objectives. Docstrings have arguments, shapes and
deviations from the papers; [golden.md](golden.md) says whose code each was held against.

*Golden entries*: values with gradients, computed by other libraries' and the authors' code, that
the tests hold ours against. *Time*, *memory*: the step's time and the memory it needs at its peak,
over plain KD's (`python -m benchmarks.methods`: resnet20 to resnet8, CIFAR shapes, batches of 64).
*Gain*: points of test accuracy over labels alone (`python -m experiments.compare`, see
[RESULTS.md](../RESULTS.md)). An empty cell was not measured; nan: the training diverged.

"""


def page() -> str:
    """Return the page: a table of the methods, then one of the other losses."""
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    lines += [_line(_method_cells(name)) for name in methods.METHODS]
    used = {name for row in ROWS.values() for name in row.losses}
    rest = [name for name in losses.__all__ if name not in used and _paper(name)]
    lines += ["", "## Further functions", "", _line(("function", "name", "formula", "paper"))]
    lines += [_line(["---"] * 4)]
    lines += [_line((f"`{n}`", _first_line(n), _formula(n), _paper(n))) for n in rest]
    return HEAD + "\n".join(lines) + "\n"


def _method_cells(name: str) -> list[str]:
    row = ROWS[name]
    cost = _read("cost.json").get(name, {})
    counts = _golden_counts()
    return [
        f"`{name}`",
        settings.method_lines()[name].rstrip("."),
        "; ".join(filter(None, map(_formula, row.losses))),
        "; ".join(dict.fromkeys(filter(None, map(_paper, row.losses)))),
        _kind(name),
        ", ".join(filter(None, (_inputs(name), row.learns))),
        str(sum(counts[loss] for loss in row.golden) or ""),
        *(f"{cost[key]:.2f}" if key in cost else "" for key in ("time", "memory")),
        _gain(name),
    ]


def _kind(name: str) -> str:
    if name in methods.LOGITS:
        return "logits"
    return "maps" if name in methods.SPATIAL else "features"


def _inputs(name: str) -> str:
    functions = [getattr(losses, loss) for loss in ROWS[name].losses]
    return "labels" if any("labels" in inspect.signature(f).parameters for f in functions) else ""


def _formula(name: str) -> str:
    """Return the paragraph after a docstring's first line, if it is a formula."""
    parts = inspect.getdoc(getattr(losses, name)).split("\n\n")
    lines = parts[1] if len(parts) > 1 else ""
    # A line that defines another symbol is a formula of its own.
    text = " ".join(re.sub(r",?\n(?=\S+ = )", "; ", lines).replace("`", "").split())
    is_formula = re.search(r"[=^*/+|]|sum|mean|log|KL", text) and not text.startswith("Args")
    return f"`{text}`".replace("|", "\\|") if is_formula and len(text) < 160 else ""


def _paper(name: str) -> str:
    """Return authors and year of a docstring's first reference, linked where it is on arXiv."""
    _, _, references = (inspect.getdoc(getattr(losses, name)) or "").partition("References:\n")
    text = " ".join(references.split("\n\n")[0].split())
    found = re.match(r'(?P<authors>[^"]+), "(?P<title>[^"]+)", (?P<year>\d{4})', text)
    if not found:
        return ""
    authors = found["authors"].split(", ")
    who = authors[0] if len(authors) == 1 else f"{authors[0]} et al."
    number = re.search(r"arXiv:([\d.]+\d)", text)
    cited = f"{who} {found['year']}"
    return f"[{cited}](https://arxiv.org/abs/{number[1]})" if number else cited


def _first_line(name: str) -> str:
    return inspect.getdoc(getattr(losses, name)).split("\n", 1)[0].rstrip(".").replace("|", "\\|")


def _golden_counts() -> dict[str, int]:
    text = (ROOT / "docs" / "golden.md").read_text()
    found = re.findall(r"^\| (\S+/\S+) \| \w+ \| (\d+) \|", text, re.MULTILINE)
    return {name: int(count) for name, count in found}


def _gain(name: str) -> str:
    path = ROOT / "docs" / "results" / "comparison.json"
    entries = {e.method: e for e in comparison.read(path)} if path.exists() else {}
    if name not in entries or name == comparison.BASELINE:
        return ""
    baseline = statistics.mean(entries[comparison.BASELINE].last)
    return comparison.gain(entries[name], baseline)


def _read(name: str) -> dict[str, dict[str, float]]:
    path = ROOT / "docs" / "results" / name
    return json.loads(path.read_text()) if path.exists() else {}


def _line(cells: object) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    print(page(), end="")
