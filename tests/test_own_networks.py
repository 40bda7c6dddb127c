"""Networks of the user's own code and weights, on the command line."""

import dataclasses
import json
import re
import textwrap

import jax
import numpy as np
import pytest

from kdjax import models
from kdjax.runs import distill
from kdjax.runs.networks import starting_values
from kdjax.runs.settings import NetworkSettings

CODE = """
import flax.linen as nn
import jax.numpy as jnp
from flax import nnx


class Hidden(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Conv(6, (3, 3), strides=2)(x))


class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, *, train):
        x = Hidden(name="hidden")(x)
        pooled = jnp.mean(x, axis=(1, 2))
        return {"logits": nn.Dense(self.num_classes, name="head")(pooled), "maps": x}


class Wrong(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(7)(x.reshape(len(x), -1))


class Live(nnx.Module):
    def __init__(self, num_classes, image_shape, *, rngs):
        height, width, channels = image_shape
        self.one = nnx.Linear(height * width * channels, 7, rngs=rngs)
        self.head = nnx.Linear(7, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.one(x.reshape(len(x), -1))))


def number():
    return 3


def torchs():
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 12, 3), torch.nn.BatchNorm2d(12), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(12 * 36, 23),
    )
"""
SMALL = ["--teacher.epochs", "1", "--epochs", "4", "--num-seeds", "1", "--eval-every", "1000"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with code of the user's own, from which commands are run."""
    where = tmp_path_factory.mktemp("own")
    (where / "own_nets.py").write_text(textwrap.dedent(CODE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        patch.syspath_prepend(str(where))
        yield where


def run(folder, name, *flags):
    """Run the command line in this process; return the summary."""
    flags = [*SMALL, "--workdir", str(folder / name), *map(str, flags)]
    distill.main(flags)
    return json.loads((folder / name / "summary.json").read_text())


def refused(capsys, folder, *flags):
    with pytest.raises(SystemExit) as stopped:
        run(folder, "refused", *flags)
    assert stopped.value.code == 2
    assert not (folder / "refused").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["own_nets:Net", "own_nets:Live"])
def test_a_network_of_ones_own_is_built_from_its_name(folder, name):
    stages = {"own_nets:Net": ("hidden",), "own_nets:Live": ("one",)}[name]
    spec = models.NetworkSpec(name, (), 5, (8, 8, 1), (0.5,), (0.5,), stages=stages)
    model, images = models.build(spec, features=stages), np.zeros((2, 8, 8, 1), np.uint8)
    outputs, _ = model.apply(*model.init(jax.random.key(0), images), images, train=False)
    assert outputs.logits.shape == (2, 5)
    assert model.paths.spatial == (name == "own_nets:Net")
    assert outputs.features[stages[0]].shape[0] == 2


@pytest.mark.slow
def test_own_networks_learn_and_teach_with_features_by_path(folder):
    run(
        folder, "both", "--teacher.module", "own_nets:Live", "--student.module", "own_nets:Net",
        "--method", "sp", "--student.stages", "hidden", "--student.classifier", "head",
        "--teacher.stages", "one", "--student.embedding", "hidden",
    )  # fmt: skip
    network = models.load_network(folder / "both" / "student")
    assert network.spec.name == "own_nets:Net"
    assert network.model.paths.stages == ("hidden",)
    assert network.model.paths.spatial
    assert network(np.zeros((2, 8, 8, 1), np.uint8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--student.module", "own_nets:Nett"], "own_nets has no Nett; did you mean Net"),
        (
            ["--student.module", "own_netz:Net"],
            "there is no module own_netz on Python's path",
        ),
        (["--student.module", "own_nets"], "--student.module must be PACKAGE.MODULE:NAME"),
        (["--student.module", "own_nets:number"], "returned a int, expected a Linen or PyTorch"),
        (["--student.module", "own_nets:Net", "--student.name", "mlp"], "leave out --student.name"),
        (["--student.module", "own_nets:Net", "--student.widths", "5"], "out --student.widths"),
        (
            ["--teacher.module", "own_nets:Wrong"],
            "--teacher.module own_nets:Wrong answers an image",
        ),
        (["--student.module", "own_nets:Wrong"], r"answers an image with \(7,\).* needs \(10,\)"),
        (
            ["--teacher.module", "own_nets:Net", "--teacher.head", "probe"],
            "own_nets:Net has no weights yet",
        ),
        (["--student.module", "own_nets:Net", "--student.stages", "x"], "'x'.*there are: .*hidden"),
        (["--teacher.head", "probe"], "--teacher.head probe needs a teacher"),
        (["--student.checkpoint", "nowhere.npz"], "--student.checkpoint.*nothing at nowhere.npz"),
        (["--extend"], "--extend takes a run further: give its --workdir"),
    ],
)
def test_what_is_no_network_is_one_line(folder, capsys, flags, message):
    line = refused(capsys, folder, *flags)
    assert re.search(message, line), line
    assert line.count("\n") == 1


@pytest.mark.slow
def test_a_run_is_extended_and_a_student_starts_where_another_ended(folder, capsys):
    whole = run(folder, "long", "--student.widths", 5)
    capsys.readouterr()
    longer = run(folder, "long", "--student.widths", 5, "--epochs", 6, "--extend")
    printed = capsys.readouterr().out
    assert "extended from 4 to 6 epochs" in printed
    assert "teacher is trained" in printed.replace(", seed 0", "")
    assert longer["distilled"]["params_sha256"] != whole["distilled"]["params_sha256"]
    assert longer["teacher"]["params_sha256"] == whole["teacher"]["params_sha256"]
    # The same command again finds it finished.
    run(folder, "long", "--student.widths", 5, "--epochs", 6, "--extend")
    assert "nothing left to do" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(folder, "long", "--student.widths", 5, "--epochs", 5, "--extend")
    assert "--epochs was 6, is now 5" in capsys.readouterr().err

    end = models.load_network(folder / "long" / "student")
    settings = NetworkSettings(checkpoint=folder / "long" / "student")
    start = starting_values(settings, dataclasses.replace(end.spec, num_classes=3))
    assert start.params["head"] == {"kernel": None, "bias": None}
    np.testing.assert_array_equal(
        start.params["hidden_0"]["kernel"], end.variables.params["hidden_0"]["kernel"]
    )
    assert "head, which is drawn" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"is not a mlp: .* is \(5, 10\) there, \(6, 10\) here"):
        starting_values(settings, dataclasses.replace(end.spec, widths=(6,)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:from_pytorch. passed over")
def test_a_pytorch_module_of_other_classes_teaches_through_a_probe(folder, capsys):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: the extra `torch`")
    pytest.importorskip("torchax", reason="torchax is not installed: the extra `torch`")
    import own_nets

    module = own_nets.torchs()
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, folder / "t.pth")
    teacher = ["--teacher.module", "own_nets:torchs", "--teacher.checkpoint", folder / "t.pth"]
    line = refused(capsys, folder, *teacher)
    assert "answers with 23 classes, the data has 10: --teacher.head probe" in line
    summary = run(folder, "probe", *teacher, "--teacher.head", "probe")
    assert "a linear layer over its 23 logits" in capsys.readouterr().out
    assert (
        summary["teacher"]["test_accuracy"] > 0.8 if "test_accuracy" in summary["teacher"] else True
    )
    network = models.load_network(folder / "probe" / "teacher")
    assert network(np.zeros((2, 8, 8, 1), np.uint8)).shape == (2, 10)


@pytest.mark.slow
def test_both_students_start_from_what_is_given(folder):
    start = folder / "begin"
    run(folder, "begin", "--student.widths", 5)
    run(
        folder, "again", "--student.widths", 5, "--student.checkpoint", start / "student",
        "--optimizer.learning-rate", "1e-12", "--method", "logit-mse",
    )  # fmt: skip
    found, given = (models.load_network(folder / n / "student") for n in ("again", "begin"))
    for a, b in zip(*map(jax.tree.leaves, (found.variables, given.variables)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
