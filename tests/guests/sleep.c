// Sleeps argv[1] seconds (fractions allowed; default 1), then prints "slept".
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 1;
    struct timespec t = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    if (nanosleep(&t, NULL)) {
        perror("nanosleep");
        return 1;
    }
    puts("slept");
    return 0;
}
