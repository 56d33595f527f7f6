/* Keeps a journal from which a power cut can be simulated: before each write to a file whose path
 * holds POWER_SHIM_MATCH, what the write will cover; after each fsync, how far it reached. Loaded
 * with LD_PRELOAD; the journal goes to POWER_SHIM_JOURNAL. power.py reads it. Each fsync is made to
 * take POWER_SHIM_SYNC_MICROSECONDS longer, so that the power is often cut in the middle of one.
 * An fsync by native asynchronous I/O (io_submit) has happened when io_getevents has told so.
 *
 * Writes through O_DSYNC or O_SYNC descriptors are on the disk when they return: not recorded.
 * Creation, renaming and truncation of files are taken as durable.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/aio_abi.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2 };

struct record {
    uint64_t sequence, inode, kind, offset, old_length, new_length;
};

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static uint64_t sequence;
static int journal = -1;

static void append(const void *data, size_t length)
{
    if (journal < 0) {
        const char *path = getenv("POWER_SHIM_JOURNAL");
        journal = (int)syscall(SYS_openat, AT_FDCWD, path,
                               O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (journal < 0)
            abort();
    }
    while (length > 0) {
        ssize_t done = syscall(SYS_write, journal, data, length);
        if (done <= 0)
            abort();
        data = (const char *)data + done;
        length -= (size_t)done;
    }
}

/* Is this one of the files to watch? Fills in its state. */
static int watched(int fd, struct stat *state)
{
    const char *match = getenv("POWER_SHIM_MATCH");
    char link[64], path[PATH_MAX];
    ssize_t length;

    if (!match || !getenv("POWER_SHIM_JOURNAL"))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return strstr(path, match) && fstat(fd, state) == 0 && S_ISREG(state->st_mode);
}

static void record_write(int fd, const struct stat *state, off_t offset, size_t length)
{
    struct record entry = {++sequence, state->st_ino, WRITE, (uint64_t)offset, 0, length};
    char *old = malloc(length ? length : 1);
    char link[64];
    int reader;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    reader = (int)syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC);
    if (!old || reader < 0)
        abort();
    while (entry.old_length < length) {
        ssize_t got = pread(reader, old + entry.old_length, length - entry.old_length,
                            offset + (off_t)entry.old_length);
        if (got <= 0)
            break;
        entry.old_length += (uint64_t)got;
    }
    close(reader);
    append(&entry, sizeof entry);
    append(old, entry.old_length);
    free(old);
}

/* Record a write about to be done at `offset`, or at the current place if that is negative. */
static void before_write(int fd, off_t offset, size_t length)
{
    struct stat state;
    int flags;

    if (!watched(fd, &state))
        return;
    flags = fcntl(fd, F_GETFL);
    if (flags & (O_SYNC | O_DSYNC))
        return;
    if (offset < 0)
        offset = flags & O_APPEND ? state.st_size : lseek(fd, 0, SEEK_CUR);
    record_write(fd, &state, offset, length);
}

static size_t total(const struct iovec *parts, int count)
{
    size_t length = 0;
    for (int at = 0; at < count; at++)
        length += parts[at].iov_len;
    return length;
}

#define GUARDED(result_type, call)                                                                 \
    pthread_mutex_lock(&guard);                                                                    \
    call;                                                                                          \
    int error = errno;                                                                             \
    pthread_mutex_unlock(&guard);                                                                  \
    errno = error;                                                                                 \
    return result;

ssize_t write(int fd, const void *data, size_t length)
{
    ssize_t result;
    GUARDED(ssize_t, before_write(fd, -1, length); result = syscall(SYS_write, fd, data, length))
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    ssize_t result;
    GUARDED(ssize_t, before_write(fd, -1, total(parts, count));
            result = syscall(SYS_writev, fd, parts, count))
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
    ssize_t result;
    GUARDED(ssize_t, before_write(fd, offset, length);
            result = syscall(SYS_pwrite64, fd, data, length, offset))
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    return pwrite64(fd, data, length, offset);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    ssize_t result;
    GUARDED(ssize_t, before_write(fd, offset, total(parts, count));
            result = syscall(SYS_pwritev, fd, parts, count, offset, 0L))
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    return pwritev64(fd, parts, count, offset);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    (void)flags;
    return offset == -1 ? writev(fd, parts, count) : pwritev64(fd, parts, count, offset);
}

