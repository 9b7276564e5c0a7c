// What no container should be able to do to others:
//   memory MIB | files COUNT | disk PATH | stream | tiny COUNT
// and `count PATH`, what others do meanwhile.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char block[65536];

static int memory(long mebibytes) {
    for (long i = 0; i < mebibytes; i++) {
        volatile char *here = malloc(1 << 20);
        if (!here) return 1;
        for (int at = 0; at < 1 << 20; at += 4096) here[at] = 1;
    }
    puts("it had all of it");
    return 0;
}

static int files(long count) {
    long opened = 0;
    while (opened < count && open("/bombs/one", O_RDONLY) >= 0) opened++;
    printf("%ld %s\n", opened, opened < count ? strerror(errno) : "");
    return 0;
}

static int disk(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    long written = 0;
    for (ssize_t got; (got = write(fd, block, sizeof block)) > 0;) written += got;
    printf("%ld %s\n", written, strerror(errno));
    return 0;
}

static int count(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    for (long i = 1;; i++) {
        char text[32];
        if (pwrite(fd, text, snprintf(text, sizeof text, "%ld\n", i), 0) < 0) return 1;
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, 0);
    }
}

int main(int argc, char **argv) {
    const char *what = argv[1], *argument = argc > 2 ? argv[2] : "";
    if (!strcmp(what, "memory")) return memory(atol(argument));
    if (!strcmp(what, "files")) return files(atol(argument));
    if (!strcmp(what, "disk")) return disk(argument);
    if (!strcmp(what, "count")) return count(argument);
    memset(block, 'x', sizeof block);
    if (!strcmp(what, "stream"))
        while (write(1, block, sizeof block) > 0) {}
    if (!strcmp(what, "tiny"))
        for (long left = atol(argument); left; left--)
            if (write(1, block, 1) != 1) return 1;
    return 0;
}
