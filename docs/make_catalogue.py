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
from kdjax.runs import compare, methods  # noqa: E402


class Row(NamedTuple):
    """A method: whose code it was held against, what it learns or remembers, its loss functions.

    Those of a method that lifts one loss and does nothing else are known without.
    """

    golden: tuple[str, ...] = ()
    learns: str = ""
    losses: tuple[str, ...] = ()


ROWS: dict[str, Row] = {
    "scratch": Row(losses=("cross_entropy",)),
    "kd": Row(
        ("RepDistiller/KD", "mdistiller/kd_loss", "mdistiller/KD_total", "MLKD/kd_loss",
         "big_vision/kl", "tunix/LogitStrategy", "torchdistill/KDLoss", "cls_KD/KDLoss",
         "attention-transfer/distillation", "keras/LogitsDistillation_KLD_instance"),
        losses=("soft_target_loss",),
    ),
    "logit-std": Row(
        ("logit-standardization-KD/kd_loss", "logit-standardization-KD/dkd_loss",
         "torchdistill/LogitStdKDLoss"),
        losses=("standardize_logits", "soft_target_loss"),
    ),
    "dkd": Row(("mdistiller/dkd_loss", "logit-standardization-KD/dkd_loss")),
    "nkd": Row(("cls_KD/NKDLoss",)),
    "wsld": Row(("Weighted-Soft-Label-Distillation/WSLDistiller", "cls_KD/WSLDLoss")),
    "dist": Row(("DIST_KD/DIST", "image_classification_sota/DIST", "torchdistill/DISTLoss")),
    "ttm": Row(("TTM/TTM",)),
    "wttm": Row(("TTM/WTTM",)),
    "mlkd": Row(("MLKD/bc_loss", "MLKD/cc_loss", "MLKD/kd_loss")),
    "ctkd": Row(learns="temperature", losses=("curriculum_temperature", "soft_target_loss")),
    "logit-mse": Row(("big_vision/l2",)),
    "skd": Row(("torchdistill/SKDDirectionLoss",), losses=("direction_relation_loss",)),
    "uskd": Row(
        ("cls_KD/USKDLoss",),
        learns="classifier",
        losses=("self_target_loss", "self_rank_loss"),
    ),
    "deit-hard": Row(("big_vision/hard",), learns="token, head", losses=("hard_target_loss",)),
    "deit-soft": Row(learns="token, head", losses=("soft_target_loss",)),
    "reverse-kl": Row(("DSKD/reverse_kl", "TAID/ReverseKL", "distillm/reverse_kl")),
    "js": Row(
        ("Liger-Kernel/jsd", "TAID/JS", "trl/generalized_jsd_loss",
         "trl/generalized_jsd_loss_red", "DSKD/js_divergence", "distillm/js_distance"),
    ),
    "skew-kl": Row(("DSKD/skewed_forward_kl", "TAID/SkewForwardKL", "distillm/skewed_forward_kl")),
    "skew-reverse-kl": Row(
        ("DSKD/skewed_reverse_kl", "TAID/SkewReverseKL", "distillm/skewed_reverse_kl"),
    ),
    "total-variation": Row(("TAID/TVD", "distillm/tv_distance")),
    "akl": Row(("DSKD/adaptive_kl",)),
    "taid": Row(
        ("TAID/TAID", "TAID/TAID_schedule"),
        learns="schedule's state",
        losses=("taid_loss",),
    ),
    "hint": Row(
        ("RepDistiller/Hint", "mdistiller/FitNet", "keras/FeatureDistillation_mse",
         "tunix/FeatureProjection", "tunix/FeaturePooling"),
        learns="1x1 convolution",
        losses=("hint_loss",),
    ),
    "at": Row(
        ("RepDistiller/AT", "attention-transfer/at_loss", "mdistiller/at_loss",
         "torchdistill/ATLoss_code", "torchdistill/ATLoss_paper",
         "torchdistill/AltActTransferLoss"),
    ),
    "nst": Row(("RepDistiller/NST", "mdistiller/nst_loss")),
    "fsp": Row(("RepDistiller/FSP", "torchdistill/FSPLoss")),
    "ft": Row(
        ("RepDistiller/FT", "RepDistiller/FT_modules", "torchdistill/FTLoss"),
        learns="paraphraser, translator",
        losses=("factor_transfer_loss",),
    ),
    "ab": Row(
        ("AB_distillation/criterion", "RepDistiller/AB"),
        learns="1x1 convolutions",
        losses=("activation_boundary_loss",),
    ),
    "ofd": Row(("mdistiller/OFD",), learns="1x1 convolutions", losses=("overhaul_loss",)),
    "vid": Row(
        ("RepDistiller/VID", "mdistiller/vid_loss"),
        learns="means and variances",
        losses=("variational_information_loss",),
    ),
    "review": Row(
        ("ReviewKD/hcl", "mdistiller/ReviewKD", "mdistiller/hcl_loss",
         "torchdistill/HierarchicalContextLoss"),
        learns="fusion of stages",
        losses=("hierarchical_context_loss",),
    ),
    "cat": Row(("CAT-KD/CAT_loss",)),
    "cwd": Row(("TorchDistiller/CWD",), losses=("channel_wise_loss",)),
    "mgd": Row(("MGD/cls", "MGD/det"), learns="generator", losses=("masked_generation_loss",)),
    "simkd": Row(("SimKD/SimKD",), learns="projector, kept", losses=("projected_feature_loss",)),
    "semckd": Row(
        ("SimKD/SemCKD",),
        learns="attention, projections",
        losses=("semantic_calibration_loss",),
    ),
    "ickd": Row(learns="1x1 convolution", losses=("inter_channel_correlation_loss",)),
    "pad": Row(
        ("torchdistill/PADL2Loss",),
        learns="projection, variance",
        losses=("prime_aware_loss",),
    ),
    "srrl": Row(("cls_KD/SRRLLoss",), learns="projection", losses=("softmax_regression_loss",)),
    "rkd": Row(
        ("RKD/RkdDistance", "RKD/RKdAngle", "RepDistiller/RKD", "mdistiller/rkd_loss",
         "torchdistill/RKDLoss"),
        losses=("distance_relation_loss", "angle_relation_loss"),
    ),
    "sp": Row(("RepDistiller/SP", "mdistiller/sp_loss")),
    "cc": Row(("torchdistill/CCKD_gaussian", "torchdistill/CCKD_bilinear")),
    "cc-neighbours": Row(
        ("RepDistiller/CC", "RepDistiller/CC_embed"),
        learns="linear maps",
        losses=("consecutive_correlation_loss",),
    ),
    "pkt": Row(
        ("RepDistiller/PKT", "mdistiller/pkt_loss", "probabilistic_kt/PKT", "torchdistill/PKTLoss"),
    ),
    "darkrank": Row(("RKD/HardDarkRank",), losses=("hard_dark_rank_loss",)),
    "itrd": Row(
        ("TTM/ITRD_correlation", "TTM/ITRD_mutual"),
        learns="projection",
        losses=("itrd_correlation_loss", "itrd_mutual_loss"),
    ),
    "crd": Row(
        ("RepDistiller/CRD", "mdistiller/CRD", "torchdistill/CRDLoss"),
        learns="projections; remembers an embedding per example",
        losses=("contrastive_representation_loss",),
    ),
    "affinity": Row(("torchdistill/AffinityLoss",)),
    "ifv": Row(("TorchDistiller/IFV",), losses=("intra_class_variation_loss",)),
    "margin-mse": Row(losses=("margin_mse_loss",)),
}  # fmt: skip
COLUMNS = (
    "method", "name", "formula", "paper", "kind", "needs", "golden entries", "time", "memory",
    "gain",
)  # fmt: skip
HEAD = """# The catalogue

What `python -m experiments.distill --method NAME` knows, and the functions of `kdjax.losses` behind
it. For your own objectives, `kdjax.terms` has a term of each: `terms.of(losses.NAME, ...)`, or one
with a name of its own where something is learned. Docstrings have arguments, shapes and deviations
from the papers; [the peers' own code](golden.md) says whose code each was held against.

*Golden entries*: values with gradients, computed by other libraries' and the authors' code, that
the tests hold ours against. *Time*, *memory*: the step's time and the memory it needs at its peak,
over plain KD's (`python -m benchmarks.methods`: resnet20 to resnet8, CIFAR shapes, batches of 64).
*Gain*: points of test accuracy over labels alone, networks of convolutions on ten classes of
CIFAR-100, thirty epochs, three seeds ([RESULTS.md](../RESULTS.md#all-methods-thirty-epochs)). An
empty cell was not measured.

"""


