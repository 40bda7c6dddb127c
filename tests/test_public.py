"""What is public has a description, types, and an example that runs, in its docstring."""

import ast
import inspect
from pathlib import Path

import kdjax
from kdjax.data import text

PARTS = [getattr(kdjax, name) for name in kdjax.__all__ if name not in ("__version__", "runs")]
PUBLIC = {
    f"{part.__name__}.{name}": (part, getattr(part, name))
    for part in [*PARTS, text]
    for name in part.__all__
}
# One of a family, such as `resnet20`, is what the function that makes it says with its numbers.
FUNCTIONS = {
    name: own
    for name, (_, value) in PUBLIC.items()
    if inspect.isfunction(own := inspect.unwrap(getattr(value, "func", value)))
}
CLASSES = {name: value for name, (_, value) in PUBLIC.items() if inspect.isclass(value)}
REST = PUBLIC.keys() - FUNCTIONS.keys() - CLASSES.keys()


def untyped(function):
    signature = inspect.signature(function)
    found = [p.annotation for p in signature.parameters.values()]
    return signature.empty in (*found, signature.return_annotation)


def test_every_public_function_has_a_description_an_example_and_types():
    assert len(FUNCTIONS) > 300
    documents = {name: inspect.getdoc(function) or "" for name, function in FUNCTIONS.items()}
    assert not [name for name, text in documents.items() if not text.split("\n")[0].endswith(".")]
    assert not [
        name for name, text in documents.items() if ">>> " not in text.partition("Example:\n")[2]
    ]
    assert not [name for name, function in FUNCTIONS.items() if untyped(function)]


def test_every_public_class_is_described():
    own = {name: vars(value).get("__doc__") for name, value in CLASSES.items()}
    assert not [name for name, text in own.items() if not text and not name.endswith("Array")]


def described(path):
    """Return the names of a file that are assigned, with whether a string below says what for."""
    body = ast.parse(path.read_text()).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            (target,) = node.targets if isinstance(node, ast.Assign) else (node.target,)
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            yield getattr(target, "id", ""), is_text


def test_every_public_constant_and_type_is_described():
    found = {}
    for full in REST:
        part, value = PUBLIC[full]
        if not inspect.ismodule(value):
            own = full.rpartition(".")[2]
            texts = [
                good
                for path in Path(part.__file__).parent.glob("*.py")
                for name, good in described(path)
                if name == own
            ]
            found[full] = any(texts)
    assert found and not [full for full, is_described in found.items() if not is_described]
