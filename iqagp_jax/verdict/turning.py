"""A structure that can be turned, as an element of a page that opens anywhere.

It is drawn by 3Dmol.js 2.5.5, embedded (doi:10.1093/bioinformatics/btu829; `3Dmol-LICENSE.txt`).
"""

import json
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
from numpy.typing import ArrayLike

ELEMENT = """
<div id="structure" style="position: relative; width: 100%; max-width: 520px; height: 340px"></div>
<p class="note">{caption}</p>
<script>{library}</script>
<script>
(() => {{
  const frames = {frames};
  const viewer = $3Dmol.createViewer("structure", {{ backgroundColor: "white" }});
  const show = k => {{
    viewer.clear();
    viewer.addModel(frames[k], "xyz");
    viewer.setStyle({{}}, {{ stick: {{ radius: 0.12 }}, sphere: {{ scale: 0.25 }} }});
    viewer.zoomTo();
    viewer.render();
  }};
  let shown = 0;
  show(0);
  document.getElementById("structure").addEventListener("dblclick", () => show(shown = (shown + 1) % frames.length));
}})();
</script>
"""


def turning(species: Sequence[str], geometries: Sequence[ArrayLike]) -> str:
    """Geometries (N, 3) in angstrom, the first to be seen, the others after double clicks."""
    caption = "Drag to turn, scroll to come nearer" + ("; double click for the next minimum." if geometries[1:] else ".")
    library = files("iqagp_jax.verdict").joinpath("3Dmol-min.js").read_text()
    frames = json.dumps([_xyz(species, np.asarray(geometry)) for geometry in geometries])
    return ELEMENT.format(caption=caption, library=library, frames=frames)


def _xyz(species: Sequence[str], positions: np.ndarray) -> str:
    lines = (f"{s} {x:.5f} {y:.5f} {z:.5f}" for s, (x, y, z) in zip(species, positions.tolist(), strict=True))
    return "\n".join([str(len(species)), "", *lines])
