/*
 * wall_clock_driver.c
 *		A wall clock that a test sets, by LD_PRELOAD. It is ahead of the
 *		machine's by the number of seconds in the file that CLERK_TEST_CLOCK
 *		names.
 *
 * PostgreSQL calls gettimeofday() for the time of day, and clock_gettime() to
 * measure how long something takes.  The latter is unchanged.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>

int
gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
	static int	(*real) (struct timeval *restrict, void *restrict);
	const char *name = getenv("CLERK_TEST_CLOCK");
	FILE	   *file = name != NULL ? fopen(name, "r") : NULL;
	long		seconds = 0;
	int			result;

	if (real == NULL)
		*(void **) &real = dlsym(RTLD_NEXT, "gettimeofday");
	result = real(tv, tz);
	if (file != NULL)
	{
		if (fscanf(file, "%ld", &seconds) == 1)
			tv->tv_sec += seconds;
		fclose(file);
	}
	return result;
}
