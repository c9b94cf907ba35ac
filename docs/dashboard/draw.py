"""draw.py - draws the Grafana dashboard, without Grafana, from the recording beside this file

Prints an SVG: the same one for the same monitoring/clerk_invite.dashboard.json and recording.json. Panels, their
places, titles, colors, units, and legends are the dashboard's; the numbers are those that Prometheus gave to record.sh.
"""

import json
import math
import pathlib
import re
import sys
from html import escape

FOLDER = pathlib.Path(__file__).resolve().parent
DASHBOARD = FOLDER.parent.parent / "monitoring" / "clerk_invite.dashboard.json"
RECORDING = FOLDER / "recording.json"

# Pixels: a column and a row of Grafana's grid, and what is around and between panels.
COLUMN, ROW, MARGIN, GAP = 50, 30, 12, 8
HEAD = 34
CHARACTER = 6.2  # the average width of a letter in 11 pixels

COLORS = {"blue": "#3274d9", "green": "#37872d", "orange": "#e0752d", "red": "#c4162a", "purple": "#8f3bb8"}
PALETTE = ["orange", "purple", "blue", "green", "red"]
TEXT, FAINT, GRID, FRAME = "#24292e", "#6b7076", "#e4e7eb", "#d0d5da"

STYLE = (
    "text{font-family:Helvetica,Arial,sans-serif;font-size:11px;fill:%s}"
    ".title{font-size:13px;font-weight:bold}.note{fill:%s}.end{text-anchor:end}.middle{text-anchor:middle}"
    ".line{fill:none;stroke-width:1.5}.dash{stroke-dasharray:5 4}.big{font-size:34px;text-anchor:middle}"
) % (TEXT, FAINT)


def number(text):
    """A value of the recording; None where there is none to draw."""
    value = math.nan if text is None else float(text)
    return None if math.isnan(value) else value


def pixel(value):
    return f"{value:.1f}".rstrip("0").rstrip(".")


def in_unit(value, unit):
    if value is None:
        return ""
    if math.isinf(value):
        return "never"
    if unit != "s":
        return f"{value:,.0f}" if value == int(value) else f"{value:.2f}"
    if value < 60:
        return f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 3600 else f"{value / 3600:.1f} h"


def clock(seconds):
    return f"{seconds // 60}:{seconds % 60:02d}"


def properties_of(panel, name):
    found = {}
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"]["options"] == name:
            found.update({entry["id"]: entry["value"] for entry in override["properties"]})
    return found


class Series:
    """One line or bar of a panel."""

    def __init__(self, panel, recorded, position):
        target = next(each for each in panel["targets"] if each["refId"] == recorded["target"])
        if target["expr"] != recorded["query"]:
            sys.exit(f"the recording is of another query than {target['expr']}: run record.sh")
        self.name = re.sub(r"\{\{(\w+)\}\}", lambda label: recorded["labels"][label[1]], target["legendFormat"])
        self.values = [number(value) for value in recorded["values"]]
        properties = properties_of(panel, self.name)
        color = properties.get("color", {}).get("fixedColor", PALETTE[position % len(PALETTE)])
        self.color = COLORS[color]
        self.unit = properties.get("unit", panel["fieldConfig"]["defaults"]["unit"])
        self.right = properties.get("custom.axisPlacement") == "right"
        self.dashed = properties.get("custom.lineStyle", {}).get("fill") == "dash"


def rectangle(x, y, width, height, fill, more=""):
    return f'<rect x="{pixel(x)}" y="{pixel(y)}" width="{pixel(width)}" height="{pixel(height)}" fill="{fill}"{more}/>'


def label(x, y, text, kind=""):
    return f'<text x="{pixel(x)}" y="{pixel(y)}"' + (f' class="{kind}"' if kind else "") + f">{escape(text)}</text>"


def threshold_color(panel, value):
    color = "transparent"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is None or value is not None and value >= step["value"]:
            color = step["color"]
    return COLORS.get(color)


def draw_stat(panel, series, x, y, width, height, step):
    """The last value, large."""
    value = next((value for value in reversed(series[0].values) if value is not None), None)
    text = in_unit(value, series[0].unit)
    return [
        f'<text x="{pixel(x + width / 2)}" y="{pixel(y + height / 2 + 14)}" class="big" '
        f'style="fill:{threshold_color(panel, value)}">{escape(text)}</text>'
    ]


def time_axis(left, right, bottom, steps, step):
    """A mark for each minute."""
    seconds = (steps - 1) * step
    return [
        label(left + (right - left) * at / seconds, bottom + 14, clock(at), "note middle")
        for at in range(0, seconds + 1, 60)
    ]


def draw_timeline(panel, series, x, y, width, height, step):
    """A row for each series, filled for as long as its value has a color."""
    left = x + 10 + CHARACTER * max(len(each.name) for each in series)
    right, bottom = x + width - 14, y + height - 18
    tall = min((bottom - y) / len(series), 34)
    shapes = []
    for row, each in enumerate(series):
        top = y + row * tall
        shapes.append(label(left - 6, top + tall / 2 + 4, each.name, "end"))
        shapes.append(rectangle(left, top + 2, right - left, tall - 4, "#f4f5f7"))
        wide = (right - left) / len(each.values)
        begin = 0
        colors = [None if value is None else threshold_color(panel, value) for value in each.values]
        for position in range(1, len(colors) + 1):
            if position < len(colors) and colors[position] == colors[begin]:
                continue
            if colors[begin]:
                shapes.append(
                    rectangle(left + begin * wide, top + 2, (position - begin) * wide, tall - 4, colors[begin])
                )
            begin = position
    return shapes + time_axis(left, right, bottom, len(series[0].values), step)