def page() -> str:
    """Return the page: a table of the methods, then one of the other losses."""
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    lines += [_line(_method_cells(name)) for name in methods.METHODS]
    used = {loss for name in methods.METHODS for loss in losses_of(name)}
    rest = [name for name in losses.__all__ if name not in used and _paper(name)]
    lines += ["", "## Further functions", "", _line(("function", "name", "formula", "paper"))]
    lines += [_line(["---"] * 4)]
    lines += [_line((f"`{n}`", _first_line(n), _formula(n), _paper(n))) for n in rest]
    return HEAD + "\n".join(lines) + "\n"


def losses_of(name: str) -> tuple[str, ...]:
    """Name the loss functions of a method."""
    lifted = methods.loss_of(name)
    return ROWS.get(name, Row()).losses or ((lifted,) if lifted else ())


def _method_cells(name: str) -> list[str]:
    row = ROWS.get(name, Row())
    cost = _read("cost.json").get(name, {})
    counts = _golden_counts()
    return [
        f"`{name}`",
        methods.METHODS[name].line.rstrip("."),
        "; ".join(filter(None, map(_formula, losses_of(name)))),
        "; ".join(dict.fromkeys(filter(None, map(_paper, losses_of(name))))),
        _kind(name),
        ", ".join(filter(None, (_inputs(name), row.learns))),
        str(sum(counts[loss] for loss in row.golden) or ""),
        *(f"{cost[key]:.2f}" if key in cost else "" for key in ("time", "memory")),
        _gain(name),
    ]


def _kind(name: str) -> str:
    needs = methods.METHODS[name].needs
    if methods.Need.MAPS in needs:
        return "maps"
    return "features" if methods.Need.FEATURES in needs else "logits"


def _inputs(name: str) -> str:
    functions = [getattr(losses, loss) for loss in losses_of(name)]
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
    entries = {e.method: e for e in compare.read(path)} if path.exists() else {}
    if name not in entries or name == compare.BASELINE:
        return ""
    baseline = statistics.mean(entries[compare.BASELINE].last)
    return compare.gain(entries[name], baseline)


def _read(name: str) -> dict[str, dict[str, float]]:
    path = ROOT / "docs" / "results" / name
    return json.loads(path.read_text()) if path.exists() else {}


def _line(cells: object) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    print(page(), end="")
