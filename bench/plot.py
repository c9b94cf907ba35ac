"""Plots as SVG: bars in groups, and lines over a logarithmic axis.

Each function returns the text of a file.  Nothing but what is drawn goes in: no
fonts, scripts, or links.
"""

import math
from xml.sax.saxutils import escape

COLORS = ("#336791", "#e07b39", "#5a9e6f", "#8a63a8", "#b0413e", "#7f7f7f")
WIDTH = 760
TEXT = 'font-family="sans-serif" font-size="12" fill="#222"'


class Drawing:
    def __init__(self, title, height):
        self.height = height
        self.parts = []
        self.text(WIDTH / 2, 22, title, "middle", ' font-weight="bold"')

    def text(self, x, y, text, anchor="start", more=""):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {TEXT}{more}>{escape(text)}</text>')

    def line(self, x1, y1, x2, y2, color="#ddd"):
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>')

    def rectangle(self, x, y, width, height, color):
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{color}"/>'
        )

    def curve(self, points, color):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        self.parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points]

    def legend(self, names, colors):
        """Below everything else, in as many lines as it takes."""
        x = WIDTH
        for name, color in zip(names, colors):
            width = 35 + 7 * len(name)
            if x + width > WIDTH:
                x = 20
                self.height += 20
            self.rectangle(x, self.height - 20, 12, 12, color)
            self.text(x + 17, self.height - 10, name)
            x += width

    def svg(self):
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" '
                f'width="{WIDTH}" height="{self.height}">',
                f'<rect width="{WIDTH}" height="{self.height}" fill="white"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


def label(value):
    """A value in few digits."""
    if value == 0:
        return "0"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.4g}"


def bars(title, groups):
    """Horizontal bars: a list of (group, [(name, value), ...]).

    Longer than ten times the median, a bar is cut off: its value is beside it.
    """
    groups = [(group, values) for group, values in groups if values]
    names = list(dict.fromkeys(name for _, values in groups for name, _ in values))
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}
    values = sorted(value for _, pairs in groups for _, value in pairs)
    longest = min(values[-1], 10 * values[len(values) // 2]) or 1
    left, right, thickness = 20, WIDTH - 110, 16
    drawing = Drawing(title, 45 + sum(30 + thickness * len(pairs) for _, pairs in groups))
    y = 40
    for group, pairs in groups:
        y += 18
        drawing.text(left, y - 5, group)
        for name, value in pairs:
            length = (right - left) * min(value, longest) / longest
            drawing.rectangle(left, y, max(length, 1), thickness - 3, colors[name])
            mark = " (cut off)" if value > longest else ""
            drawing.text(left + length + 5, y + 11, label(value) + mark)
            y += thickness
        y += 12
    if len(names) > 1:
        drawing.legend(names, [colors[name] for name in names])
    return drawing.svg()


def lines(title, axes, series, zero=False):
    """Lines: a list of (name, [(x, y), ...]), x on a logarithmic axis, y as well.

    With zero, y is on a linear axis that begins there.  axes names both.
    """
    series = [(name, points) for name, points in series if points]
    left, right, top, bottom = 80, WIDTH - 20, 45, 320
    xs = [x for _, points in series for x, _ in points]
    ys = [y for _, points in series for _, y in points]
    drawing = Drawing(title, bottom + 45)
    x_low, x_high = math.log10(min(xs)), math.log10(max(xs))
    x_range = x_high - x_low or 1

    def x_of(value):
        return left + (math.log10(value) - x_low) / x_range * (right - left - 20) + 10

    if zero:
        step = 10 ** math.floor(math.log10(max(ys) or 1))
        step = next(step * factor for factor in (0.2, 0.5, 1, 2) if max(ys) / (step * factor) <= 6)
        ticks = [step * i for i in range(math.ceil((max(ys) or 1) / step) + 1)]

        def y_of(value):
            return bottom - value / ticks[-1] * (bottom - top)

    else:
        low = math.floor(math.log10(max(min(ys), 1e-6)))
        high = max(math.ceil(math.log10(max(max(ys), 1e-6))), low + 1)
        ticks = [10.0**power for power in range(low, high + 1)]

        def y_of(value):
            return bottom - (math.log10(max(value, 1e-6)) - low) / (high - low) * (bottom - top)

    for tick in ticks:
        drawing.line(left, y_of(tick), right, y_of(tick))
        drawing.text(left - 6, y_of(tick) + 4, label(tick), "end")
    for x in sorted(set(xs)):
        drawing.line(x_of(x), top, x_of(x), bottom)
        drawing.text(x_of(x), bottom + 17, label(x), "middle")
    drawing.text(left, top - 8, axes[1])
    drawing.text((left + right) / 2, bottom + 36, axes[0], "middle")
    for i, (_, points) in enumerate(series):
        drawing.curve([(x_of(x), y_of(y)) for x, y in points], COLORS[i % len(COLORS)])
    drawing.legend([name for name, _ in series], COLORS)
    return drawing.svg()
