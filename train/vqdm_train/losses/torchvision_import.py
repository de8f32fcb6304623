"""Makes `import torchvision` work beside a torch that its compiled operators do not fit.

A torchvision wheel for CUDA beside a torch for CPUs cannot load its operators, and then fails to import, because it
describes two of them to torch by name. What is used here is Python alone: the definitions of networks.
"""

import torch

__all__ = ["import_torchvision"]

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # what is declared lives as long as its library object


def import_torchvision() -> None:
    """Imports torchvision; where its operators are missing, their names are declared to torch first.

    Raises:
        ImportError: there is no torchvision.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            library.define(schema)
        _declared.append(library)
        import torchvision  # noqa: F401
