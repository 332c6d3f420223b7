// Preloaded into redis-server: a disk that is slow (SLOW_FSYNC_MS), or full while the file named by FULL_DISK exists.
// Full is meant for the append-only file alone, so that the log still says what happened.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int full(int descriptor) {
  const char *flag = getenv("FULL_DISK");
  if (!flag || access(flag, F_OK) != 0) return 0;
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return strstr(path, ".aof") != NULL;
}

static int slow(const char *name, int descriptor) {
  const char *delay = getenv("SLOW_FSYNC_MS");
  if (delay) usleep(1000 * atoi(delay));
  return ((int (*)(int))dlsym(RTLD_NEXT, name))(descriptor);
}

int fsync(int descriptor) { return slow("fsync", descriptor); }
int fdatasync(int descriptor) { return slow("fdatasync", descriptor); }

ssize_t write(int descriptor, const void *data, size_t length) {
  if (full(descriptor)) {
    errno = ENOSPC;
    return -1;
  }
  return ((ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write"))(descriptor, data, length);
}
