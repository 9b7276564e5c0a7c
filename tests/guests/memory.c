// memory calls N:  calls the host N times, for what that does to the host's memory.
// memory grow:     host calls on memory that did not exist when the program began.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc > 2 && !strcmp(argv[1], "calls")) {
        struct timespec now;
        for (long n = atol(argv[2]); n > 0; n--) clock_gettime(CLOCK_MONOTONIC, &now);
        return 0;
    }
    for (int i = 0; i < 8; i++) {
        size_t size = 4 << 20;
        char *block = malloc(size);
        if (!block) return 1;
        memset(block, 'x', size);
        memcpy(block + size - 8, "grown 0\n", 8);
        block[size - 2] = '0' + i;
        if (write(1, block + size - 8, 8) != 8) return 2;
    }
    return 0;
}
