"""The form behind *Export*: files of what is seen, their downloads, and the LaTeX of a figure."""

import base64
import html

import ipywidgets

from lib.explore.widgets import EXPECTED, button, dropdown, row, say
from lib.figures import export, style

TYPES = {
    "csv": "text/csv",
    "pdf": "application/pdf",
    "pgf": "application/x-tex",
    "png": "image/png",
    "svg": "image/svg+xml",
}
LATEX = {  # kind -> command, and what it needs; the first that was written is shown
    "pdf": ("includegraphics", r"\usepackage{graphicx}"),
    "pgf": ("input", r"\usepackage{pgf}"),
    "png": ("includegraphics", r"\usepackage{graphicx}"),
    "svg": ("includesvg", r"\usepackage{svg}, and Inkscape with -shell-escape"),
}


class Form:
    """Journal, width and kinds of file for one explorer; ``widget`` shows it."""

    def __init__(self, explorer):
        self.explorer = explorer
        kinds = [kind for kind in ("pdf", "png", "svg", "pgf") if kind != "pgf" or export.has_tex()]
        self.journal = dropdown("Journal", list(style.JOURNALS))
        self.journal.value = "report"
        self.width = dropdown("Width", ["text", "column"])
        look = {"indent": False, "layout": {"width": "max-content"}}
        self.kinds = {
            kind: ipywidgets.Checkbox(kind == "pdf", description=kind.upper(), **look)
            for kind in kinds
        }
        self.told = ipywidgets.HTML(layout={"width": "100%"})
        controls = [self.journal, self.width, *self.kinds.values(), button("Write", self.write)]
        self.widget = ipywidgets.VBox([row(controls), self.told], layout={"width": "100%"})

    def write(self):
        """Write the files, and show where they lie, links and LaTeX."""
        kinds = [kind for kind, box in self.kinds.items() if box.value]
        page = {"journal": self.journal.value, "width": self.width.value}
        try:
            paths = self.explorer.export(kinds=kinds, **page)
        except EXPECTED as error:
            self.told.value = say(str(error))
            return
        links = " · ".join(map(_link, paths))
        figures = {path.suffix[1:]: path for path in paths}
        kind = next((kind for kind in LATEX if kind in figures), None)
        latex = kind and _latex(figures[kind], kind, self.explorer.view.note)
        where = say(f"Written to {paths[0].parent}:")
        self.told.value = f"{where}{links}<pre>{html.escape(latex or '')}</pre>"


def _link(path):
    """A link that saves a copy through the browser."""
    data = base64.b64encode(path.read_bytes()).decode()
    kind = TYPES[path.suffix[1:]]
    return f'<a download="{path.name}" href="data:{kind};base64,{data}">{path.name}</a>'


def _latex(path, kind, caption):
    command, needs = LATEX[kind]
    name = path.name if kind == "pgf" else path.stem
    return (
        f"% {needs}\n\\begin{{figure}}\n  \\centering\n"
        f"  \\{command}{{{name}}}\n  \\caption{{{export.tex(caption)}}}\n"
        f"  \\label{{fig:{path.stem}}}\n\\end{{figure}}"
    )
