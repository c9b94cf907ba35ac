# figures.sh - medians and ratios, and a file that collects them
#
# Sourced, not run.

# median: of the numbers on standard input, one a line
median()
{
	sort -n | awk '{v[NR] = $1} END {print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'
}

# ratio A B
ratio()
{
	awk -v a="$1" -v b="$2" 'BEGIN {printf "%.2f\n", a / b}'
}

# exceeds A B: whether A is more than B
exceeds()
{
	awk -v a="$1" -v b="$2" 'BEGIN {exit !(a > b)}'
}

# note NAME VALUE...: a line of the file RESULTS, if there is one, for report.py
note()
{
	[ -z "${RESULTS:-}" ] || echo "$*" >>"$RESULTS"
}

# within_limits: whether nothing has set failed.  With so few rounds that figures
# mean nothing, IGNORE_LIMITS in the environment makes it true.
within_limits()
{
	[ -z "$failed" ] || [ -n "${IGNORE_LIMITS:-}" ]
}
