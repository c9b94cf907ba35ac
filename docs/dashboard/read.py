"""read.py URL BEGIN END DASHBOARD RECORDING - the answers of a Prometheus to each query of a dashboard

BEGIN and END are in seconds of the epoch; the recording counts from 0. A query that fails, or that has no answer
for all of that time, is an error.
"""

import json
import sys
import urllib.parse
import urllib.request

STEP = 2

# What the dashboard's variables stand for if everything is chosen.
EVERYTHING = {"$instance": ".*", "$target": ".*"}


def answer_of(url, query, begin, end):
    parameters = {"query": query, "start": begin, "end": end, "step": STEP}
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{urllib.parse.urlencode(parameters)}") as response:
        return json.load(response)["data"]["result"]


def values_of(series, begin, end):
    """One number for each step, as text, so that infinity needs no name in JSON; None where there is none."""
    known = {round(moment): value for moment, value in series["values"]}
    return [known.get(moment) for moment in range(begin, end + 1, STEP)]


def shortened(value):
    """Seven digits: more cannot be drawn."""
    return None if value is None else f"{float(value):.7g}"


def main():
    url, begin, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with open(sys.argv[4], encoding="utf-8") as file:
        dashboard = json.load(file)
    recorded = []
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for variable, value in EVERYTHING.items():
                query = query.replace(variable, value)
            answer = answer_of(url, query, begin, end)
            if not answer:
                sys.exit(f"no answer to: {query}")
            for series in sorted(answer, key=lambda series: sorted(series["metric"].items())):
                values = [shortened(value) for value in values_of(series, begin, end)]
                recorded.append(
                    {
                        "panel": panel["id"],
                        "target": target["refId"],
                        "query": target["expr"],
                        "labels": series["metric"],
                        "values": values,
                    }
                )
    with open(sys.argv[5], "w", encoding="utf-8") as file:
        file.write(f'{{"step": {STEP}, "series": [\n')
        file.write(",\n".join(json.dumps(series, ensure_ascii=False) for series in recorded))
        file.write("\n]}\n")


main()
