"""Recurrent cells, their training and their comparison: the library behind the notebooks.

Scripts written for the first layout go on: ``lib.store`` is `lib.runs.store`, and so on.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

MOVED = {
    **{"attempt": "runs.attempt", "run": "runs.attempt", "store": "runs.store"},
    **{"sweep": "runs.sweep", "traces": "runs.traces", "audit": "runs.audit"},
    **{"plots": "figures.plots", "paper": "figures.paper", "export": "figures.export"},
    **{"report": "figures.report", "style": "figures.style", "live": "explore.live"},
    "explorer": "explore",
}


class _Moved(MetaPathFinder, Loader):
    """Finds a module under its name of the first layout; it is the same module."""

    def find_spec(self, name, path=None, target=None):
        package, _, own = name.rpartition(".")
        return ModuleSpec(name, self) if package == __name__ and own in MOVED else None

    def exec_module(self, module):
        own = module.__name__.rpartition(".")[2]
        sys.modules[module.__name__] = importlib.import_module(f"{__name__}.{MOVED[own]}")


sys.meta_path.append(_Moved())
