/* Refuses one system call that a program makes through the C library's syscall():
 * REFUSE_SHIM_CALL is io_setup or io_submit, REFUSE_SHIM_ERRNO the number of the error. Loaded with
 * LD_PRELOAD, in front of the others. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int refused(long number)
{
    const char *name = getenv("REFUSE_SHIM_CALL");

    if (!name)
        return 0;
    return (number == SYS_io_setup && strcmp(name, "io_setup") == 0) ||
           (number == SYS_io_submit && strcmp(name, "io_submit") == 0);
}

long syscall(long number, ...)
{
    long (*real)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    long a[6];
    va_list rest;

    va_start(rest, number);
    for (int at = 0; at < 6; at++)
        a[at] = va_arg(rest, long);
    va_end(rest);
    if (refused(number)) {
        errno = atoi(getenv("REFUSE_SHIM_ERRNO"));
        return -1;
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