def nice_top(highest, unit):
    """The upper end of an axis: four times a round number."""
    steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600] if unit == "s" else [
        digit * 10**power for power in range(7) for digit in (1, 2, 2.5, 5)]
    return 4 * next((each for each in steps if 4 * each >= highest), math.ceil(highest / 4))


def stacked(series):
    """Pairs of the lower and the upper edge of each series."""
    below = [0] * len(series[0].values)
    edges = []
    for each in series:
        above = [low + (value or 0) for low, value in zip(below, each.values)]
        edges.append((below, above))
        below = above
    return edges


def runs_of(values):
    """The positions of neighbors that have a value."""
    run = []
    for position, value in enumerate(values + [None]):
        if value is not None:
            run.append(position)
        elif run:
            yield run
            run = []


def draw_axis(shapes, left, right, top, bottom, highest, unit, on_right):
    for mark in range(5):
        y = bottom - (bottom - top) * mark / 4
        if not on_right:
            shapes.append(rectangle(left, y, right - left, 1, GRID))
        text = in_unit(highest * mark / 4, unit)
        shapes.append(label(right + 5, y + 4, text, "note") if on_right else label(left - 6, y + 4, text, "note end"))


def draw_lines(panel, series, x, y, width, height, step):
    custom = panel["fieldConfig"]["defaults"]["custom"]
    is_stacked = custom["stacking"]["mode"] == "normal"
    right_series = [each for each in series if each.right]
    left, right = x + 48, x + width - (52 if right_series else 14)
    top, bottom = y + 8, y + height - 40
    edges = stacked(series) if is_stacked else [([0] * len(each.values), each.values) for each in series]
    shapes, tops = [], {}
    for on_right in (False, True):
        values = [
            value
            for each, (_, upper) in zip(series, edges)
            if each.right == on_right
            for value in upper
            if value is not None and not math.isinf(value)
        ]
        if values:
            unit = next(each.unit for each in series if each.right == on_right)
            tops[on_right] = nice_top(max(max(values), 1), unit)
            draw_axis(shapes, left, right, top, bottom, tops[on_right], unit, on_right)

    def point(position, value, on_right):
        across = left + (right - left) * position / (len(series[0].values) - 1)
        return f"{pixel(across)},{pixel(bottom - (bottom - top) * min(value / tops[on_right], 1))}"

    # The first one last, so that those above it that are 0 do not cover it.
    for each, (lower, upper) in reversed(list(zip(series, edges))):
        for run in runs_of(each.values):
            line = [point(position, upper[position], each.right) for position in run]
            if custom["fillOpacity"]:
                base = [point(position, lower[position], each.right) for position in reversed(run)]
                shapes.append(f'<polygon points="{" ".join(line + base)}" fill="{each.color}" fill-opacity="0.3"/>')
            kind = "line dash" if each.dashed else "line"
            shapes.append(f'<polyline points="{" ".join(line)}" class="{kind}" stroke="{each.color}"/>')
    shapes += time_axis(left, right, bottom, len(series[0].values), step)
    return shapes + draw_legend(series, left, right, bottom + 32)


def draw_legend(series, x, right, y):
    """In one row; what does not fit is cut off."""
    shapes = []
    for each in series:
        room = int((right - x - 18) / CHARACTER)
        name = each.name if len(each.name) <= room else each.name[: room - 1] + "…"
        shapes.append(f'<polyline points="{pixel(x)},{y - 4} {pixel(x + 14)},{y - 4}" '
                      f'class="{"line dash" if each.dashed else "line"}" stroke="{each.color}"/>')
        shapes.append(label(x + 18, y, name))
        x += 32 + CHARACTER * len(each.name)
    return shapes


DRAW = {"stat": draw_stat, "state-timeline": draw_timeline, "timeseries": draw_lines}


def draw_panel(panel, recording):
    place = panel["gridPos"]
    x, y = MARGIN + place["x"] * COLUMN, MARGIN + HEAD + place["y"] * ROW
    width, height = place["w"] * COLUMN - GAP, place["h"] * ROW - GAP
    recorded = [each for each in recording["series"] if each["panel"] == panel["id"]]
    if {each["target"] for each in recorded} != {target["refId"] for target in panel["targets"]}:
        sys.exit(f"the recording is of other queries than those of {panel['title']}: run record.sh")
    series = [Series(panel, each, position) for position, each in enumerate(recorded)]
    return [
        rectangle(x, y, width, height, "#fff", f' stroke="{FRAME}"'),
        label(x + 10, y + 20, panel["title"], "title"),
    ] + DRAW[panel["type"]](panel, series, x, y + 30, width, height - 30, recording["step"])


def main():
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    recording = json.loads(RECORDING.read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    width = 2 * MARGIN - GAP + COLUMN * max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in panels)
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    height = MARGIN + HEAD + rows * ROW
    shapes = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img">',
        "<!-- made by dashboard/draw.py: a rendering, not a screenshot of Grafana -->",
        f"<title>{escape(dashboard['title'])}: a rendering of the dashboard</title>",
        f"<style>{STYLE}</style>",
        rectangle(0, 0, width, height, "#f4f5f7"),
        label(MARGIN + 2, MARGIN + 16, dashboard["title"], "title"),
        label(width - MARGIN, MARGIN + 16, "A rendering of recorded data, not a screenshot of Grafana", "note end"),
    ]
    for panel in panels:
        shapes += draw_panel(panel, recording)
    sys.stdout.reconfigure(encoding="utf-8")
    print("\n".join(shapes + ["</svg>"]))


main()
