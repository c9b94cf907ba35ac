# sanitizers.sh - a module built with AddressSanitizer and
# UndefinedBehaviorSanitizer, in the server of the distribution
#
# Sourced, not run, by an ordinary user, after instrumented.sh.

# Flags for compiling and linking.  Without sharing of its own symbols, so that
# each report has a stack with names.
SANITIZER_FLAGS='-g -O1 -fsanitize=address,undefined -fno-omit-frame-pointer'

# prepare_sanitizers FOLDER: from here on, servers load the sanitizer's library
# first, which a module alone could do too late, and write what is found to
# FOLDER/reports.  A finding ends the process by SIGABRT, as a crash does.
prepare_sanitizers()
{
	mkdir "$1/reports"
	gcc -O0 -shared -fPIC -Wl,-z,initfirst -o "$1/sanitizer_first.so" \
		test/sanitizer_first.c
	options="abort_on_error=1:log_path=$1/reports/report"
	# Without freed memory that is kept for long: each backend keeps its own.
	# The stack is the server's, which measures its depth.
	asan="$options:detect_stack_use_after_return=0:quarantine_size_mb=16"
	# At the end of a process nearly all that is found is the server's.
	asan="$asan:detect_leaks=0"
	use_programs "$1/watched" "
LD_PRELOAD=$(gcc -print-file-name=libasan.so):$1/sanitizer_first.so\${LD_PRELOAD:+:\$LD_PRELOAD}
ASAN_OPTIONS='$asan'
UBSAN_OPTIONS='$options:print_stacktrace=1:halt_on_error=1'
export LD_PRELOAD ASAN_OPTIONS UBSAN_OPTIONS
exec -a \"\$0\" \"\$server\" \"\$@\""
}

# sanitizer_reports FOLDER: shows what was found; fails if there is anything
sanitizer_reports()
{
	if cat "$1"/reports/* 2>/dev/null | grep -q .; then
		echo "the sanitizers have found errors:"
		cat "$1"/reports/* | head -n 400
		return 1
	fi
}
