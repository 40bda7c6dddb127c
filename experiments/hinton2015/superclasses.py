"""CIFAR-100's superclasses, as the data's own `coarse_label` has them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

MEMBERS = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}
OF = {name: group for group, names in MEMBERS.items() for name in names.split()}


def pairs_shared(sets: Sequence[Sequence[str]]) -> float:
    """Return the share of the pairs of classes within a set that have one superclass."""
    groups = np.array([[OF[name] for name in names] for names in sets])
    alike = groups[:, :, None] == groups[:, None, :]
    return float(alike[:, ~np.eye(groups.shape[1], dtype=bool)].mean())


def most_frequent(names: Sequence[str]) -> str:
    """Say which superclass most of these classes are of, and how many: "trees (5)"."""
    group, count = Counter(OF[name] for name in names).most_common(1)[0]
    return f"{group} ({count})"
