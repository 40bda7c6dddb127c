"""The types that flow through kdjax: networks, teachers and losses as pairs of pure functions."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, Self

import jax
from jax import Array

__all__ = [
    "Array", "Batch", "Decode", "FeaturePaths", "Metrics", "Model", "ModelApply", "ModelInit",
    "Objective", "ObjectiveApply", "OnlineTeacher", "Outputs", "PyTree", "Teacher", "TeacherApply",
    "Term", "TermApply", "TermInit", "TermInputs", "TrainState", "Variables",
]  # fmt: skip

PyTree = Any
Batch = Mapping[str, Any]
"""Arrays by name (`image`, `label`, `index`, `mask`, `teacher_logits`), [batch, ...].

`mask` marks the examples that count, in booleans, or weighs them, in numbers. What has another
first axis than the batch, such as a scalar or a key, is one for the whole batch.
"""

Metrics = dict[str, tuple[Array, Array]]
"""Means as `{name: (total, count)}`, so that they merge exactly over steps, devices and hosts."""


class Outputs(NamedTuple):
    """A network's answer to a batch: `logits` [..., num_classes], features by module path.

    Of a teacher whose largest logits alone are stored, `logits` is a `kdjax.heads.TopK`.
    """

    logits: Array
    features: Mapping[str, Array] = {}


class Variables(NamedTuple):
    """Arrays of a network or term: `params` are trained, `state` is carried (BatchNorm, banks)."""

    params: PyTree
    state: PyTree


class ModelInit(Protocol):
    """Makes the variables of a network from a key and a batch of inputs."""

    def __call__(self, key: Array, inputs: Any) -> Variables:
        """Return fresh variables for inputs of this shape."""


class ModelApply(Protocol):
    """Runs a network. `state` comes back changed in training and as it was in evaluation."""

    def __call__(
        self, params: PyTree, state: PyTree, inputs: Any, *, train: bool, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        """Return the outputs and the new state."""


class FeaturePaths(NamedTuple):
    """Where a network has its features: module paths, to be captured and named in terms.

    `stages` are its maps or hidden layers after the nonlinearity, from the input to the output;
    `preactivations` are the same before it (in a transformer: hidden units before the GELU); the
    `embedding` is what its classifier reads, and `head` is the classifier's name among the
    parameters. A network of convolutions is `spatial`: its stages are maps [batch, height, width,
    channels], of which `last_map` is the one that the embedding is the mean of, and `norms` are the
    parameters of the BatchNorm right before each nonlinearity, empty where it sees more than one.
    Where several heads answer, `heads` are those whose outputs are logits by themselves.
    """

    stages: tuple[str, ...] = ()
    preactivations: tuple[str, ...] = ()
    embedding: str = ""
    head: str = ""
    spatial: bool = False
    last_map: str = ""
    norms: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Return all paths of features, each once."""
        named = (*self.stages, *self.preactivations, self.last_map, self.embedding, *self.heads)
        return tuple(dict.fromkeys(filter(None, named)))


class Decode(NamedTuple):
    """How a language model reads a few tokens at a time, and remembers those before them.

    `start(batch_size, length)` makes an empty cache for as many tokens as `length`; its `read`
    [batch] says how many of each row were read. `apply(params, state, tokens, cache)` reads tokens
    [batch, n] and answers with logits [batch, n, vocab_size] and the new cache. `context` is the
    most tokens in a row; `spec` what the model was made from, where it says so.
    """

    start: Callable[[int, int], Any]
    apply: Callable[[PyTree, PyTree, Array, Any], tuple[Array, Any]]
    vocab_size: int | None
    context: int
    spec: Any = None


class Model(NamedTuple):
    """A network as a pair of pure functions, and where it has its features, if it says so.

    A language model may also `decode`, a few tokens at a time.
    """

    init: ModelInit
    apply: ModelApply
    paths: FeaturePaths = FeaturePaths()
    decode: Decode | None = None


class TeacherApply(Protocol):
    """Answers a batch with the teacher's outputs."""

    def __call__(self, variables: PyTree, batch: Batch) -> Outputs:
        """Return the teacher's outputs for the batch."""


class Teacher(NamedTuple):
    """A function of a batch, and the arrays it needs: arguments of a step, never constants.

    `held_in` names the entries of the batch that its answers were stored in, if they were.
    """

    variables: PyTree
    apply: TeacherApply
    held_in: tuple[str, ...] = ()


class OnlineTeacher(NamedTuple):
    """A teacher that changes in training; its arrays are `TrainState.teacher_state`.

    `init` makes them from the student's variables, `apply` answers a batch with them, and
    `update` renews them from the student's new variables and the number of steps taken.
    """

    init: Callable[[Variables], PyTree]
    apply: TeacherApply
    update: Callable[[PyTree, Variables, Array], PyTree]


class TermInputs(NamedTuple):
    """What a loss may look at. `mask` [batch...] marks the examples that count.

    Where it holds numbers they are weights; an objective tells its terms who counts, in booleans.
    """

    batch: Batch
    student: Outputs
    teacher: Outputs | None
    mask: Array


class TermInit(Protocol):
    """Makes the variables of a term from a key and example inputs."""

    def __call__(self, key: Array, inputs: TermInputs) -> Variables:
        """Return fresh variables, empty for a term that neither learns nor remembers."""


class TermApply(Protocol):
    """Computes a term: one value per example."""

    def __call__(self, params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        """Return the values [batch...] and the new state."""


class Term(NamedTuple):
    """One distillation loss. `couples_batch`: an example's value depends on the others.

    `ignore_label`: the class label of what does not count in its mean, though the mask counts it. A
    term made of this one that shows it other labels has None, or an own one.
    """

    init: TermInit
    apply: TermApply
    couples_batch: bool = False
    ignore_label: int | None = None


class ObjectiveApply(Protocol):
    """Computes the weighted sum of terms, averaged over the examples that count."""

    def __call__(
        self,
        params: PyTree,
        state: PyTree,
        inputs: TermInputs,
        *,
        step: Array | int = 0,
        whole: Any = None,
    ) -> tuple[Array, PyTree, Metrics]:
        """Return the scalar loss, the new state and the metrics of every term.

        Of a part of a batch the loss is its share of the batch's, whose mask is then `whole`, or
        whose mask and labels, `{"mask": ..., "label": ...}`, where terms ignore some.
        """


class Objective(NamedTuple):
    """What training minimizes: named terms, each with its weight, reduced to one number.

    `couples_batch` names the terms whose values depend on the other examples of the batch,
    `ignores_labels` those in whose mean some labels do not count.
    """

    init: TermInit
    apply: ObjectiveApply
    couples_batch: tuple[str, ...] = ()
    ignores_labels: tuple[str, ...] = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes, arrays only: donated, sharded and checkpointed as it is.

    `params` has two entries, `student` (what is exported) and `terms` (what losses learn).
    """

    step: Array
    params: dict[str, PyTree]
    model_state: PyTree
    term_state: PyTree
    opt_state: PyTree
    key: Array
    teacher_state: PyTree = ()

    def replace(self, **changes: Any) -> Self:
        """Return the state with these fields changed."""
        return dataclasses.replace(self, **changes)
