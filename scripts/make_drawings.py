"""Draws the pictures of docs/concepts.md: tokens, a layer, the two policies.

    python scripts/make_drawings.py [FOLDER]     writes *.svg there (docs/images)

Plain SVG with the reader's own fonts; it follows the reader's light or dark scheme, and brings its
background, so that it can be read on any page. scripts/build_docs.sh holds the files in the tree
against it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"
STYLE = """
  .page { fill: #fcfcfd; stroke: #d7dbe2 }
  .box { fill: #eceff4; stroke: #6b7686 }
  .rtg { fill: #fde7c3; stroke: #b4690e }
  .state { fill: #d3e5fb; stroke: #2368b4 }
  .action { fill: #d3f0dc; stroke: #23804a }
  .memory { fill: #e7dcfa; stroke: #6a3fb5 }
  .wire { fill: none; stroke: #4a5361; stroke-width: 1.4 }
  .frame { fill: none; stroke: #b4232c; stroke-width: 1.6; stroke-dasharray: 6 4 }
  .head { fill: #4a5361 }
  text { fill: #1d232c; font-family: system-ui, sans-serif; font-size: 14px }
  .small { font-size: 12.5px; fill: #4a5361 }
  .title { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #171a1f; stroke: #39404b }
    .box { fill: #2a303a; stroke: #8d98a8 }
    .rtg { fill: #4d3510; stroke: #eba64a }
    .state { fill: #163a61; stroke: #69abef }
    .action { fill: #14432a; stroke: #5cc98a }
    .memory { fill: #36255a; stroke: #ae8bf0 }
    .wire { stroke: #a6b0bf }
    .frame { stroke: #f2777e }
    .head { fill: #a6b0bf }
    text { fill: #e8ebf0 }
    .small { fill: #b2bbc8 }
  }
"""


class Drawing:
    """Shapes on a page; coordinates in pixels, y downwards."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">\n<title>{escape(title)}</title>\n'
            f"<style>{STYLE}</style>\n"
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path class="head" d="M0 0 L8 4 L0 8 z"/></marker>'
            "</defs>"
        )
        self.shapes: list[str] = []
        self.box(1, 1, width - 2, height - 2, "", "page", 8)

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "middle") -> None:
        """A line of text, its middle at height y."""
        self.shapes.append(
            f'<text class="{style}" x="{x:g}" y="{y + 5:g}" text-anchor="{anchor}">'
            f"{escape(text)}</text>"
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        text: str = "",
        style: str = "box",
        radius: float = 5,
    ) -> None:
        """A rectangle with text in its middle."""
        self.shapes.append(
            f'<rect class="{style}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
            f'rx="{radius:g}"/>'
        )
        if text:
            self.text(x + width / 2, y + height / 2, text)

    def circle(self, x: float, y: float, text: str, style: str = "box", radius: float = 11) -> None:
        """A circle with text in its middle."""
        self.shapes.append(f'<circle class="{style}" cx="{x:g}" cy="{y:g}" r="{radius:g}"/>')
        self.text(x, y, text)

    def wire(self, *points: tuple[float, float], arrow: bool = True) -> None:
        """A line through points, with a head at its end."""
        path = " ".join(f"{'L' if i else 'M'}{x:g} {y:g}" for i, (x, y) in enumerate(points))
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self.shapes.append(f'<path class="wire" d="{path}"{end}/>')

    def svg(self) -> str:
        """The file's text."""
        return "\n".join([self.head, *self.shapes, "</svg>"]) + "\n"


KINDS = (("R", "rtg"), ("s", "state"), ("a", "action"))


def tokens() -> str:
    """The sequence of tokens, and where the actions are predicted."""
    page = Drawing(640, 318, "Three tokens a step; the action is predicted from the state's token")
    page.text(20, 96, "...", "title", "start")
    for step, name in enumerate(("t-2", "t-1", "t")):
        left = 58 + step * 194
        for kind, (letter, style) in enumerate(KINDS):
            x = left + kind * 58
            page.box(x, 200, 48, 36, f"{letter} {name}", style)
            page.wire((x + 24, 200), (x + 24, 160))
        page.wire((left + 82, 110), (left + 82, 76))
        page.circle(left + 82, 56, "", "action", 19)
        page.text(left + 82, 56, f"a {name}")
        page.text(left + 82, 254, f"step {name}", "small")
    page.box(44, 110, 580, 50, "n_layer layers: a token sees itself and the tokens before it")
    page.text(20, 218, "...", "title", "start")
    page.text(320, 22, "predicted actions", "small")
    for x, style, words in (
        (70, "rtg", "R  return-to-go"),
        (250, "state", "s  state"),
        (370, "action", "a  action"),
    ):
        page.box(x, 282, 16, 16, "", style, 3)
        page.text(x + 24, 290, words, "small", "start")
    page.text(604, 290, "K steps: 3 K tokens", "small", "end")
    return page.svg()


def layer() -> str:
    """One layer, and what its Mamba block does."""
    page = Drawing(640, 430, "A layer: token mixing and channel mixing, each with a residual sum")
    page.text(20, 24, "A layer", "title", "start")
    row = 92
    page.text(24, row, "x")
    page.wire((34, row), (66, row))
    for x, width, words, style in (
        (68, 88, "LayerNorm", "box"),
        (182, 98, "token mixer", "memory"),
        (352, 88, "LayerNorm", "box"),
        (462, 106, "channel mixer", "box"),
    ):
        page.box(x, row - 18, width, 36, words, style)
    page.wire((156, row), (180, row))
    page.wire((280, row), (305, row))
    page.circle(318, row, "+")
    page.wire((329, row), (350, row))
    page.wire((440, row), (460, row))
    page.wire((568, row), (583, row))
    page.circle(596, row, "+")
    page.wire((607, row), (630, row))
    page.wire((48, row), (48, 46), (318, 46), (318, row - 13))
    page.wire((340, row), (340, 46), (596, 46), (596, row - 13))
    page.text(231, 128, "mamba, attention, ...", "small")
    page.text(515, 128, "mlp, ssm or none", "small")
    _mamba(page)
    return page.svg()


def _mamba(page: Drawing) -> None:
    """The inside of the token mixer `mamba`, below the layer."""
    page.wire((182, 146), (24, 166), arrow=False)
    page.wire((280, 146), (616, 166), arrow=False)
    page.box(14, 166, 612, 250, "", "page", 8)
    page.text(28, 186, "The token mixer mamba", "title", "start")
    page.box(28, 248, 70, 36, "in_proj")
    page.text(28, 400, "u and z: d_inner = expand x d_model channels", "small", "start")
    page.wire((98, 258), (118, 258), (118, 226), (136, 226))
    page.wire((98, 274), (110, 274), (110, 376), (396, 376))
    page.box(138, 208, 118, 36, "conv1d, SiLU")
    page.wire((256, 226), (384, 226))
    page.text(320, 214, "u", "small")
    page.wire((272, 226), (272, 262))
    page.box(238, 264, 68, 34, "x_proj")
    page.wire((306, 281), (340, 281), (340, 246), (384, 246))
    page.text(346, 292, "delta by dt_proj, B, C", "small", "start")
    page.box(386, 204, 130, 52, "", "memory")
    page.text(451, 221, "selective scan")
    page.text(451, 240, "state h, d_state", "small")
    page.wire((516, 230), (551, 230))
    page.circle(564, 230, "x")
    page.wire((564, 243), (564, 303))
    page.box(529, 305, 70, 36, "out_proj")
    page.box(398, 358, 62, 36, "SiLU")
    page.text(250, 366, "z, the gate", "small")
    page.wire((460, 376), (486, 376), (486, 274), (554, 239))
    page.wire((564, 341), (564, 366))
    page.text(564, 378, "to the sum", "small")


def policies() -> str:
    """What each policy reads for one action."""
    page = Drawing(640, 424, "The windowed policy re-reads K steps, the recurrent one a state")
    page.text(20, 24, "windowed: each action re-reads the last K steps (here 3)", "title", "start")
    lefts: Sequence[float] = [20 + 124 * step for step in range(5)]
    for step, left in enumerate(lefts):
        _step(page, left, 92, step)
    for first, top in ((1, 80), (2, 86)):  # the last step's action is what is asked for
        page.box(lefts[first] - 6, top, 2 * 124 + 76, 56, "", "frame", 6)
    for step in (3, 4):
        x = lefts[step] + 51
        page.wire((x, 92), (x, 68))
        page.circle(x, 52, f"a{step}", "action", 15)
    for y, words in (
        (164, "From step to step the window moves on: the work is that of 3 K tokens,"),
        (182, "and what has left the window is forgotten."),
        (408, "The work is that of three tokens at any step; the state remembers what it can."),
    ):
        page.text(20, y, words, "small", "start")
    page.wire((20, 206), (620, 206), arrow=False)
    page.text(20, 232, "recurrent: each action reads one step and the state", "title", "start")
    for step, left in enumerate(lefts):
        _step(page, left, 344, step)
        page.wire((left + 51, 344), (left + 51, 326))
        page.box(left + 14, 290, 74, 36, f"h{step}", "memory")
        if step:
            page.wire((left - 36, 308), (left + 12, 308))
        page.wire((left + 51, 290), (left + 51, 282), arrow=False)
        page.circle(left + 51, 266, f"a{step}", "action", 15)
    return page.svg()


def _step(page: Drawing, left: float, top: float, step: int) -> None:
    """The three tokens of a step."""
    for kind, (letter, style) in enumerate(KINDS):
        page.box(left + kind * 34, top, 34, 32, f"{letter}{step}", style, 3)


DRAWINGS = {"tokens.svg": tokens, "layer.svg": layer, "policies.svg": policies}


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="default: %(default)s")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        (folder / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
