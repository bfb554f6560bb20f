"""torch-fidelity and torchvision, also beside a PyTorch without CUDA."""

import importlib.util

import pytest


def imported():
    """(torch, torchvision, torch_fidelity); skips the test where one is not installed.

    PyPI's torchvision is built for CUDA: beside a PyTorch without it its operators do not load, and it stops at their
    missing declarations, none of which is used here.
    """
    torch = pytest.importorskip("torch")
    for name in ("torchvision", "torch_fidelity"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: it comes with the extra `peer`", allow_module_level=True)
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        global library
        library = torch.library.Library("torchvision", "DEF")  # withdrawn when it is let go
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    import torch_fidelity

    return torch, torchvision, torch_fidelity
