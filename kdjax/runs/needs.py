"""What a method may need of data and networks, and a task may lack."""

import enum


class Need(enum.Flag):
    """What a method may need of data and networks."""

    NOTHING = 0
    CLASSES = enum.auto()
    """Logits of classes, of which each example has one: their softmax means something."""
    LABELS = enum.auto()
    """Its own terms read labels, and not only the cross-entropy beside them."""
    INDEX = enum.auto()
    """The place of every example in the training set: it remembers something of each."""
    WHOLE_BATCH = enum.auto()
    """It relates the examples of a batch, so that micro-batches would change it."""
    FEATURES = enum.auto()
    """Features of any shape, of both networks."""
    MAPS = enum.auto()
    """Feature maps, of both networks."""
    NORMS = enum.auto()
    """BatchNorm right before the teacher's ReLUs."""
    CLASSIFIER = enum.auto()
    """The teacher's last layer."""
    TOKEN = enum.auto()
    """A vision transformer as student, which gets a distillation token."""
    SAME_WIDTHS = enum.auto()
    """As many channels in the stages of both networks."""
    SAME_LAST_WIDTH = enum.auto()
    """As many channels in the last stage of both networks."""
