#!/bin/sh
# drawings.sh - makes the drawings of these pages from their text
#
# Needs graphviz and python3.  Each NAME.dot becomes NAME.svg, in which a comment
# says of which text it was made: a test compares that with the text.  The
# rendering of the Grafana dashboard is made of the dashboard's file and of
# recorded data, and the test makes it again.
set -eu

cd "$(dirname "$0")"
for text in *.dot; do
	drawing=${text%.dot}.svg
	sum=$(sha256sum "$text" | cut -d ' ' -f 1)
	dot -Tsvg "$text" >"$drawing.new"
	{
		sed '/^<svg/,$d' "$drawing.new"
		echo "<!-- made by drawings.sh from $text, SHA-256 $sum -->"
		sed -n '/^<svg/,$p' "$drawing.new"
	} >"$drawing"
	rm "$drawing.new"
done
python3 dashboard/draw.py >dashboard.svg
