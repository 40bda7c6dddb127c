"""What `--method` knows, with the line of help of each: plain data, read without importing jax.

`kdjax.runs.methods` says what each name does, in the same order.
"""

from kdjax.runs.flags import Limit, nearest

LINES: dict[str, str] = {
    "scratch": "Labels alone.",
    "kd": "Soft targets, T and their weight as the flags say (Hinton et al., 2015).",
    "logit-std": "Soft targets of z-scores of the logits, T = 2 (Sun et al., 2024).",
    "dkd": "The labeled class and the others apart (Zhao et al., 2022); warm-up over a twelfth.",
    "nkd": "The labeled class and the others, normalized (Yang et al., 2023).",
    "wsld": "Soft targets weighed by what they have on the labels (Zhou et al., 2021).",
    "dist": "Correlations between and within classes, T = 4 (Huang et al., 2022).",
    "ttm": "Only the teacher is softened (Zheng & Yang, 2024).",
    "wttm": "The same, weighed by the teacher's doubt (Zheng & Yang, 2024).",
    "mlkd": "Instances, batch and classes at five temperatures (Jin et al., 2023).",
    "ctkd": "A temperature that learns to be difficult (Li et al., 2022), over a twenty-fourth.",
    "logit-mse": "Squared differences of the logits (Ba & Caruana, 2013); the weight is ours.",
    "skd": "Soft targets, and cosines between examples' logits (Jeong et al., 2026).",
    "tfkd": "A teacher made by hand, T = 20 (Yuan et al., 2019): no teacher.",
    "deit-hard": "The teacher's decisions by a distillation token (Touvron et al., 2020); a vit.",
    "deit-soft": "Soft targets by a distillation token, T = 3 (Touvron et al., 2020); a vit.",
    "reverse-kl": "KL of the student from the teacher (Gu et al., 2023).",
    "js": "Generalized Jensen-Shannon, beta = 0.5 (Agarwal et al., 2023).",
    "skew-kl": "KL from a mixture, skew 0.1 (Ko et al., 2024).",
    "skew-reverse-kl": "Reverse KL from a mixture, skew 0.1 (Ko et al., 2024).",
    "total-variation": "Half the L1 distance of probabilities (Wen et al., 2023).",
    "akl": "Forward and reverse KL by how head and tail differ (Wu et al., 2024).",
    "taid": "A target that moves from the student to the teacher (Shing et al., 2025).",
    "uskd": "Soft labels from the student itself (Yang et al., 2023): no teacher.",
    "hint": "The middle feature through a learned map (Romero et al., 2014).",
    "ab": "Activation boundaries (Heo et al., 2018), with the labels and not before them.",
    "vid": "Information about the teacher's stages (Ahn et al., 2019).",
    "pad": "The embedding with a learned uncertainty (Zhang et al., 2020); the weight is ours.",
    "srrl": "Features that the teacher's classifier can read (Yang et al., 2021).",
    "rkd": "Distances and angles of embeddings (Park et al., 2019).",
    "sp": "Similarity of the last maps (Tung & Mori, 2019).",
    "cc": "Correlation congruence of embeddings (Peng et al., 2019); the weight is ours.",
    "cc-neighbours": (
        "Products of the errors of neighbours in the batch: the tables' CC (Peng et al., 2019)."
    ),
    "pkt": "Probabilities of neighbours (Passalis & Tefas, 2018).",
    "darkrank": "The order of neighbours (Chen et al., 2018); the weight is ours.",
    "itrd": "Correlation and mutual information (Miles et al., 2021).",
    "crd": "Contrast with a memory bank, 16,384 negatives (Tian et al., 2019).",
    "at": "Attention maps of all stages (Zagoruyko & Komodakis, 2016).",
    "nst": "Neuron selectivity of all stages (Huang & Wang, 2017).",
    "fsp": "The flow from stage to stage (Yim et al., 2017), with the labels; the weight is ours.",
    "ft": "Factors of the last map (Kim et al., 2018); the paraphraser learns meanwhile.",
    "ofd": "What the teacher's ReLU lets through (Heo et al., 2019).",
    "review": "Stages fused with all behind them (Chen et al., 2021); warm-up over a twelfth.",
    "cat": "Class activation maps (Guo et al., 2023); the weight is ours.",
    "cwd": (
        "Where each channel looks, last map (Shu et al., 2020); same widths; the weight is ours."
    ),
    "mgd": "The last map from what a mask leaves of it (Yang et al., 2022).",
    "simkd": (
        "The teacher's classifier on a map that learns to be the teacher's (Chen et al., 2022)."
    ),
    "semckd": "Soft targets, and all stages from all, by learned attention (Chen et al., 2020).",
    "ickd": "How channels relate, last map (Liu et al., 2021).",
    "affinity": "Of pixels: which respond together, class by class (He et al., 2019).",
    "ifv": "Of pixels: how each differs from the mean of its class (Wang et al., 2020).",
    "margin-mse": (
        "Of embeddings: by how much the teacher's nearest is nearer (Hofstätter et al., 2020)."
    ),
}


def _method_words(name: str) -> str:
    wrong = [part for part in name.split("+") if part not in LINES]
    if not wrong:
        return "one that teaches: a student of labels alone is trained beside it anyway"
    told = nearest(wrong[0], LINES) if wrong[0] else "a + has a method on both sides"
    return f"made of known methods ({wrong[0]!r} is none; {told})"


METHOD = Limit(_method_words, lambda name: all(part in LINES for part in name.split("+")))
TAUGHT = METHOD._replace(holds=lambda name: METHOD.holds(name) and name != "scratch")
