"""The pictures of docs/plots.md, drawn by its own blocks: ``python docs/tools/pictures.py``.

Paper and ink are those of any page, light or dark: nothing behind the axes, and grey for what is written.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

DOCS = Path(__file__).resolve().parent.parent
GREY = "#7d8794"
STYLE = {
    "figure.figsize": (7.2, 3.4), "savefig.transparent": True, "svg.hashsalt": "pathsum", "svg.fonttype": "none",
    "font.family": "sans-serif", "font.size": 10, "text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY,
    "xtick.color": GREY, "ytick.color": GREY, "axes.facecolor": "none", "legend.labelcolor": GREY,
}  # fmt: skip

if __name__ == "__main__":
    page, names = (DOCS / "plots.md").read_text(), {}
    with pyplot.rc_context(STYLE):
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)):
            exec(block, names)
            pyplot.gcf().savefig(DOCS / "pictures" / f"plots_{number}.svg", metadata={"Date": None})
            pyplot.close()
