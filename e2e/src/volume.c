/* Makes a process believe that a volume fails: preloaded, it lets writes and syncs of files below CERTEUS_E2E_VOLUME fail
 * with EIO for as long as the file CERTEUS_E2E_VOLUME_FAULT is there. Its first letter says how: 'w', writes fail;
 * 't', writes fail after half of the bytes; 's', syncs fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

typedef ssize_t (*write_fn)(int, const void *, size_t);
typedef ssize_t (*pwrite_fn)(int, const void *, size_t, off_t);
typedef int (*sync_fn)(int);

/* The fault, if there is one now and this file is on the volume; else 0. */
static char fault(int fd) {
    const char *flag = getenv("CERTEUS_E2E_VOLUME_FAULT"), *volume = getenv("CERTEUS_E2E_VOLUME");
    char mode = 0, link[64], path[PATH_MAX];
    int saved = errno, file;
    ssize_t length;
    if (!flag || !volume) return 0;
    file = open(flag, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        if (read(file, &mode, 1) != 1) mode = 0;
        close(file);
    }
    if (mode) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        length = readlink(link, path, sizeof path - 1);
        if (length < 0) length = 0;
        path[length] = 0;
        if (strncmp(path, volume, strlen(volume)) != 0) mode = 0;
    }
    errno = saved;
    return mode;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    static write_fn real;
    char mode = fault(fd);
    if (!real) real = (write_fn)dlsym(RTLD_NEXT, "write");
    if (mode == 'w' || mode == 't') {
        if (mode == 't') (void)!real(fd, bytes, count / 2);
        errno = EIO;
        return -1;
    }
    return real(fd, bytes, count);
}

/* PostgreSQL writes at offsets. */
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) {
    static pwrite_fn real;
    char mode = fault(fd);
    if (!real) real = (pwrite_fn)dlsym(RTLD_NEXT, "pwrite64");
    if (mode == 'w' || mode == 't') {
        if (mode == 't') (void)!real(fd, bytes, count / 2, offset);
        errno = EIO;
        return -1;
    }
    return real(fd, bytes, count, offset);
}
ssize_t pwrite64(int fd, const void *bytes, size_t count, off_t offset) { return pwrite(fd, bytes, count, offset); }

static int synced(int fd, const char *name) {
    sync_fn real;
    if (fault(fd) == 's') {
        errno = EIO;
        return -1;
    }
    real = (sync_fn)dlsym(RTLD_NEXT, name);
    return real(fd);
}

int fsync(int fd) { return synced(fd, "fsync"); }
int fdatasync(int fd) { return synced(fd, "fdatasync"); }
