"""The pictures of docs/plots.md and docs/tutorial.md, drawn by their own blocks, and the graphs of docs/losses.

``python docs/tools/pictures.py`` draws them all. Paper and ink are those of any page, light or dark: nothing behind the
axes, and grey for what is written.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

from pathsum.graphs import Graph, linear, over_ctc

DOCS = Path(__file__).resolve().parent.parent
GREY = "#7d8794"
STYLE = {
    "figure.figsize": (7.2, 3.4), "savefig.transparent": True, "svg.hashsalt": "pathsum", "svg.fonttype": "none",
    "font.family": "sans-serif", "font.size": 10, "text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY,
    "xtick.color": GREY, "ytick.color": GREY, "axes.facecolor": "none", "legend.labelcolor": GREY,
}  # fmt: skip


def draw(page: str) -> None:
    """Runs the blocks of a page, and keeps what they have drawn."""
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.DOTALL | re.MULTILINE)
    names, number = {}, 0
    for block in blocks:
        exec(block, names)
        for figure in map(pyplot.figure, pyplot.get_fignums()):
            figure.savefig(DOCS / "pictures" / f"{page}_{number}.svg", metadata={"Date": None})
            number += 1
        pyplot.close("all")


GRAPHS = {
    "graphs": over_ctc(linear([1, 2]), 3),
    "ambiguous": Graph([0, 1, 1, 1, 1, 2, 2], [1, 1, 1, 2, 2, 2, 2], [1, 1, 2, 1, 2, 1, 2]),
}


if __name__ == "__main__":
    with pyplot.rc_context(STYLE), tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the tutorial writes files
        for name, graph in GRAPHS.items():
            (DOCS / "losses" / f"{name}.svg").write_text(graph.draw(names="∅ab") + "\n")
        draw("plots")
        draw("tutorial")
