"""What moves in a notebook: explorers of a store, and views of training."""

from lib.explore.board import Board
from lib.explore.choice import WindowControls, lengths
from lib.explore.live import Live, load_or_run
from lib.explore.recording import TraceExplorer
from lib.explore.results import BarExplorer, CurveExplorer
from lib.explore.sequence import SequenceExplorer

__all__ = [
    "BarExplorer",
    "Board",
    "CurveExplorer",
    "Live",
    "SequenceExplorer",
    "TraceExplorer",
    "WindowControls",
    "lengths",
    "load_or_run",
]
