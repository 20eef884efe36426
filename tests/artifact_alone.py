"""Run in a process that has torch, triton and what those need, and nothing else: an artifact made for a GPU.

    python -I -S artifact_alone.py SITE FOLDER      SITE: a folder of importable packages; FOLDER: artifact/, weights.pt

Leaves the results of the artifact and of its reference in FOLDER/found.pt, with the operators that were checked.
"""

import sys

site, folder = sys.argv[1:]
sys.path += [site, folder]

import artifact  # noqa: E402  # pyright: ignore[reportMissingImports]
import torch  # noqa: E402
from artifact import kernels  # noqa: E402  # pyright: ignore[reportMissingImports]
from artifact.reference import Reference  # noqa: E402  # pyright: ignore[reportMissingImports]
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

TOKENS = torch.tensor([3, 1, 2, 4, 1, 5, 0, 7, 7, 2])
OFFSETS = torch.tensor([0, 2, 2, 3, 10], dtype=torch.int32)


class Operators(TorchDispatchMode):
    """The artifact's own operators that run, each with the operands of its first call."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace.startswith("artifact"):
            copies = [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in args]
            self.seen.setdefault(func, (copies, dict(kwargs or {})))
        return func(*args, **(kwargs or {}))


def step(model):
    """Results of the model and its loss, and the gradients of all weights."""
    results = [*model(TOKENS, OFFSETS), *model.loss_next_token(TOKENS, OFFSETS)]
    model.zero_grad()
    torch.stack([result.sum() for result in results if result.requires_grad]).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return [result.detach() for result in results], gradients


def compiled(model):
    """In one graph, the loss too."""
    whole = [torch.compile(one, fullgraph=True, backend="aot_eager") for one in (model, model.loss_next_token)]
    return [result.detach() for run in whole for result in run(TOKENS, OFFSETS)]


def exported(model):
    """Saved, read back, and run with other numbers of rows and examples."""
    # torch tells one from many: a batch of one is a program of its own.
    rows, ends = torch.export.Dim("rows", min=2), torch.export.Dim("ends", min=3)
    shapes = {"tokens": {0: rows}, "seq_offsets": {0: ends}}
    torch.export.save(
        torch.export.export(model, (TOKENS[:6], OFFSETS.new_tensor([0, 2, 6])), dynamic_shapes=shapes),
        f"{folder}/model.pt2",
    )
    return torch.export.load(f"{folder}/model.pt2").module()(TOKENS, OFFSETS)


def main():
    state = torch.load(f"{folder}/weights.pt", weights_only=True)
    models = {"artifact": artifact.load(), "reference": Reference()}
    models["artifact"].load_state_dict(state)
    # Before anything has run: tracing makes no operators.
    found: dict = {"compiled": compiled(models["artifact"])}
    operators = Operators()
    for name, model in models.items():
        model.load_state_dict(state)
        with operators:
            found[name] = step(model)
    for operator, (operands, options) in operators.seen.items():
        # Gradients have no gradient of their own.
        if not str(operator.name()).endswith(("_backward", "::add_rows")):
            for x in operands:
                if isinstance(x, torch.Tensor) and x.is_floating_point():
                    x.requires_grad_()
        torch.library.opcheck(operator, tuple(operands), options)
    found["exported"] = [result.detach() for result in exported(models["artifact"])]
    found["operators"] = sorted(str(operator.name()).partition("::")[2] for operator in operators.seen)
    launched = ("Fused", "Logits", "TiledLogits")
    found["calls"] = sorted(name for name, value in vars(kernels).items() if type(value).__name__ in launched)
    found["modules"] = sorted({name.partition(".")[0] for name in sys.modules})
    torch.save(found, f"{folder}/found.pt")


main()
