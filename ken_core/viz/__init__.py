"""KENviz: pictures of which parameters a delta keeps.

The views follow KENviz of Mastromattei and Zanzotto, *Less is KEN*, ACL 2024, arXiv 2402.03142: one matrix, the
neighbours kept around each of its elements, and both for one kind of matrix across all layers. This package adds the
kept fraction by layer and kind of tensor, how much the kept positions of several deltas overlap, and the size of
low-rank shifts, which change every element of a matrix.

Drawing needs matplotlib (``pip install 'ken-serve[viz]'``); importing this package and measuring do not.
"""

from ken_core.viz.errors import MissingMatplotlibError, NoSuchTensorError, VizError
from ken_core.viz.gallery import visualize
from ken_core.viz.report import Picture, Report

__all__ = ["MissingMatplotlibError", "NoSuchTensorError", "Picture", "Report", "VizError", "visualize"]
