// stdio N [stdout|stderr|both]: writes N MiB of 64-byte numbered lines; exits 1 when a write fails.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char block[65536];

static void put(int fd) {
    for (size_t done = 0; done < sizeof block;) {
        ssize_t n = write(fd, block + done, sizeof block - done);
        if (n < 0) {
            fprintf(stderr, "write %d: %s\n", fd, strerror(errno));
            exit(1);
        }
        done += n;
    }
}

int main(int argc, char **argv) {
    long blocks = (argc > 1 ? atol(argv[1]) : 1) * 16;
    const char *where = argc > 2 ? argv[2] : "stdout";
    for (long b = 0; b < blocks; b++) {
        for (int line = 0; line < 1024; line++) {
            char text[65];
            snprintf(text, sizeof text, "%-63ld\n", b * 1024 + line);
            memcpy(block + line * 64, text, 64);
        }
        if (strcmp(where, "stderr")) put(1);
        if (strcmp(where, "stdout")) put(2);
    }
    return 0;
}