/* The name under which programs with 64-bit file offsets call it. */
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
    return pwritev2(fd, parts, count, offset, flags);
}

/* What was written before the call is durable after it; what came meanwhile may not be. */
static int sync_file(long number, int fd)
{
    struct stat state;
    struct record entry = {0, 0, SYNC, 0, 0, 0};
    int known = watched(fd, &state);
    int result, error;

    pthread_mutex_lock(&guard);
    entry.sequence = sequence;
    pthread_mutex_unlock(&guard);
    if (known && getenv("POWER_SHIM_SYNC_MICROSECONDS"))
        usleep((useconds_t)atoi(getenv("POWER_SHIM_SYNC_MICROSECONDS")));
    result = (int)syscall(number, fd);
    error = errno;
    if (known && result == 0) {
        entry.inode = state.st_ino;
        pthread_mutex_lock(&guard);
        append(&entry, sizeof entry);
        pthread_mutex_unlock(&guard);
    }
    errno = error;
    return result;
}

int fsync(int fd) { return sync_file(SYS_fsync, fd); }
int fdatasync(int fd) { return sync_file(SYS_fdatasync, fd); }

/* Asynchronous I/O. A sync under way: its file, and how far it reaches. */
struct sync {
    const struct iocb *operation;
    uint64_t inode, sequence;
};

static struct sync under_way[64];

static long real_syscall(long number, long a, long b, long c, long d, long e, long f)
{
    long (*real)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    return real(number, a, b, c, d, e, f);
}

/* The place of an operation, or of none (NULL: a free one). Under the guard. */
static struct sync *find(const struct iocb *operation)
{
    for (size_t at = 0; at < sizeof under_way / sizeof *under_way; at++)
        if (under_way[at].operation == operation)
            return &under_way[at];
    return NULL;
}

/* Whether this is to be watched; if so, it is from here on. */
static int begin(const struct iocb *operation)
{
    struct stat state;
    struct sync *place;

    if (operation->aio_lio_opcode != IOCB_CMD_FSYNC && operation->aio_lio_opcode != IOCB_CMD_FDSYNC)
        return 0;
    if (!watched((int)operation->aio_fildes, &state))
        return 0;
    pthread_mutex_lock(&guard);
    place = find(NULL);
    if (!place)
        abort();
    *place = (struct sync){operation, state.st_ino, sequence};
    pthread_mutex_unlock(&guard);
    return 1;
}

static void end(const struct io_event *event)
{
    struct sync *place;

    pthread_mutex_lock(&guard);
    place = find((const struct iocb *)(uintptr_t)event->obj);
    if (place) {
        struct record entry = {place->sequence, place->inode, SYNC, 0, 0, 0};
        if (event->res == 0)
            append(&entry, sizeof entry);
        place->operation = NULL;
    }
    pthread_mutex_unlock(&guard);
}

struct late {
    long context;
    struct iocb *operation;
};

static void *submit_late(void *argument)
{
    struct late late = *(struct late *)argument;

    free(argument);
    usleep((useconds_t)atoi(getenv("POWER_SHIM_SYNC_MICROSECONDS")));
    if (real_syscall(SYS_io_submit, late.context, 1, (long)&late.operation, 0, 0, 0) != 1)
        abort();
    return NULL;
}

/* The caller goes on at once, as it would with a disk that takes longer. */
static long submit(long context, long count, struct iocb **operations)
{
    pthread_t thread;
    struct late *late;

    if (count != 1 || !begin(operations[0]))
        return real_syscall(SYS_io_submit, context, count, (long)operations, 0, 0, 0);
    if (!getenv("POWER_SHIM_SYNC_MICROSECONDS")) {
        if (real_syscall(SYS_io_submit, context, 1, (long)operations, 0, 0, 0) != 1)
            abort();
        return 1;
    }
    late = malloc(sizeof *late);
    if (!late)
        abort();
    *late = (struct late){context, operations[0]};
    if (pthread_create(&thread, NULL, submit_late, late) != 0)
        abort();
    pthread_detach(thread);
    return 1;
}

long syscall(long number, ...)
{
    long a[6], result;
    va_list rest;

    va_start(rest, number);
    for (int at = 0; at < 6; at++)
        a[at] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_io_submit)
        return submit(a[0], a[1], (struct iocb **)a[2]);
    result = real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (number == SYS_io_getevents)
        for (long at = 0; at < result; at++)
            end((const struct io_event *)a[3] + at);
    return result;
}
