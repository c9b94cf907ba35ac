# sanitizers.sh - a module built with AddressSanitizer and
# UndefinedBehaviorSanitizer, in the server of the distribution
#
# Sourced, not run, by an ordinary user, after instrumented.sh.

# Flags for compiling and linking.
SANITIZER_FLAGS='-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer'

# prepare_sanitizers FOLDER: from here on, servers load the sanitizers' libraries
# first.  With the module it would be too late: AddressSanitizer must see each
# allocation, and once a server has set its title, the options are gone from
# where the libraries look for them.  What is found is written to FOLDER/reports,
# or to the server's log, and ends the process by SIGABRT, as a crash does.
prepare_sanitizers()
{
	mkdir "$1/reports"
	gcc -O0 -shared -fPIC -Wl,-z,initfirst -o "$1/sanitizer_first.so" \
		test/sanitizer_first.c
	options="abort_on_error=1:log_path=$1/reports/report"
	# Without freed memory that is kept for long: each backend keeps its own.
	# The stack is the server's, which measures its depth.
	asan="$options:detect_stack_use_after_return=0:quarantine_size_mb=16"
	# strstr() would measure the whole text at each call, and be quadratic where
	# it is called again after each occurrence.
	asan="$asan:intercept_strstr=0"
	# At the end of a process nearly all that is found is the server's.
	asan="$asan:detect_leaks=0"
	use_programs "$1/watched" "
LD_PRELOAD=$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so):$1/sanitizer_first.so\${LD_PRELOAD:+:\$LD_PRELOAD}
ASAN_OPTIONS='$asan'
UBSAN_OPTIONS='$options:print_stacktrace=1:halt_on_error=1'
export LD_PRELOAD ASAN_OPTIONS UBSAN_OPTIONS
exec -a \"\$0\" \"\$server\" \"\$@\""
}

# sanitizer_reports FOLDER: shows what was found; fails if there is anything
# there or in a log below the folder
sanitizer_reports()
{
	find "$1" -name '*.log' -exec grep -h -A 20 ': runtime error: ' {} + \
		>"$1/undefined" 2>/dev/null || true
	cat "$1/undefined" "$1"/reports/* >"$1/found" 2>/dev/null || true
	if [ -s "$1/found" ]; then
		echo "the sanitizers have found errors:"
		head -n 400 "$1/found"
		return 1
	fi
}
