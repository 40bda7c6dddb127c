"""Terms of channels, classes and directions that neither learn nor remember."""

from kdjax import losses
from kdjax.terms._base import feature_of, stateless, teacher_of
from kdjax.terms._stages import Paths, summed
from kdjax.types import Array, Term, TermInputs


def channel_wise(
    student_features: Paths, teacher_features: Paths, *, temperature: float | Array = 4.0
) -> Term:
    """Follow where each channel looks, see `kdjax.losses.channel_wise_loss`.

    Args:
        student_features: module path of a feature map, or one for each stage; the losses add up.
        teacher_features: as many, of the same widths; where sizes differ, the larger map is
            averaged, see `kdjax.losses.match_sizes`.
        temperature: of the softmax over positions.
    """

    def loss(student: Array, teacher: Array) -> Array:
        student, teacher = losses.match_sizes(student, teacher)
        return losses.channel_wise_loss(student, teacher, temperature=temperature)

    return summed("channel_wise", loss, student_features, teacher_features)


def affinity(student_features: Paths, teacher_features: Paths) -> Term:
    """Keep which positions respond together, see `kdjax.losses.affinity_loss`.

    Args:
        student_features: module path of a feature map, or one for each stage; the losses add up.
        teacher_features: as many, of the same shapes.
    """
    return summed("affinity", losses.affinity_loss, student_features, teacher_features)


def class_attention(
    student_feature: str = "class_maps",
    teacher_feature: str = "class_maps",
    *,
    resolution: int = 2,
    normalize: bool = True,
) -> Term:
    """Look where the teacher sees each class, see `kdjax.losses.class_attention_loss`.

    Args:
        student_feature: name of the student's class activation maps, such as
            `kdjax.models.with_class_maps` adds.
        teacher_feature: likewise of the teacher's.
        resolution: the height and width that the maps are averaged to.
        normalize: whether each map is divided by its norm.
    """

    def loss(student: Array, teacher: Array) -> Array:
        return losses.class_attention_loss(
            student, teacher, resolution=resolution, normalize=normalize
        )

    return summed("class_attention", loss, student_feature, teacher_feature)


def cosine(student_features: Paths, teacher_features: Paths) -> Term:
    """Point where the teacher's features point, see `kdjax.losses.cosine_loss`.

    Args:
        student_features: module path of a feature, or one for each stage; the losses add up.
        teacher_features: as many, of the same shapes.
    """
    return summed("cosine", losses.cosine_loss, student_features, teacher_features)


def intra_class_variation(student_feature: str, teacher_feature: str, *, num_classes: int) -> Term:
    """Keep how pixels vary in their class, see `kdjax.losses.intra_class_variation_loss`.

    Args:
        student_feature: module path of a feature map.
        teacher_feature: likewise, of the same height and width.
        num_classes: of the segmentation that is `batch["label"]`, [batch, rows, columns].
    """

    def loss(inputs: TermInputs) -> Array:
        return losses.intra_class_variation_loss(
            feature_of("intra_class_variation", "student", inputs.student, student_feature),
            feature_of("intra_class_variation", "teacher", teacher_of(inputs), teacher_feature),
            inputs.batch["label"],
            num_classes=num_classes,
        )

    return stateless(loss)


def simkd(teacher_feature: str, *, student_feature: str = "projected") -> Term:
    """Regress the teacher's last feature map, for a student made by `kdjax.models.simkd`.

    mean of (projected - teacher)^2, the larger map averaged to the size of the smaller

    Args:
        teacher_feature: module path of the map that the teacher's classifier averages.
        student_feature: name of the projected map.

    References:
        Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher
        Classifier", 2022, arXiv:2203.14001.
    """
    return summed("simkd", losses.projected_feature_loss, student_feature, teacher_feature)
