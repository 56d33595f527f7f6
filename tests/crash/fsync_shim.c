/* Makes fsync and its kin fail with EIO, for files whose path holds FSYNC_SHIM_MATCH, from the
 * moment the file FSYNC_SHIM_TRIGGER exists; those of native asynchronous I/O, too, or, if
 * FSYNC_SHIM_ASYNC_ONLY is set, only those. Loaded into the server with LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <linux/aio_abi.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int must_fail(int fd)
{
    const char *trigger = getenv("FSYNC_SHIM_TRIGGER");
    const char *match = getenv("FSYNC_SHIM_MATCH");
    char link[64], path[PATH_MAX];
    ssize_t length;

    if (!trigger || !match || access(trigger, F_OK) != 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return strstr(path, match) != NULL;
}

static int call(const char *name, int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);

    if (!getenv("FSYNC_SHIM_ASYNC_ONLY") && must_fail(fd)) {
        errno = EIO;
        return -1;
    }
    return real(fd);
}

int fsync(int fd) { return call("fsync", fd); }
int fdatasync(int fd) { return call("fdatasync", fd); }

static void spoil(struct io_event *event)
{
    const struct iocb *operation = (const struct iocb *)(uintptr_t)event->obj;

    if (operation->aio_lio_opcode != IOCB_CMD_FSYNC && operation->aio_lio_opcode != IOCB_CMD_FDSYNC)
        return;
    if (must_fail((int)operation->aio_fildes))
        event->res = -EIO;
}

/* Of asynchronous syncs it is the news that is changed. */
long syscall(long number, ...)
{
    long (*real)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    long a[6], result;
    va_list rest;

    va_start(rest, number);
    for (int at = 0; at < 6; at++)
        a[at] = va_arg(rest, long);
    va_end(rest);
    result = real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (number == SYS_io_getevents)
        for (long at = 0; at < result; at++)
            spoil((struct io_event *)a[3] + at);
    return result;
}
