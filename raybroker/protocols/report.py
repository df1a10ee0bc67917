"""An evaluation as a person wants it: tables on a terminal, JSON, one HTML file that needs no network."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from raybroker.protocols.findings import Findings, Plot, Sheet

COLOURS = ("#0b5fa5", "#c2410c", "#15803d", "#7c3aed", "#0e7490", "#a16207", "#be185d", "#4b5563")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1f2937 }
h1 { font-size: 1.6rem } h2 { margin-top: 2.5rem } table { border-collapse: collapse; margin: .5rem 0 }
caption { text-align: left; font-weight: 600; padding: .3rem 0 }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #e5e7eb; text-align: right; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left } .note { color: #4b5563; font-size: .9rem }
.scroll { overflow-x: auto }
"""


@dataclass(frozen=True)
class Evaluation:
    """What `raybroker.evaluate` returns. `metrics` are means over the seeds, by dotted name."""

    about: Mapping[str, Any]  # the table and how it was evaluated
    findings: tuple[Findings, ...]
    notes: tuple[str, ...] = ()  # what of the table was left out, and why

    @property
    def metrics(self) -> dict[str, float]:
        """Every number of every protocol."""
        return {name: value for one in self.findings for name, value in one.metrics.items()}

    @property
    def table(self) -> pa.Table:
        """The numbers as rows: protocol, metric, value."""
        rows = [
            {"protocol": one.protocol, "metric": name, "value": value}
            for one in self.findings
            for name, value in one.metrics.items()
        ]
        kinds = pa.schema([("protocol", pa.string()), ("metric", pa.string()), ("value", pa.float64())])
        return pa.Table.from_pylist(rows, schema=kinds)

    def json(self) -> str:
        """All but the plots; what is not known is null."""
        tables = [
            {"title": s.title, "columns": s.columns, "rows": s.rows, "note": s.note}
            for one in self.findings
            for s in one.sheets
        ]
        notes = [*self.notes, *(note for one in self.findings for note in one.notes)]
        known = {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}
        whole = {"about": dict(self.about), "metrics": known, "tables": tables, "notes": notes}
        return json.dumps(whole, indent=1, default=str)

    def html(self) -> str:
        """The whole report, plots and their program included."""
        return page(self)

    def _repr_html_(self) -> str:
        """For a notebook: the tables."""
        return f"<style>{STYLE}</style>" + "".join(_findings(one, plots=False) for one in self.findings)

    def write(self, folder: Path) -> list[Path]:
        """evaluation.json and evaluation.html in that folder."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "evaluation.json", folder / "evaluation.html"]
        for file, text in zip(files, (self.json(), self.html()), strict=True):
            file.write_text(text, encoding="utf-8")
        return files


def show(evaluation: Evaluation, console: Console) -> None:
    """Tables and notes on a terminal."""
    for one in evaluation.findings:
        for sheet in one.sheets:
            console.print(_rich(sheet))
        for note in one.notes:
            console.print(f"  {note}", style="dim", markup=False, soft_wrap=True)
        console.print()


def _rich(sheet: Sheet) -> Table:
    made = Table(title=sheet.title, caption=sheet.note or None, title_justify="left", caption_justify="left")
    for number, column in enumerate(sheet.columns):
        made.add_column(column, justify="left" if number == 0 else "right")
    for row in sheet.rows:
        made.add_row(*map(str, row))
    return made


def page(evaluation: Evaluation) -> str:
    """One HTML file: Plotly's program is in it, nothing is fetched."""
    from plotly.offline import get_plotlyjs

    title = html.escape(f"Evaluation of {evaluation.about.get('table', 'a table')}")
    about = [
        f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in evaluation.about.items()
    ]
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body><h1>{title}</h1>",
        f"<details><summary>How it was made</summary><dl>{''.join(about)}</dl></details>",
        _list(evaluation.notes),
        *(_findings(one) for one in evaluation.findings),
        "</body></html>",
    ]
    return "\n".join(parts)


def _list(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<ul class="note">{items}</ul>' if items else ""


def _findings(one: Findings, plots: bool = True) -> str:
    drawn = [_plot(plot) for plot in one.plots] if plots else []
    heading = f"<h2>{html.escape(one.protocol)}</h2>"
    return heading + "".join(map(_sheet, one.sheets)) + _list(one.notes) + "".join(drawn)


def _sheet(sheet: Sheet) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in sheet.columns)
    rows = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in sheet.rows]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    note = f'<p class="note">{html.escape(sheet.note)}</p>' if sheet.note else ""
    caption = f"<caption>{html.escape(sheet.title)}</caption>"
    return f'<div class="scroll"><table>{caption}<tr>{head}</tr>{body}</table></div>{note}'


def _plot(plot: Plot) -> str:
    import plotly.graph_objects as go
    import plotly.io

    figure = go.Figure()
    for number, line in enumerate(plot.lines):
        spread = {"type": "data", "array": list(line.spread), "thickness": 1} if any(line.spread) else None
        figure.add_scatter(
            x=list(line.x),
            y=[value if math.isfinite(value) else None for value in line.y],
            name=line.name,
            mode="lines+markers" if len(line.x) < 30 else "lines",
            line={"color": COLOURS[number % len(COLOURS)]},
            error_y=spread,
        )
    figure.update_layout(
        title=plot.title, xaxis_title=plot.x, yaxis_title=plot.y, template="plotly_white", height=420
    )
    return plotly.io.to_html(figure, include_plotlyjs=False, full_html=False, config={"displaylogo": False})
