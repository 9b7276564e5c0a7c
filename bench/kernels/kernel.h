// main() of every kernel: runs it once, and prints how many nanoseconds that took and what it computed.
// An argument replaces SIZE, which is for half a second or so.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t run(int size);

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

// The same in each run, and everywhere (xorshift).
__attribute__((unused)) static uint32_t pseudorandom(void) {
    static uint32_t state = 2463534242;
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

__attribute__((unused)) static uint64_t bits(double value) {
    uint64_t found;
    memcpy(&found, &value, sizeof found);
    return found;
}

int main(int argc, char **argv) {
    int size = argc > 1 ? atoi(argv[1]) : SIZE;
    int64_t begin = now();
    uint64_t result = run(size);
    int64_t taken = now() - begin;
    printf("%" PRId64 " %016" PRIx64 "\n", taken, result);
}
