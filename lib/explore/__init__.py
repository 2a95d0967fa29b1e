"""What moves in a notebook: explorers of a store, and views of training."""

from lib.explore.board import Board
from lib.explore.choice import WindowControls, lengths
from lib.explore.live import Live, load_or_run
from lib.explore.recording import RecordingExplorer
from lib.explore.results import BarExplorer, CurveExplorer
from lib.explore.sequence import SequenceExplorer

__all__ = [
    "BarExplorer",
    "Board",
    "CurveExplorer",
    "Live",
    "RecordingExplorer",
    "SequenceExplorer",
    "WindowControls",
    "lengths",
    "load_or_run",
]
