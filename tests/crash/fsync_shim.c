/* Makes fsync and its kin fail with EIO, for files whose path holds FSYNC_SHIM_MATCH, from the
 * moment the file FSYNC_SHIM_TRIGGER exists. Loaded into the server with LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

    if (must_fail(fd)) {
        errno = EIO;
        return -1;
    }
    return real(fd);
}

int fsync(int fd) { return call("fsync", fd); }
int fdatasync(int fd) { return call("fdatasync", fd); }
