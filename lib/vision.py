"""A guard around the import of torchvision, which a CPU build of torch beside torchvision's CUDA
wheel breaks.
"""

import importlib
import sys
from functools import cache

import torch


def torchvision_datasets():
    """Import ``torchvision.datasets``, repairing the import only where it is broken.

    torchvision's CUDA wheel cannot load its library beside a CPU build of torch; its import then
    fails with ``operator torchvision::nms does not exist``, although data sets need no operator.
    Where torchvision loads natively nothing is defined.

    Returns
    -------
    module
        ``torchvision.datasets``.

    Raises
    ------
    RuntimeError, ImportError
        The import fails for another reason than the missing operators.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or "does not exist" not in str(error):
            raise
    # The failed import leaves submodules that belong to a package which no longer exists; start
    # again without them.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _missing_schemas()
    return importlib.import_module("torchvision.datasets")


@cache  # the schemas live as long as the Library object, and may be defined only once
def _missing_schemas():
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
