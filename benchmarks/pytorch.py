"""Our training step against a PyTorch loop that does the same work, where PyTorch is installed.

python -m pip install -e '.[torch]' && python -m benchmarks.pytorch
"""

import importlib.util
import sys
from typing import Any

import optax

from benchmarks.step import BATCH_SIZE, SOFT_WEIGHT, STEPS, TEMPERATURE, library_step, make_batch
from benchmarks.timing import command, ratio


def torch_step(batch: Any) -> Any:
    """Return a function that takes STEPS steps in PyTorch."""
    import torch
    from torch.nn import functional

    def mlp(width: int) -> Any:
        layers = [torch.nn.Linear(784, width), torch.nn.ReLU()]
        layers += [torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 10)]
        return torch.nn.Sequential(*layers)

    student, teacher = mlp(800), mlp(1200).eval()
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    x = torch.tensor(batch["image"].reshape(BATCH_SIZE, -1).tolist())
    labels = torch.tensor(batch["label"].tolist())

    def steps() -> None:
        for _ in range(STEPS):
            with torch.no_grad():
                v = functional.softmax(teacher(x) / TEMPERATURE, -1)
            z = student(x)
            log_q = functional.log_softmax(z / TEMPERATURE, -1)
            soft = functional.kl_div(log_q, v, reduction="batchmean") * TEMPERATURE**2
            loss = SOFT_WEIGHT * soft + (1 - SOFT_WEIGHT) * functional.cross_entropy(z, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps


def main() -> None:
    """Print the ratio."""
    if importlib.util.find_spec("torch") is None:
        sys.exit("PyTorch is not installed: python -m pip install -e '.[torch]'")
    batch = make_batch()
    ours, theirs, quotient = ratio(library_step(optax.adam(1e-3), batch), torch_step(batch))
    print(
        f"{STEPS} steps: {ours * 1e3:.1f} ms here, {theirs * 1e3:.1f} ms in PyTorch, "
        f"ratio {quotient:.2f}"
    )


if __name__ == "__main__":
    command(main, __doc__)
