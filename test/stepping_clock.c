/*
 * stepping_clock.c
 *		A wall clock that a test sets, by LD_PRELOAD in the environment of a
 *		server.
 *
 * CLERK_CLOCK_FILE names a file that contains, in decimal, the number of
 * seconds by which the clock is ahead of the machine's.  All other clocks are
 * unchanged.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Reads the file each time, since it may change between two calls. */
static long
seconds_ahead(void)
{
	const char *name = getenv("CLERK_CLOCK_FILE");
	char		text[32];
	ssize_t		length = 0;
	int			file = name != NULL ? open(name, O_RDONLY | O_CLOEXEC) : -1;

	if (file >= 0)
	{
		length = read(file, text, sizeof(text) - 1);
		close(file);
	}
	text[length > 0 ? length : 0] = '\0';
	return atol(text);
}

int
gettimeofday(struct timeval *time, void *zone)
{
	static int	(*real) (struct timeval *, void *) = NULL;
	int			result;

	if (real == NULL)
		real = (int (*) (struct timeval *, void *)) dlsym(RTLD_NEXT, "gettimeofday");
	result = real(time, zone);
	time->tv_sec += seconds_ahead();
	return result;
}

int
clock_gettime(clockid_t clock, struct timespec *time)
{
	static int	(*real) (clockid_t, struct timespec *) = NULL;
	int			result;

	if (real == NULL)
		real = (int (*) (clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
	result = real(clock, time);
	if (clock == CLOCK_REALTIME)
		time->tv_sec += seconds_ahead();
	return result;
}

time_t
time(time_t *result)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (result != NULL)
		*result = now.tv_sec;
	return now.tv_sec;
}
